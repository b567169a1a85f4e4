"""Training: one pure step function a phase, and the loop they share."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
  from dreamer4_jax.training.clips import training_loader
  from dreamer4_jax.training.dynamics_step import (
    init_dynamics_state,
    make_dynamics_step,
  )
  from dreamer4_jax.training.finetune_step import (
    init_finetune_state,
    make_finetune_step,
  )
  from dreamer4_jax.training.imagination_step import (
    init_imagination_state,
    make_imagination_step,
  )
  from dreamer4_jax.training.run import train
  from dreamer4_jax.training.tokenizer_step import (
    init_tokenizer_state,
    latent_statistics,
    make_tokenizer_step,
  )

__all__ = [
  'init_dynamics_state',
  'init_finetune_state',
  'init_imagination_state',
  'init_tokenizer_state',
  'latent_statistics',
  'make_dynamics_step',
  'make_finetune_step',
  'make_imagination_step',
  'make_tokenizer_step',
  'train',
  'training_loader',
]
