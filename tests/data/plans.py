"""What tests of planned windows share: an index written by hand."""

import numpy as np

from dreamer4_jax.data import planning
from dreamer4_jax.data.format import SplitIndex

# Episode 0: 6 frames, task 0 on frame 2, task 1 on frame 4.
# Episode 1: 3 frames, nothing. Episode 2: 9 frames, task 0 on frame 8.
EVENTS = [(0, 2, 0), (0, 4, 1), (2, 8, 0)]


def make_index(events=tuple(EVENTS), lengths=(6, 3, 9)):
  columns = np.array(events, np.int64).reshape(-1, 3)
  return SplitIndex(
    lengths=np.array(lengths),
    first_chunks=np.arange(len(lengths)),
    terminal=np.ones(len(lengths), bool),
    event_episode=columns[:, 0],
    event_frame=columns[:, 1],
    event_task=columns[:, 2],
  )


def make_planner(**kwargs):
  return planning.Planner(
    **{
      'indices': [make_index()],
      'weights': [1.0],
      'length': 5,
      'batch_size': 4,
      **kwargs,
    }
  )


def frames(segments):
  return [(s.episode, t) for s in segments for t in range(s.start, s.stop)]
