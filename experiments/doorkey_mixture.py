"""DoorKey 5x5 from a planner mixed with noise, by a tokenizer of four patches.

The quickstart as it was: docs/doorkey.md says what it hides.
"""

from typing import Any

from data_pipelines.collect import CollectConfig, collect
from data_pipelines.pretokenise import PretokeniseConfig
from data_pipelines.pretokenise import pretokenise as run_tokenizer
from dreamer4_jax.config import (
  ActionComponent,
  AgentConfig,
  Config,
  DataConfig,
  DynamicsConfig,
  DynamicsPhase,
  EnvConfig,
  EvalConfig,
  FinetunePhase,
  ImaginationPhase,
  OptimizerConfig,
  Phases,
  TokenizerConfig,
  TokenizerPhase,
)

config = Config(
  name='doorkey_mixture',
  actions=(ActionComponent(name='action', kind='categorical', size=5),),
  tasks=('key', 'door', 'goal'),
  tokenizer=TokenizerConfig(
    image_height=40,
    image_width=40,
    patch_size=20,
    num_latents=8,
    bottleneck_dim=16,
    width=64,
    mlp_hidden=256,
    num_heads=2,
    num_kv_heads=2,
    context_length=2,
    rope_base=10.0,
  ),
  dynamics=DynamicsConfig(
    width=96,
    depth=8,
    mlp_hidden=256,
    num_heads=2,
    num_kv_heads=1,
    num_spatial_tokens=4,
    num_registers=1,
    context_length=16,
    whitening_floor=0.02,
  ),
  # Rewards are 0 or 1: bins up to 19 are enough, and the mean is not a sum
  # over bins of millions.
  agent=AgentConfig(num_tasks=3, bins=63, bin_limit=3.0),
  phases=Phases(
    tokenizer=TokenizerPhase(
      steps=3000,
      batch_size=32,
      # Many different images a step, and pairs for the time layers.
      clip_length=1,
      long_clip_length=2,
      # With four patches a frame, a masked one hides what nothing else tells.
      max_mask_ratio=0.0,
      log_every=100,
      checkpoint_every=1000,
      optimizer=OptimizerConfig(learning_rate=2e-3, decay_share=0.4),
    ),
    dynamics=DynamicsPhase(
      steps=4200,
      batch_size=8,
      clip_length=16,
      bootstrap_start=2700,
      # Learns what actions do in three quarters of the steps.
      end_share=0.7,
      log_every=50,
      checkpoint_every=500,
      optimizer=OptimizerConfig(
        name='muon', learning_rate=8e-3, decay_share=0.4
      ),
    ),
    finetune=FinetunePhase(
      steps=800,
      batch_size=8,
      clip_length=16,
      # What the dynamics learned in its last steps is not to be unlearned.
      dynamics_rate=0.3,
      baseline_share=0.25,
      # Imagining uses the reward that is read at a frame, distance 0.
      distance_decay=0.5,
      end_share=0.7,
      log_every=50,
      optimizer=OptimizerConfig(name='muon', learning_rate=3e-3),
    ),
    imagination=ImaginationPhase(
      steps=120,
      batch_size=32,
      clip_length=8,
      horizon=12,
      gamma=0.95,
      beta=0.1,
      stop_at_event=True,
      optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=10),
    ),
  ),
  # About twice what a perfect player needs; recordings may take longer.
  env=EnvConfig(name='navix:Navix-DoorKey-Random-5x5-v0', max_steps=20),
  # An event is rewarded under the label of its own task; labels that advance
  # have left it by then.
  data=DataConfig(path='runs/doorkey-planner', switch_tasks=0.25),
  eval=EvalConfig(clips=192, horizons=(1, 4, 8, 16)),
)


def record(path: str) -> dict[str, Any]:
  """Records the dataset: scripted play with much noise, and random play.

  The noise is what cloning inherits and what imagination can unlearn; it is
  the same for every training seed.
  """
  return collect(
    CollectConfig(
      out=path,
      env=config.env.name,
      episodes=4000,
      test_episodes=200,
      noise=(0.4, 0.6, 0.8, 1.0),
      max_steps=40,
      tile=config.env.tile,
      # More processes would compile as often, for a few seconds of playing.
      workers=1,
      seed=0,
    )
  )


def pretokenise(run: str, dataset: str, out: str) -> dict[str, int]:
  """Stores the latents of the run's trained tokenizer, for later phases."""
  return run_tokenizer(PretokeniseConfig(run=run, dataset=dataset, out=out))
