"""A trained run to act in, or to act with: dreams, and the agent.

`Dream` is pure; `serve` has the page on which people play in one. `DreamEnv`
and `DreamVectorEnv` are Gymnasium environments around it, and need the extra
gymnasium.
"""

from etils import epy as _epy

from dreamer4_jax.play.agent import Agent
from dreamer4_jax.play.dream import Dream, DreamState, DreamStep
from dreamer4_jax.play.loading import (
  LoadedDream,
  Starts,
  load_dream,
  read_contexts,
)

with _epy.lazy_api_imports(globals()):
  from dreamer4_jax.play import serve

  # They import Gymnasium.
  from dreamer4_jax.play.env import DreamEnv, DreamVectorEnv

__all__ = [
  'Agent',
  'Dream',
  'DreamEnv',
  'DreamState',
  'DreamStep',
  'DreamVectorEnv',
  'LoadedDream',
  'Starts',
  'load_dream',
  'read_contexts',
  'serve',
]
