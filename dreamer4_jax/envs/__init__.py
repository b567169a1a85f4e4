"""Environments: the protocol, and adapters to the engines behind it."""

from __future__ import annotations

from collections.abc import Callable

from dreamer4_jax.config import EnvConfig
from dreamer4_jax.envs.protocol import Environment, EnvSpec

__all__ = ['EnvSpec', 'Environment', 'make_env']


def _navix(level: str, config: EnvConfig) -> Environment:
  try:
    from dreamer4_jax.envs import navix_env
  except ModuleNotFoundError as error:
    if (error.name or '').split('.')[0] != 'navix':
      raise
    raise ImportError(
      f'EnvConfig.name = {config.name!r} needs the package navix, which is '
      "not installed: run `pip install 'dreamer4_jax[navix]'`"
    ) from error
  return navix_env.NavixDoorKey(level, config)


_ADAPTERS: dict[str, Callable[[str, EnvConfig], Environment]] = {
  'navix': _navix
}


def make_env(config: EnvConfig) -> Environment:
  """Makes the environment that `config.name` names.

  Args:
    config: its name is 'adapter:level', for example
      'navix:Navix-DoorKey-Random-6x6-v0'.

  Returns:
    An environment that follows `Environment`.

  Raises:
    ValueError: the adapter or the level is unknown; the message lists those
      that are known.
    ImportError: the adapter's engine is not installed; the message names the
      extra to install.
  """
  adapter, separator, level = config.name.partition(':')
  if not separator or adapter not in _ADAPTERS:
    raise ValueError(
      f'EnvConfig.name = {config.name!r}: must be adapter:level with an '
      f'adapter among {sorted(_ADAPTERS)}, for example '
      "'navix:Navix-DoorKey-Random-6x6-v0'"
    )
  return _ADAPTERS[adapter](level, config)
