"""Atari Pong from random play, for two CPU cores, as in docs/atari.md.

A good player needs better data, more steps and a larger model.
"""

import functools

from data_pipelines.collect import record_env
from data_pipelines.pretokenise import pretokenise_run
from dreamer4_jax import config as c

config = c.Config(
  actions=(c.ActionComponent(name='action', kind='categorical', size=6),),
  tokenizer=c.TokenizerConfig(
    patch_size=8, width=64, num_heads=2, context_length=4
  ),
  dynamics=c.DynamicsConfig(
    width=96, depth=4, num_heads=2, num_kv_heads=1, num_spatial_tokens=8
  ),
  # Rewards are -1, 0 and 1; a game's return is from -21 to 21.
  agent=c.AgentConfig(bins=63, bin_limit=3.1),
  phases=c.Phases(
    tokenizer=c.TokenizerPhase(steps=2000, batch_size=8, clip_lengths=(4,)),
    dynamics=c.DynamicsPhase(steps=2000, batch_size=8, bootstrap_start=1000),
    finetune=c.FinetunePhase(steps=400, batch_size=8),
    imagination=c.ImaginationPhase(
      steps=100, clip_lengths=(8,), horizon=12, gamma=0.99
    ),
  ),
  forcing=c.ForcingConfig(end_share=0.5),
  env=c.EnvConfig(
    name='gymnasium:ALE/Pong-v5', image_size=(64, 64), max_steps=1200
  ),
  data=c.DataConfig(sources=(c.SourceConfig(path='runs/pong-random'),)),
  eval=c.EvalConfig(episodes=8),
)

record = functools.partial(
  record_env, policy='random', episodes=40, test_episodes=6
)
pretokenise = pretokenise_run
