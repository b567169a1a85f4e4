"""Times a frame of interactive play beside the passes that it consists of.

python -m benchmarks.interactive --preset base --steps 4
python -m benchmarks.interactive --play 10000

Prints one JSON object. `frame` is the whole frame as a player gets it: K
passes, the first of which also appends the frame before, and the picture.
`dynamics_frame` leaves out the picture, `passes` are K passes that append
nothing, `picture` is the tokenizer's decoder alone, `late_frame` is a frame
after 10,000.
With `--play N`, N frames are played in a row, and the first and the last of
them compared.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import harness, worlds
from dreamer4_jax.config import require
from dreamer4_jax.models import World, no_action
from dreamer4_jax.nn import TimeCache, append
from dreamer4_jax.rollout import (
  FrameInput,
  Pending,
  Stream,
  append_and_denoise,
  compiler_options,
  context_noise,
  denoise_frame,
  empty_stream,
  next_frame,
)
from dreamer4_jax.types import Array, PyTree

MODULES = ('tokenizer', 'dynamics')
LATE = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interactive(harness.Settings):
  """What to measure."""

  batch: int = 1
  """Games side by side."""
  steps: int = 4
  """Denoising steps of a frame, K."""
  play: int = 0
  """Frames to play in a row, 0 or at least 200."""

  def __post_init__(self):
    super().__post_init__()
    require(self.batch >= 1, 'batch', self.batch, 'must be at least 1')
    require(
      self.play == 0 or self.play >= 200, 'play', self.play,
      'must be 0 or at least 200',
    )  # fmt: skip


def make_cases(settings: Interactive) -> dict[str, harness.Case]:
  """Compiles the frame and its parts."""
  s = settings
  world, params = _make(s)
  action = no_action(world.space, (s.batch,))
  inputs = FrameInput(
    prev_action=jax.tree.map(lambda a: a[:, None], action),
    prev_action_mask=jnp.ones((s.batch, 1), bool),
    agent=None,
  )
  shape = (s.batch, 1, world.config.dynamics.num_spatial_tokens, world.channels)
  key = jax.random.key(0)

  def frame(
    stream: Stream, number: Array, params: PyTree
  ) -> tuple[Array, Stream]:
    now = jax.random.fold_in(key, number)
    return next_frame(world, params, stream, action, now, steps=s.steps)

  def dynamics_frame(
    past: tuple[TimeCache, Pending], number: Array, params: PyTree
  ) -> tuple[Array, tuple[TimeCache, Pending]]:
    cache, pending = past
    start, noise = jax.random.split(jax.random.fold_in(key, number))
    start = jax.random.normal(start, shape)
    z, cache = append_and_denoise(
      world, params, cache, pending, inputs, start, steps=s.steps
    )
    noisy = context_noise(world, z, jax.random.normal(noise, shape))
    return z, (cache, pending.replace(noisy=noisy, segment=cache.segment))

  def picture(
    cache: TimeCache, number: Array, params: PyTree
  ) -> tuple[Array, TimeCache]:
    z = jnp.full(shape, number, jnp.float32)
    images, new = world.decode(params, z, cache=cache)
    return images, append(cache, new)

  def passes(params: PyTree, cache: TimeCache, start: Array) -> Array:
    return denoise_frame(world, params, cache, inputs, start, steps=s.steps)

  stream = empty_stream(world, s.batch)
  late = stream.replace(
    dynamics=_grow_old(stream.dynamics), decoder=_grow_old(stream.decoder)
  )
  start = jax.random.normal(key, shape)
  fields = {
    'frames': s.batch,
    'dtype': world.config.compute.dtype,
    'options': compiler_options(),
  }
  case = lambda fn, past: harness.stepping_case(fn, past, params, **fields)
  return {
    'frame': case(frame, stream),
    'late_frame': case(frame, late),
    'dynamics_frame': case(dynamics_frame, (stream.dynamics, stream.pending)),
    'picture': case(picture, stream.decoder),
    'passes': harness.case_of(
      passes, params, _grow_old(stream.dynamics), start, **fields
    ),
  }


def _grow_old(cache: TimeCache) -> TimeCache:
  """Returns a cache as it is after many frames."""
  return cache.replace(
    slot_segments=jnp.zeros_like(cache.slot_segments),
    slot=jnp.int32(LATE % cache.length),
    frame=jnp.uint32(LATE),
  )


def _make(settings: Interactive) -> tuple[World, PyTree]:
  """Returns modules, and parameters as a player would hold them."""
  s = settings
  world = worlds.make_world(s.preset, attention=s.attention)
  return world, jax.jit(world.for_inference)(worlds.init_params(world, MODULES))


def play(settings: Interactive) -> dict[str, float]:
  """Plays frames in a row; returns seconds of the first and last hundred."""
  s = settings
  world, params = _make(s)
  action = no_action(world.space, (s.batch,))

  def frame(params, stream, number):
    key = jax.random.fold_in(jax.random.key(0), number)
    return next_frame(world, params, stream, action, key, steps=s.steps)

  jitted = jax.jit(frame, donate_argnums=1, compiler_options=compiler_options())
  stream = jax.tree.map(jnp.copy, empty_stream(world, s.batch))
  seconds = []
  for number in range(s.play + 1):
    begin = time.perf_counter()
    image, stream = jitted(params, stream, jnp.uint32(number))
    image.block_until_ready()
    seconds.append(time.perf_counter() - begin)
  seconds = seconds[1:]  # The first compiles.
  assert jitted._cache_size() == 1
  first = statistics.median(seconds[10:110])
  last = statistics.median(seconds[-100:])
  median = statistics.median(seconds)
  return {
    'frames': s.play,
    'median': median,
    'frames_per_second': s.batch / median,
    'first_hundred': first,
    'last_hundred': last,
    'growth': last / first,
  }


def summarise(
  settings: Interactive, seconds: dict[str, float]
) -> dict[str, Any]:
  """Compares a frame with its parts, and a late one with an early one."""
  s = settings
  # Of as much arithmetic: the first pass of a frame takes two.
  fair = seconds['passes'] * (s.steps + 1) / s.steps
  parts = fair + seconds['picture']
  found: dict[str, Any] = {
    'frame_over_its_passes': seconds['frame'] / fair,
    'frame_over_its_passes_and_picture': seconds['frame'] / parts,
    'dynamics_frame_over_its_passes': seconds['dynamics_frame'] / fair,
    'late_over_early': seconds['late_frame'] / seconds['frame'],
  }
  if s.play:
    found['play'] = play(s)
  return found


if __name__ == '__main__':
  harness.main(Interactive, make_cases, summarise)
