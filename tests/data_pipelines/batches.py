"""What a loader makes of a converted dataset, against what was recorded."""

from typing import NamedTuple

import numpy as np

from dreamer4_jax.data import Draws, EpisodeSource, make_loader


class Truth(NamedTuple):
  """One recorded episode of n frames, all frames of a dataset different.

  Attributes:
    frames: `[n, H, W, C]` uint8.
    actions: by component, `[n - 1, ...]`: number t leads to frame t + 1.
    rewards: `[n - 1]`, what each of them earned.
    terminal: whether the last frame is terminal.
  """

  frames: np.ndarray
  actions: dict[str, np.ndarray]
  rewards: np.ndarray
  terminal: bool


def loader(path, *, batch_size, length):
  """Returns a loader of the split 'train', with all that the dataset has."""
  description = EpisodeSource(path, 'train').description
  draws = Draws(batch_size=batch_size, length=length)
  return make_loader(str(path), 'train', description, draws)


def check(path, truth, *, atol=0.0, batches=30, last_known=False):
  """Asserts that actions, rewards and flags stand on the right frames.

  Args:
    path: of the dataset; its split 'train' is read.
    truth: what was recorded.
    atol: tolerance of continuous actions.
    batches: how many to look at; all frames must turn up in them.
    last_known: the action chosen on the last frame is known as well.
  """
  where = {
    frame.tobytes(): (e, t)
    for e, episode in enumerate(truth)
    for t, frame in enumerate(episode.frames)
  }
  assert len(where) == sum(len(e.frames) for e in truth)
  seen = set()
  drawn = loader(path, batch_size=4, length=5)
  for _ in range(batches):
    batch = next(drawn)
    for b, t in np.ndindex(batch.segment_ids.shape):
      place = where[batch.frames[b, t].tobytes()]
      seen.add(place)
      _check_frame(batch, (b, t), truth[place[0]], place[1], atol, last_known)
      if t and batch.segment_ids[b, t] == batch.segment_ids[b, t - 1]:
        assert where[batch.frames[b, t - 1].tobytes()] == (
          place[0],
          place[1] - 1,
        )
  assert seen == set(where.values())


def _check_frame(batch, at, episode, step, atol, last_known):
  last = step == len(episode.frames) - 1
  assert batch.prev_action_mask[at] == (step > 0)
  assert batch.action_mask[at] == (not last or last_known)
  assert batch.cont[at] == (not (last and episode.terminal))
  assert batch.reward[at] == (episode.rewards[step - 1] if step else 0)
  for name, action in episode.actions.items():
    before = action[step - 1] if step else np.zeros_like(action[0])
    np.testing.assert_allclose(batch.prev_action[name][at], before, atol=atol)
    if not last:
      np.testing.assert_allclose(
        batch.action[name][at], action[step], atol=atol
      )
