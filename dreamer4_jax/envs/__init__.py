"""Environments: the protocol, and adapters to the engines behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import io

from dreamer4_jax.config import EnvConfig, require
from dreamer4_jax.envs.protocol import Environment, EnvSpec
from dreamer4_jax.envs.tiles import Palette, Tiles

__all__ = ['EnvSpec', 'Environment', 'Palette', 'Tiles', 'make_env']


@contextlib.contextmanager
def _extra(extra: str, config: EnvConfig, *packages: str) -> Iterator[None]:
  """Names the extra to install if one of its packages is missing."""
  try:
    yield
  except ModuleNotFoundError as error:
    missing = (error.name or '').split('.')[0]
    if missing not in packages:
      raise
    raise ImportError(
      f'EnvConfig.name = {config.name!r} needs the package {missing}, which is '
      f"not installed: run `pip install 'dreamer4_jax[{extra}]'`"
    ) from error


def _navix(level: str, config: EnvConfig) -> Environment:
  with _extra('navix', config, 'navix'):
    from dreamer4_jax.envs import navix_env
  return navix_env.NavixDoorKey(level, config)


def _craftax(level: str, config: EnvConfig) -> Environment:
  require(
    config.image_size is None,
    'EnvConfig.image_size',
    config.image_size,
    'craftax draws frames of a size of its own; leave it out',
  )
  # It prints about its textures, in the middle of a program's own output.
  with contextlib.redirect_stdout(io.StringIO()):
    with _extra('craftax', config, 'craftax'):
      from dreamer4_jax.envs import craftax_env
    return craftax_env.Craftax(level, config)


def _gymnasium(level: str, config: EnvConfig) -> Environment:
  with _extra('gymnasium', config, 'gymnasium', 'ale_py'):
    from dreamer4_jax.envs import gymnasium_env

    return gymnasium_env.make(level, config)


def _dm_control(level: str, config: EnvConfig) -> Environment:
  with _extra('dm_control', config, 'dm_control', 'mujoco'):
    from dreamer4_jax.envs import dm_control_env
  return dm_control_env.make(level, config)


_ADAPTERS: dict[str, Callable[[str, EnvConfig], Environment]] = {
  'navix': _navix,
  'craftax': _craftax,
  'gymnasium': _gymnasium,
  'dm_control': _dm_control,
}


def make_env(config: EnvConfig) -> Environment:
  """Makes the environment that `config.name` names.

  Args:
    config: its name is 'adapter:level', for example
      'navix:Navix-DoorKey-Random-6x6-v0', 'craftax:Craftax-Classic-Pixels-v1',
      'gymnasium:ALE/Pong-v5' or 'dm_control:cartpole-swingup'.

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
