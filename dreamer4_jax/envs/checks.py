"""Whether an environment is the one that a run was configured for."""

from __future__ import annotations

from dreamer4_jax.config import Config, require
from dreamer4_jax.envs import Environment, make_env


def check_environment(config: Config) -> Environment:
  """Returns the environment, which must be that of the config.

  It may have more tasks than the run.

  Raises:
    ValueError: it is unknown, has other frames, actions or tasks, or does not
      show the vectors.
    ImportError: its engine is not installed.
  """
  env = make_env(config.env)
  spec, name = env.spec, config.env.name
  for field, value, found in (
    (
      'tokenizer.frame_shape',
      config.tokenizer.frame_shape,
      spec.frame_shape,
    ),
    ('actions', config.actions, spec.actions),
  ):
    require(
      tuple(value) == tuple(found),
      field,
      value,
      f'env.name = {name!r} has {found}; change one of the two',
    )
  unknown = [task for task in config.tasks if task not in spec.tasks]
  require(
    not unknown,
    'tasks',
    unknown,
    f'env.name = {name!r} has {spec.tasks}; change one of the two',
  )
  shown = {v.name: v.size for v in spec.vectors}
  require(
    all(shown.get(v.name) == v.size for v in config.vectors),
    'vectors',
    {v.name: v.size for v in config.vectors},
    f'env.name = {name!r} shows {shown or "none"}; change one of the two',
  )
  return env


def needed_environment(config: Config) -> Environment:
  """Does what `check_environment` does; a missing engine is a `ValueError`."""
  try:
    return check_environment(config)
  except ImportError as error:
    raise ValueError(str(error)) from error
