import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

from dreamer4_jax.evals import video
from dreamer4_jax.rollout import Replay
from tests.models import vector_world
from tests.models.tiny_world import make_batch, world_and_params


def test_psnr_by_hand():
  np.testing.assert_allclose(video.psnr(0.01), 20, rtol=1e-6)
  np.testing.assert_allclose(video.psnr(1.0), 0, atol=1e-6)
  assert video.psnr(0.0) == pytest.approx(100)


def test_error_clips_and_matches_scikit_image():
  rng = np.random.default_rng(0)
  frames = rng.integers(0, 256, (2, 3, 8, 6, 3)).astype(np.uint8)
  predicted = frames / 255 + rng.normal(size=frames.shape) * 0.2
  error = video.squared_error(
    jnp.asarray(predicted, jnp.float32), jnp.asarray(frames)
  )
  assert error.shape == (2, 3)
  for b in range(2):
    for t in range(3):
      expected = peak_signal_noise_ratio(
        frames[b, t] / 255, predicted[b, t].clip(0, 1), data_range=1
      )
      np.testing.assert_allclose(video.psnr(error[b, t]), expected, rtol=1e-4)


def crafted():
  """Two clips; every candidate is off by a known number of levels."""
  shape = (2, 4, 6, 5, 3)
  frames = np.full(shape, 100, np.uint8)
  dreamed, shuffled = frames.copy(), frames.copy()
  for h in range(4):
    dreamed[:, h] += 1 + h
    shuffled[0, h] += 10 * (1 + h)
  last = np.full((2, 6, 5, 3), 100, np.uint8)
  last[1] = 151  # the second clip moved by a fifth of the range
  return video.OpenLoop(
    frames=frames, dreamed=dreamed, shuffled=shuffled, last=last
  )


def test_open_loop_psnr_of_known_errors():
  got = video.open_loop_psnr(crafted(), (1, 4))
  db = lambda mse: -10 * np.log10(mse)
  expected = {
    'psnr_1': db((1 / 255) ** 2),
    'psnr_4': db((4 / 255) ** 2),
    # The mean over clips is taken of the errors: one of the two is zero.
    'psnr_1_repeat_last': db((51 / 255) ** 2 / 2),
    'psnr_4_repeat_last': db((51 / 255) ** 2 / 2),
    'psnr_1_shuffled_actions': db((10 / 255) ** 2 / 2),
    'psnr_4_shuffled_actions': db((40 / 255) ** 2 / 2),
  }
  # The worst of two clips is one. In the second one all pixels changed.
  expected |= {'psnr_worst_1pct_1': expected['psnr_1']}
  expected |= {'psnr_changed_4': expected['psnr_4']}
  parts = ('worst_1pct', 'worst_regions', 'changed')
  assert set(got) == {
    *expected, *(f'psnr_{part}_{h}' for part in parts for h in (1, 4))
  }  # fmt: skip
  for name, value in expected.items():
    np.testing.assert_allclose(got[name], value, rtol=1e-4)


def test_only_clips_within_one_episode_are_kept_in_order():
  first = make_batch(3, 4, seed=0, starts=[(1, 2)])
  second = make_batch(3, 4, seed=1, starts=[(0, 3), (2, 1)])
  got = video.one_episode_clips(iter([first, second]), 3)
  expected = [first.frames[0], first.frames[2], second.frames[1]]
  assert np.array_equal(got.frames, np.stack(expected))
  assert np.array_equal(got.action['keys'][2], second.action['keys'][1])
  assert got.relevant.tolist() == [False, False, True]
  assert (got.segment_ids == 0).all()


def test_too_few_clips_are_reported_with_numbers():
  batches = [make_batch(2, 4, starts=[(0, 2)])] * 3
  message = r'eval.clips = 5: only 3 held-out clips of 4 frames .* shorter'
  with pytest.raises(ValueError, match=message):
    video.one_episode_clips(iter(batches), 5)
  message = 'eval.clips = 3: only 2'
  with pytest.raises(ValueError, match=message):
    video.one_episode_clips(iter(batches), 3, limit=2)


def errors_by_hand(image, frame, before, side):
  """Mean, worst region, sum and number of changed pixels of one frame."""
  off = ((np.clip(image, 0, 1) - frame / 255) ** 2).mean(-1)
  height, width = off.shape
  worst = max(
    off[y : y + side, x : x + side].mean()
    for y in range(0, height, side)
    for x in range(0, width, side)
  )
  moved = (frame != before).any(-1)
  return off.mean(), worst, off[moved].sum(), moved.sum()


def test_errors_of_frames_in_parts():
  rng = np.random.default_rng(0)
  frames = rng.integers(0, 256, (2, 3, 10, 7, 3)).astype(np.uint8)
  before = frames.copy()
  before[0, 0, 3, 4:, 1] += 1  # one channel of three pixels
  before[1, 2] = 255 - before[1, 2]
  predicted = frames / 255 + rng.normal(size=frames.shape) * 0.2
  got = video.frame_errors(
    jnp.asarray(predicted, jnp.float32),
    jnp.asarray(frames),
    (frames != before).any(-1),
    side=4,
  )
  for place in np.ndindex(2, 3):
    expected = errors_by_hand(predicted[place], frames[place], before[place], 4)
    found = [x[place] for x in jax.tree.leaves(got)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
  assert got.changes[0, 0] == 3 and got.changes[1, 2] == 70


def test_errors_summed_up():
  whole = np.full(250, 1e-4, np.float32)
  whole[[7, 100, 249]] = 0.01, 0.02, 0.03
  changed, changes = np.zeros((2, 250), np.float32)
  changed[:2], changes[:2] = (0.1, 0.2), (1, 2)
  errors = video.FrameErrors(whole, 2 * whole, changed, changes)
  db = lambda mse: pytest.approx(-10 * np.log10(mse), rel=1e-4)
  mean = (247 * 1e-4 + 0.06) / 250
  assert video.summary(errors) == {
    'psnr': db(mean),
    'psnr_worst_1pct': db(0.025),  # of two frames
    'psnr_changed': db(0.1),
    'psnr_worst_regions': db(2 * mean),
  }
  # One frame is the worst of a few, and nothing need change.
  few = jax.tree.map(lambda x: x[5:8], errors)
  got = video.summary(few)
  assert got['psnr_worst_1pct'] == db(0.01) and got['psnr_changed'] is None


def test_reconstructions_of_several_batches():
  world, params = world_and_params()
  batches = [make_batch(5, 4, seed=i, starts=[(0, 2)]) for i in range(2)]
  batches[1].frames[2, 1] = batches[1].frames[2, 0]
  reconstruct = jax.jit(
    lambda batch: world.tokenizer.apply(
      {'params': params['tokenizer']},
      batch.frames,
      segment_ids=batch.segment_ids,
    )[1]
  )
  expected, frames, decoded = [], [], []
  for batch in batches:
    images = np.clip(reconstruct(batch), 0, 1)
    for b, t in np.ndindex(5, 4):
      first = t == 0 or (b, t) == (0, 2)
      before = batch.frames[b, t if first else t - 1]
      frames.append(batch.frames[b, t])
      decoded.append(images[b, t])
      expected.append(errors_by_hand(decoded[-1], frames[-1], before, 8))
  expected = np.array(expected).T
  assert (expected[3] == 0).sum() == 2 * 6 + 1

  seen = video.reconstructions(world, params, batches)
  found = np.stack(jax.tree.leaves(seen.errors))
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  worst = np.argsort(-expected[0])[:16]
  np.testing.assert_array_equal(seen.worst, np.stack(frames)[worst])
  np.testing.assert_allclose(
    seen.worst_decoded, np.stack(decoded)[worst] * 255, atol=0.51
  )
  assert seen.names is None and seen.names_decoded is None

  name = lambda x: x[:, ::20, ::12, 0].astype(int)
  seen = video.reconstructions(world, params, batches[:1], name=name)
  assert np.array_equal(seen.names, name(np.stack(frames[:20])))
  level = name(np.stack(decoded[:20]) * 255 + 0.5)
  np.testing.assert_allclose(seen.names_decoded, level, atol=1)


def test_few_frames_are_all_worst():
  world, params = world_and_params()
  seen = video.reconstructions(world, params, [make_batch(1, 2)])
  assert seen.worst.shape == seen.worst_decoded.shape == (2, 20, 12, 3)


def test_errors_of_vectors_are_in_standard_deviations():
  world, params = world_and_params(vector_world.CONFIG)
  batches = [vector_world.make_batch(2, 2, seed=i) for i in range(2)]
  reconstruct = jax.jit(
    lambda batch: (
      world.tokenizer.apply(
        {'params': params['tokenizer']},
        batch.frames,
        vectors=batch.vectors,
        segment_ids=batch.segment_ids,
        method='reconstruct',
      )[1].vectors
    )
  )
  got = video.vector_errors(world, params, batches)
  assert set(got) == {'arm', 'grip'}
  for part in vector_world.VECTORS:
    off = [
      np.asarray(reconstruct(b)[part.name] - b.vectors[part.name]) / part.std
      for b in batches
    ]
    expected = np.sqrt(np.mean(np.square(off)))
    np.testing.assert_allclose(got[part.name], expected, rtol=1e-4)
  assert video.vector_errors(*world_and_params(), [make_batch(2, 2)]) == {}


def test_open_loop_hands_over_the_right_frames_and_actions(monkeypatch):
  # The dream is replaced by a picture of its actions: 0, 1 or 2, and three more
  # where they are unknown.
  world, params = world_and_params()
  clips = make_batch(3, 5)
  clips.prev_action_mask[1] = False  # Video without labels.
  seen = []

  class Dream:
    def __init__(self, z):
      self.z = z

  def fake(world, params, batch, key, *, policy, horizon, **kwargs):
    seen.append((batch.frames.shape, horizon, kwargs))
    assert isinstance(policy, Replay) and policy.known.shape == (3, horizon)
    # What is not known of an action shows as well.
    value = policy.actions['move'] + 3.0 * ~policy.known
    return Dream(jnp.broadcast_to(value[..., None, None], (3, horizon, 2, 8)))

  class Plain:
    config = world.config

    def encode_clips(self, params, batch):
      return jnp.zeros((*batch.frames.shape[:2], 2, 8))

    def decode(self, params, z):
      images = z[:, :, :1, :1, None] / 10 + 0.1
      return jnp.broadcast_to(images, (*z.shape[:2], 20, 12, 3)), None

  monkeypatch.setattr(video, 'imagine', fake)
  got = video.open_loop(
    Plain(),
    params,
    clips,
    jax.random.key(0),
    context_frames=2,
    sampling_steps=4,
  )
  shape, horizon, kwargs = seen[0]
  assert (shape, horizon) == ((3, 2, 20, 12, 3), 3)
  assert kwargs == {'sampling_steps': 4}
  assert np.array_equal(got.frames, clips.frames[:, 2:])
  assert np.array_equal(got.last, clips.frames[:, 1])
  # The action that led to frame 2 is the first one of the dream.
  moves = clips.prev_action['move'][:, 2:] + np.array([[0], [3], [0]])
  level = np.round((moves / 10 + 0.1) * 255)
  np.testing.assert_allclose(got.dreamed[..., 0, 0, 0], level, atol=1)
  other = np.stack([level[2], level[0], level[1]])  # of another clip
  np.testing.assert_allclose(got.shuffled[..., 0, 0, 0], other, atol=1)


def test_actions_of_video_without_labels_stay_unknown():
  world, params = world_and_params()
  clips = make_batch(2, 5)
  clips.prev_action_mask[:] = False

  def dreamed(move):
    action = {**clips.prev_action, 'move': np.full((2, 5), move, np.int32)}
    return video.open_loop(
      world, params, clips.replace(prev_action=action), jax.random.key(0),
      context_frames=2, sampling_steps=2,
    ).dreamed  # fmt: skip

  # What stands in the place of an unknown action has no effect.
  np.testing.assert_array_equal(dreamed(0), dreamed(2))
