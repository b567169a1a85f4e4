"""MiniGrid DoorKey 6x6 from pixels, small enough for two CPU cores."""

from data_pipelines.collect import CollectConfig
from dreamer4_jax.config import (
  ActionComponent,
  AgentConfig,
  Config,
  DataConfig,
  DynamicsConfig,
  DynamicsPhase,
  EnvConfig,
  FinetunePhase,
  ImaginationPhase,
  OptimizerConfig,
  Phases,
  TokenizerConfig,
  TokenizerPhase,
)

config = Config(
  name='quickstart',
  actions=(ActionComponent(name='action', kind='categorical', size=7),),
  tasks=('key', 'door', 'goal'),
  tokenizer=TokenizerConfig(
    image_height=48,
    image_width=48,
    patch_size=16,
    num_latents=8,
    bottleneck_dim=16,
    width=128,
    mlp_hidden=384,
    num_heads=2,
    num_kv_heads=2,
    context_length=8,
  ),
  dynamics=DynamicsConfig(
    width=128,
    depth=8,
    mlp_hidden=384,
    num_heads=2,
    num_kv_heads=1,
    num_spatial_tokens=4,
    num_registers=1,
    context_length=16,
  ),
  agent=AgentConfig(num_tasks=3),
  phases=Phases(
    tokenizer=TokenizerPhase(
      steps=600,
      batch_size=32,
      clip_length=4,
      max_mask_ratio=0.5,
      optimizer=OptimizerConfig(name='muon', learning_rate=3e-3),
    ),
    dynamics=DynamicsPhase(
      steps=800,
      batch_size=16,
      clip_length=16,
      bootstrap_start=200,
      optimizer=OptimizerConfig(name='muon', learning_rate=3e-3),
    ),
    finetune=FinetunePhase(
      steps=300,
      batch_size=16,
      clip_length=16,
      optimizer=OptimizerConfig(name='muon', learning_rate=1e-3),
    ),
    imagination=ImaginationPhase(
      steps=100,
      batch_size=32,
      clip_length=8,
      horizon=12,
      gamma=0.95,
      optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=10),
    ),
  ),
  env=EnvConfig(name='navix:Navix-DoorKey-Random-6x6-v0', max_steps=60),
  data=DataConfig(path='runs/doorkey-6x6'),
)

recipe = CollectConfig(
  out=config.data.path,
  env=config.env.name,
  episodes=4000,
  test_episodes=200,
  noise=(0.5, 0.7, 0.9, 1.0),
  max_steps=config.env.max_steps,
  tile=config.env.tile,
  seed=0,
)
