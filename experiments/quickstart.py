"""MiniGrid DoorKey 6x6 from pixels and random play, for two CPU cores."""

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
from dreamer4_jax.data import novelty

config = Config(
  name='quickstart',
  actions=(ActionComponent(name='action', kind='categorical', size=5),),
  tasks=('key', 'door', 'goal'),
  # A patch for each tile, and a latent for each patch.
  tokenizer=TokenizerConfig(
    image_height=48,
    image_width=48,
    patch_size=8,
    num_latents=36,
    aligned_latents=True,
    bottleneck_dim=8,
    width=64,
    mlp_hidden=192,
    num_heads=2,
    num_kv_heads=2,
    time_every=2,
    encoder_depth=2,
    decoder_depth=2,
    context_length=2,
    rope_base=10.0,
  ),
  # Few wide tokens cost what more narrow ones do, and learn more.
  dynamics=DynamicsConfig(
    width=96,
    depth=8,
    mlp_hidden=256,
    num_heads=2,
    num_kv_heads=1,
    num_spatial_tokens=6,
    num_registers=0,
    context_length=8,
    unroll=2,
  ),
  # Rewards are 0 or 1: bins up to 19 are enough, and the mean is not a sum
  # over bins of millions.
  agent=AgentConfig(num_tasks=3, bins=63, bin_limit=3.0),
  phases=Phases(
    tokenizer=TokenizerPhase(
      steps=1200,
      batch_size=32,
      # Many different images a step, and pairs for the time layers.
      clip_length=1,
      long_clip_length=2,
      # A patch is a tile: a masked one hides what nothing else tells.
      max_mask_ratio=0.0,
      # Or a player who turns moves the latents by a hair, and dreams lose it.
      latent_noise=0.6,
      novel_share=0.5,
      log_every=100,
      checkpoint_every=600,
      optimizer=OptimizerConfig(learning_rate=2e-3, decay_share=0.4),
    ),
    dynamics=DynamicsPhase(
      steps=4000,
      batch_size=16,
      clip_length=8,
      relevant_share=0.25,
      novel_share=0.5,
      bootstrap_start=3200,
      # A frame that is all noise after a clear one: so it is when sampling.
      clear_share=1.0,
      end_share=0.7,
      low_weight=1.0,
      log_every=100,
      checkpoint_every=800,
      optimizer=OptimizerConfig(
        name='muon', learning_rate=8e-3, decay_share=0.4
      ),
    ),
    finetune=FinetunePhase(
      steps=900,
      batch_size=16,
      clip_length=12,
      # Reward is to be learned where there is none, too.
      context_share=0.5,
      # What the dynamics learned in its last steps is not to be unlearned.
      dynamics_rate=0.3,
      # A clip in sixteen for each of the two clones without a task.
      baseline_share=0.125,
      novel_share=0.5,
      # Imagining uses the reward that is read at a frame, distance 0.
      distance_decay=0.5,
      clear_share=1.0,
      end_share=0.7,
      low_weight=1.0,
      log_every=50,
      optimizer=OptimizerConfig(name='muon', learning_rate=3e-3),
    ),
    imagination=ImaginationPhase(
      steps=400,
      batch_size=32,
      clip_length=8,
      horizon=16,
      sampling_steps=1,
      gamma=0.95,
      beta=0.05,
      stop_at_event=True,
      optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=10),
    ),
  ),
  # About twice what a perfect player needs; recordings may take longer.
  env=EnvConfig(name='navix:Navix-DoorKey-Random-6x6-v0', max_steps=24),
  # An event is rewarded under the label of its own task; labels that advance
  # have left it by then.
  data=DataConfig(path='runs/doorkey6-random', switch_tasks=0.25),
  eval=EvalConfig(clips=512),
)


def record(path: str) -> dict[str, Any]:
  """Records random play: nobody ever means to do anything.

  It is the same for every training seed.
  """
  report = collect(
    CollectConfig(
      out=path,
      env=config.env.name,
      policy='random',
      episodes=2500,
      test_episodes=200,
      max_steps=130,
      tile=config.env.tile,
      # More processes would compile as often, for a few seconds of playing.
      workers=1,
      seed=0,
    )
  )
  novelty.measure_dataset(path, 'train')
  return report


def pretokenise(run: str, dataset: str, out: str) -> dict[str, int]:
  """Stores the latents of the run's trained tokenizer, for later phases."""
  return run_tokenizer(PretokeniseConfig(run=run, dataset=dataset, out=out))
