"""Atari Pong from random play, small enough for two CPU cores.

It shows the way from an environment to a trained agent, docs/atari.md walks it.
A good player needs better data, more steps and a larger model.
"""

from typing import Any

from data_pipelines.collect import CollectConfig, collect
from data_pipelines.pretokenise import PretokeniseConfig
from data_pipelines.pretokenise import pretokenise as run_tokenizer
from dreamer4_jax import config as c

config = c.Config(
  name='pong',
  actions=(c.ActionComponent(name='action', kind='categorical', size=6),),
  tasks=('reward',),
  tokenizer=c.TokenizerConfig(
    patch_size=8, num_latents=16, width=64, mlp_hidden=176, num_heads=2,
    num_kv_heads=2, context_length=4,
  ),
  dynamics=c.DynamicsConfig(
    width=96, depth=4, mlp_hidden=256, num_heads=2, num_kv_heads=1,
    num_spatial_tokens=8, num_registers=1, context_length=16,
  ),
  # Rewards are -1, 0 and 1, a game's return lies in -21 to 21.
  agent=c.AgentConfig(num_tasks=1, bins=63, bin_limit=3.1),
  phases=c.Phases(
    tokenizer=c.TokenizerPhase(steps=2000, batch_size=8, clip_length=4),
    dynamics=c.DynamicsPhase(
      steps=2000, batch_size=8, bootstrap_start=1000, end_share=0.5,
    ),
    finetune=c.FinetunePhase(steps=400, batch_size=8),
    imagination=c.ImaginationPhase(
      steps=100, batch_size=16, clip_length=8, horizon=12, gamma=0.99,
    ),
  ),
  env=c.EnvConfig(
    name='gymnasium:ALE/Pong-v5', image_size=(64, 64), max_steps=1200
  ),
  data=c.DataConfig(path='runs/pong-random'),
  eval=c.EvalConfig(clips=64, episodes=8),
)  # fmt: skip


def record(path: str) -> dict[str, Any]:
  """Records random play: 40 games to train on, and six for evaluation."""
  return collect(
    CollectConfig(
      out=path,
      env=config.env.name,
      policy='random',
      episodes=40,
      test_episodes=6,
      image_size=config.env.image_size,
      max_steps=config.env.max_steps,
    )
  )


def pretokenise(run: str, dataset: str, out: str) -> dict[str, int]:
  """Stores the latents of the run's trained tokenizer, for later phases."""
  return run_tokenizer(PretokeniseConfig(run=run, dataset=dataset, out=out))
