"""Training: one pure step function per phase, and the loop they share."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
  from dreamer4_jax.training.clips import training_loader
  from dreamer4_jax.training.dynamics_step import (
    dynamics_loss,
    init_dynamics_state,
    make_dynamics_step,
  )
  from dreamer4_jax.training.finetune_step import (
    finetune_loss,
    init_finetune_state,
    make_finetune_step,
  )
  from dreamer4_jax.training.imagination_step import (
    dream_weights,
    imagination_loss,
    init_imagination_state,
    make_imagination_step,
  )
  from dreamer4_jax.training.phases import init_state, train_step
  from dreamer4_jax.training.run import train
  from dreamer4_jax.training.tokenizer_step import (
    init_tokenizer_state,
    latent_statistics,
    make_tokenizer_step,
    tokenizer_loss,
  )
  from dreamer4_jax.training.update import total

__all__ = [
  'dream_weights',
  'dynamics_loss',
  'finetune_loss',
  'imagination_loss',
  'init_dynamics_state',
  'init_finetune_state',
  'init_imagination_state',
  'init_state',
  'init_tokenizer_state',
  'latent_statistics',
  'make_dynamics_step',
  'make_finetune_step',
  'make_imagination_step',
  'make_tokenizer_step',
  'tokenizer_loss',
  'total',
  'train',
  'train_step',
  'training_loader',
]
