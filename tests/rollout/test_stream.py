"""Frames of play against rollouts, and the decoder's stream against a clip."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.models import World, dynamics_cache
from dreamer4_jax.rollout import (
  FrameInput,
  append_frame,
  denoise_frame,
  empty_stream,
  init_stream,
  next_frame,
  prepare_context,
)
from tests.models.tiny_world import (
  CONFIG,
  make_batch,
  random_actions,
  world_and_params,
)

WORLD, PARAMS = world_and_params()
FRAMES, STEPS = 6, 2  # More frames than the ring holds.


@functools.cache
def player(world=WORLD):
  """The program that plays a frame: `(params, stream, action, key)`."""
  return jax.jit(functools.partial(next_frame, world, steps=STEPS))


@jax.jit
def tokens(cache, action, key):
  """Draws the tokens of a frame; returns them, and the cache with them."""
  start, noise = jax.random.split(key)
  inputs = FrameInput(
    prev_action=jax.tree.map(lambda a: a[:, None], action),
    # Training never shows an action that leads to a first frame.
    prev_action_mask=jnp.full((2, 1), cache.frame > 0),
    agent=None,
  )
  shape = (2, 1, 2, 8)
  z = denoise_frame(
    WORLD, PARAMS, cache, inputs, jax.random.normal(start, shape), steps=STEPS
  )
  noise = jax.random.normal(noise, shape)
  return z, append_frame(WORLD, PARAMS, cache, inputs, z, noise)[1]


def test_played_frames_are_the_decoded_rollout():
  rng = np.random.default_rng(0)
  actions = [random_actions(rng, (2,)) for _ in range(FRAMES)]
  keys = jax.random.split(jax.random.key(3), FRAMES)
  play = player()
  stream, shown = empty_stream(WORLD, 2), []
  for action, key in zip(actions, keys, strict=True):
    image, stream = play(PARAMS, stream, action, key)
    shown.append(image)
  assert play._cache_size() == 1
  assert shown[0].shape == (2, 20, 12, 3) and shown[0].dtype == jnp.uint8

  cache, z = dynamics_cache(WORLD.dynamics, 2, agent=False), []
  for action, key in zip(actions, keys, strict=True):
    own, cache = tokens(cache, action, key)
    z.append(own)
  images, _ = jax.jit(lambda z: WORLD.decode(PARAMS, z))(
    jnp.concatenate(z, axis=1)
  )
  expected = np.clip(np.asarray(images), 0, 1) * 255
  # Half a level of rounding, and float32.
  np.testing.assert_allclose(np.stack(shown, axis=1), expected, atol=0.51)
  assert np.ptp(expected) > 50


def test_play_goes_on_where_real_frames_end():
  past = FRAMES
  # The second clip begins an episode shortly before its end. Clean context:
  # noise is drawn for the whole clip at once, here and there.
  clips = jax.tree.map(jnp.asarray, make_batch(2, past, starts=[(1, past - 1)]))
  key = jax.random.key(5)
  rng = np.random.default_rng(0)
  actions = [random_actions(rng, (2,)) for _ in range(2)]

  begin = jax.jit(lambda clips: init_stream(WORLD, PARAMS, clips, key))

  def play(clips):
    stream, shown = begin(clips), []
    for t, action in enumerate(actions):
      image, stream = player()(PARAMS, stream, action, jax.random.key(t))
      shown.append(image)
    return np.stack(shown, axis=1), stream

  # The same frames: caches filled frame by frame, and decoded in one go.
  context = jax.jit(
    lambda clips: prepare_context(WORLD, PARAMS, clips, key, with_agent=False)
  )(clips)
  cache, z = context.cache, [context.z]
  for t, action in enumerate(actions):
    new, cache = tokens(cache, action, jax.random.key(t))
    z.append(new)
  ids = clips.segment_ids
  ids = jnp.concatenate([ids, jnp.repeat(ids[:, -1:], 2, axis=1)], axis=1)
  decode = jax.jit(lambda z: WORLD.decode(PARAMS, z, segment_ids=ids)[0])
  images = decode(jnp.concatenate(z, axis=1))[:, past:]
  expected = np.clip(np.asarray(images), 0, 1) * 255

  shown, stream = play(clips)
  np.testing.assert_allclose(shown, expected, atol=0.51)
  # The last frame waits for the next action.
  assert stream.dynamics.frame + 1 == past + 2 == stream.decoder.frame
  # Real frames and real actions both matter for what comes.
  other = clips.replace(frames=255 - clips.frames)
  assert np.any(play(other)[0] != shown)
  other = {k: jnp.zeros_like(v) for k, v in clips.prev_action.items()}
  moved = play(clips.replace(prev_action=other))[0]
  assert np.any(moved[0] != shown[0])


def test_the_first_action_of_a_game_without_a_past_has_no_effect():
  rng = np.random.default_rng(0)
  action = random_actions(rng, (2,))
  other = {**action, 'move': (action['move'] + 1) % 3}
  stream, key = empty_stream(WORLD, 2), jax.random.key(0)
  a, b = (player()(PARAMS, stream, x, key)[0] for x in (action, other))
  np.testing.assert_array_equal(a, b)


def test_the_action_matters():
  rng = np.random.default_rng(0)
  action = random_actions(rng, (2,))
  other = {**action, 'move': (action['move'] + 1) % 3}
  _, stream = player()(
    PARAMS, empty_stream(WORLD, 2), action, jax.random.key(1)
  )
  key = jax.random.key(0)
  a, b = (player()(PARAMS, stream, x, key)[0] for x in (action, other))
  assert np.any(a != b)


def test_weights_may_be_laid_out_beforehand():
  world = World.from_config(CONFIG.edit({'compute.dtype': 'bfloat16'}))
  cast = world.for_inference(PARAMS)
  halved = {
    (path[0].key, path[-1].key): x.dtype
    for path, x in jax.tree_util.tree_leaves_with_path(cast)
  }
  for (module, name), dtype in halved.items():
    small = module in ('tokenizer', 'dynamics') and name in ('kernel', 'table')
    assert dtype == (jnp.bfloat16 if small else jnp.float32)
  stream = empty_stream(world, 2)
  action = random_actions(np.random.default_rng(0), (2,))
  play = lambda params: player(world)(params, stream, action, jax.random.key(0))
  jax.tree.map(np.testing.assert_array_equal, play(PARAMS), play(cast))


def frames_of(world, params, count=3):
  """Plays; returns the pictures, and the stream after."""
  rng = np.random.default_rng(0)
  stream, shown = empty_stream(world, 2), []
  for key in jax.random.split(jax.random.key(1), count):
    action = random_actions(rng, (2,))
    image, stream = player(world)(params, stream, action, key)
    shown.append(np.asarray(image, np.int32))
  return np.stack(shown), stream


def test_weights_that_a_gpu_joins_draw_the_same_frames():
  # Of float32, whose attention is left to XLA.
  world = World.from_config(CONFIG, platform='gpu')
  joined = world.for_inference(PARAMS)
  names = str(jax.tree.structure(joined['dynamics']))
  assert 'query_key_value' in names and 'gate_up' in names
  got, expected = frames_of(world, joined)[0], frames_of(WORLD, PARAMS)[0]
  assert np.abs(got - expected).max() <= 1 and np.ptp(expected) > 50


def test_a_model_without_a_past_plays():
  changes = {'dynamics.context_length': 1, 'tokenizer.context_length': 1}
  world = World.from_config(CONFIG.edit(changes))
  shown, stream = frames_of(world, PARAMS)
  # The frame before is appended, though no other sees it.
  assert stream.dynamics.frame == 3 and not stream.dynamics.visible().any()
  again = stream.replace(
    pending=stream.pending.replace(noisy=stream.pending.noisy + 1)
  )
  action = random_actions(np.random.default_rng(3), (2,))
  key = jax.random.key(2)
  a, b = (player(world)(PARAMS, s, action, key)[0] for s in (stream, again))
  np.testing.assert_array_equal(a, b)
  assert np.ptp(shown) > 50
