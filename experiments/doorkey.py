"""MiniGrid DoorKey 6x6 from pixels, small enough for two CPU cores."""

from dreamer4_jax.config import ActionComponent
from dreamer4_jax.config import AgentConfig
from dreamer4_jax.config import Config
from dreamer4_jax.config import DataConfig
from dreamer4_jax.config import DynamicsConfig
from dreamer4_jax.config import DynamicsPhase
from dreamer4_jax.config import EnvConfig
from dreamer4_jax.config import FinetunePhase
from dreamer4_jax.config import ImaginationPhase
from dreamer4_jax.config import OptimizerConfig
from dreamer4_jax.config import Phases
from dreamer4_jax.config import TokenizerConfig
from dreamer4_jax.config import TokenizerPhase

config = Config(
  name='doorkey',
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
    num_heads=4,
    num_kv_heads=4,
    context_length=8,
  ),
  dynamics=DynamicsConfig(
    width=128,
    depth=8,
    mlp_hidden=384,
    num_heads=4,
    num_kv_heads=2,
    num_spatial_tokens=8,
    context_length=16,
  ),
  agent=AgentConfig(num_tasks=3),
  phases=Phases(
    tokenizer=TokenizerPhase(
      steps=600,
      batch_size=32,
      clip_length=4,
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
  data=DataConfig(path='runs/doorkey/data'),
)
