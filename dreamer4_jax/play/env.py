"""Dreams as Gymnasium environments, one by one and many at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import functools
import pathlib
from typing import Any, Literal

import jax
import numpy as np

from dreamer4_jax.config import ActionComponent, require
from dreamer4_jax.play.convert import to_actions
from dreamer4_jax.play.dream import Dream, DreamState, DreamStep
from dreamer4_jax.play.loading import LoadedDream, load_dream
from dreamer4_jax.rollout import compiler_options

try:
  import gymnasium
  from gymnasium.utils import seeding
except ModuleNotFoundError as error:
  raise ImportError(
    'DreamEnv needs the package gymnasium, which is not installed: run `pip '
    "install 'dreamer4_jax[gymnasium]'`; dreamer4_jax.play.Dream does without"
  ) from error

_SEEDS = 1 << 32
Observed = Literal['frames', 'latents']


class _Dreams:
  """B dreams, each with randomness of its own."""

  def __init__(
    self,
    run: str | pathlib.Path | LoadedDream,
    rows: int,
    observation: Observed,
    render_mode: str | None,
    settings: Mapping[str, Any],
  ):
    require(
      observation in ('frames', 'latents'),
      'observation',
      observation,
      "must be 'frames' or 'latents'",
    )
    require(
      render_mode in (None, 'rgb_array'),
      'render_mode',
      render_mode,
      "must be None or 'rgb_array'",
    )
    frames = observation == 'frames' or render_mode is not None
    if not isinstance(run, LoadedDream):
      run = load_dream(run, frames=frames, **settings)
    else:
      require(
        not settings,
        'settings',
        sorted(settings),
        'are those of the dream, which is loaded already; give them there',
      )
    require(
      run.dream.frames or not frames,
      'Dream.frames',
      False,
      'frames are observed or rendered; load it with frames=True, or take '
      "observation='latents' without render_mode",
    )
    self.dream, self._params, self._contexts = run
    self._programs = _programs(self.dream)
    self._observation, self._rows = observation, rows
    self._now: tuple[DreamState, DreamStep] | None = None
    self._streams = np.zeros((2, rows), np.uint32)  # Seed, and frame.

  def spaces(self) -> tuple[gymnasium.Space, gymnasium.Space]:
    """Spaces of a single observation and action."""
    config, spaces = self.dream.world.config, gymnasium.spaces
    if self._observation == 'frames':
      seen = spaces.Box(0, 255, config.tokenizer.frame_shape, np.uint8)
    else:
      world = self.dream.world
      shape = (config.dynamics.num_spatial_tokens, world.channels)
      seen = spaces.Box(-np.inf, np.inf, shape, np.float32)
    parts = {part.name: _action_space(part) for part in self.dream.world.space}
    if len(parts) == 1:
      return seen, next(iter(parts.values()))
    return seen, spaces.Dict(parts)

  def begin(
    self, which: np.ndarray, generators: Sequence[np.random.Generator]
  ) -> DreamStep:
    """Begins the dreams at `which [B]` anew; returns what all show."""
    index = np.zeros(self._rows, np.int64)
    for row in np.flatnonzero(which):
      index[row] = generators[row].integers(len(self._contexts.cont))
      self._streams[:, row] = generators[row].integers(_SEEDS), 0
    begin, again, _ = self._programs
    given = self._params, self._contexts, index, *self._streams
    if self._now is None or which.all():
      self._now = begin(*given)
    else:
      self._now = again(*self._now, which, *given)
    return self._now[1]

  def step(self, action: Any) -> DreamStep:
    """Acts in all dreams; returns what they show."""
    if self._now is None:
      raise gymnasium.error.ResetNeeded('step: call reset() first')
    space = self.dream.world.space
    if len(space) == 1:
      action = {space[0].name: action}
    actions = to_actions(action, space, (self._rows,), 'action')
    self._streams[1] += 1
    state, shown = self._programs[2](
      self._params, self._now[0], actions, *self._streams
    )
    self._now = state, shown
    return shown

  def observe(self, shown: DreamStep) -> np.ndarray:
    """Observations of all dreams, a copy."""
    frames = self._observation == 'frames'
    return np.array(shown.frame if frames else shown.latents)

  def pictures(self) -> np.ndarray:
    """Frames `[B, H, W, C]` as they are now."""
    if self._now is None:
      raise gymnasium.error.ResetNeeded('render: call reset() first')
    return np.array(self._now[1].frame)

  def info(self, shown: DreamStep) -> dict[str, np.ndarray]:
    """What else is known, `[B]` by name."""
    if not self.dream.heads:
      return {}
    found = {'cont': np.array(shown.cont, np.float64)}
    task = np.array(self._now[0].task)
    if task.ndim == 1:
      found['task'] = task.astype(np.int64)
    return found


@functools.cache
def _programs(dream: Dream):
  """Returns compiled `begin`, `again` and `step`, shared by environments."""

  def keys(seeds, count):
    make = lambda seed, n: jax.random.fold_in(jax.random.key(seed), n)
    return jax.vmap(make)(seeds, count)

  def begin(params, contexts, index, seeds, count):
    own = jax.tree.map(lambda x: x[index], contexts)
    return dream.reset(params, own, keys(seeds, count))

  def again(state, shown, which, params, contexts, index, seeds, count):
    own = jax.tree.map(lambda x: x[index], contexts)
    key = keys(seeds, count)
    return dream.restart(params, (state, shown), which, own, key)

  def step(params, state, action, seeds, count):
    return dream.step(params, state, action, keys(seeds, count))

  options = compiler_options()
  return (
    jax.jit(begin, compiler_options=options),
    jax.jit(again, compiler_options=options, donate_argnums=0),
    jax.jit(step, compiler_options=options, donate_argnums=1),
  )


def _action_space(part: ActionComponent) -> gymnasium.Space:
  spaces = gymnasium.spaces
  if part.kind == 'categorical':
    return spaces.Discrete(part.size)
  if part.kind == 'binary':
    return spaces.MultiBinary(part.size)
  return spaces.Box(part.low, part.high, (part.size,), np.float32)


class DreamEnv(gymnasium.Env):
  """One dream. Actions are those of the dataset, observations what is dreamed.

  A categorical component is `Discrete`, a binary one `MultiBinary`, a
  continuous one a `Box` with its bounds; several are a `Dict`. `info` has
  `cont`, the predicted probability that the episode goes on, and the id of the
  `task` held. It ends as `Dream.termination` says, or is truncated at its
  horizon.
  """

  metadata = {'render_modes': ['rgb_array'], 'render_fps': 10}  # noqa: RUF012

  def __init__(
    self,
    run: str | pathlib.Path | LoadedDream,
    *,
    observation: Observed = 'frames',
    render_mode: str | None = None,
    **settings: Any,
  ):
    """Loads a run.

    Args:
      run: run directory; or what `load_dream` has returned, which several
        environments can share.
      observation: `frames`, decoded, `[H, W, C]` uint8; or `latents`, the
        dynamics' own standardised tokens, `[N_z, C]` float32, which cost no
        decoding.
      render_mode: `rgb_array` for frames from `render`.
      **settings: as of `load_dream`, such as `task='goal'` and `horizon=64`.

    Raises:
      FileNotFoundError: see `load_dream`, also for the others.
      ValueError: something does not fit; the message names it.
    """
    self._dreams = _Dreams(run, 1, observation, render_mode, settings)
    self.observation_space, self.action_space = self._dreams.spaces()
    self.render_mode = render_mode

  @property
  def dream(self) -> Dream:
    """How it dreams."""
    return self._dreams.dream

  def reset(
    self,
    *,
    seed: int | None = None,
    options: dict[str, Any] | None = None,
  ) -> tuple[np.ndarray, dict[str, Any]]:
    """Begins where a real clip ends, drawn by the seed; options do nothing."""
    super().reset(seed=seed)
    shown = self._dreams.begin(np.ones(1, bool), [self.np_random])
    return self._dreams.observe(shown)[0], self._info(shown)

  def step(
    self, action: Any
  ) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
    """Dreams the frame that an action leads to.

    Raises:
      ValueError: the action is not in the space.
      gymnasium.error.ResetNeeded: `reset` was never called.
    """
    parts = isinstance(self.action_space, gymnasium.spaces.Dict)
    add = lambda x: np.asarray(x)[None]
    action = {k: add(v) for k, v in action.items()} if parts else add(action)
    shown = self._dreams.step(action)
    return (
      self._dreams.observe(shown)[0],
      float(shown.reward[0]),
      bool(shown.terminal[0]),
      bool(shown.timeout[0]),
      self._info(shown),
    )

  def render(self) -> np.ndarray | None:
    """Returns the frame shown last, `[H, W, C]` uint8."""
    return None if self.render_mode is None else self._dreams.pictures()[0]

  def _info(self, shown: DreamStep) -> dict[str, Any]:
    return {k: v[0].item() for k, v in self._dreams.info(shown).items()}


class DreamVectorEnv(gymnasium.vector.VectorEnv):
  """B dreams in one batch, each as `DreamEnv` would dream it.

  A dream that has ended begins anew with the next step, whose action it
  ignores, as in Gymnasium's `AutoresetMode.NEXT_STEP`.
  """

  metadata = {  # noqa: RUF012
    'render_modes': ['rgb_array'],
    'render_fps': 10,
    'autoreset_mode': gymnasium.vector.AutoresetMode.NEXT_STEP,
  }

  def __init__(
    self,
    run: str | pathlib.Path | LoadedDream,
    num_envs: int,
    *,
    observation: Observed = 'frames',
    render_mode: str | None = None,
    **settings: Any,
  ):
    """Loads a run.

    Args:
      run: as of `DreamEnv`, also for the rest.
      num_envs: B.
      observation: what is observed.
      render_mode: `rgb_array` for frames from `render`.
      **settings: as of `load_dream`.
    """
    require(num_envs >= 1, 'num_envs', num_envs, 'must be at least 1')
    self._dreams = _Dreams(run, num_envs, observation, render_mode, settings)
    self.num_envs, self.render_mode = num_envs, render_mode
    seen, action = self._dreams.spaces()
    self.single_observation_space, self.single_action_space = seen, action
    batch = gymnasium.vector.utils.batch_space
    self.observation_space = batch(seen, num_envs)
    self.action_space = batch(action, num_envs)
    self._over = np.zeros(num_envs, bool)
    self._generators = [seeding.np_random()[0] for _ in range(num_envs)]

  @property
  def dream(self) -> Dream:
    """How they dream."""
    return self._dreams.dream

  def reset(
    self,
    *,
    seed: int | Sequence[int | None] | None = None,
    options: dict[str, Any] | None = None,
  ) -> tuple[np.ndarray, dict[str, Any]]:
    """Begins all dreams anew; options do nothing.

    Args:
      seed: of the first dream, the next has `seed + 1` and so on; or one for
        each.
      options: unused.
    """
    if seed is None or isinstance(seed, (int, np.integer)):
      super().reset(seed=None if seed is None else int(seed))
      count = range(self.num_envs)
      seed = [None if seed is None else int(seed) + i for i in count]
    require(
      len(seed) == self.num_envs,
      'seed',
      seed,
      f'must be one number, or one for each of {self.num_envs} dreams',
    )
    for i, own in enumerate(seed):
      if own is not None:
        self._generators[i] = seeding.np_random(own)[0]
    self._over[:] = False
    shown = self._dreams.begin(np.ones(self.num_envs, bool), self._generators)
    return self._dreams.observe(shown), self._info(shown)

  def step(
    self, actions: Any
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """Dreams the frames that actions lead to; raises as `DreamEnv.step`."""
    shown, fresh = self._dreams.step(actions), self._over
    if fresh.any():
      shown = self._dreams.begin(fresh, self._generators)
    terminal, timeout = np.array(shown.terminal), np.array(shown.timeout)
    self._over = terminal | timeout
    return (
      self._dreams.observe(shown),
      np.array(shown.reward, np.float64),
      terminal,
      timeout,
      self._info(shown),
    )

  def render(self) -> tuple[np.ndarray, ...] | None:
    """Returns the frames shown last, B of `[H, W, C]` uint8."""
    return None if self.render_mode is None else tuple(self._dreams.pictures())

  def _info(self, shown: DreamStep) -> dict[str, Any]:
    found = self._dreams.info(shown)
    everywhere = {f'_{k}': np.ones(self.num_envs, bool) for k in found}
    return found | everywhere
