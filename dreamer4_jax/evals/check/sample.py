"""Reads a bounded sample of a dataset, and keeps what describes it."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import hashlib

import numpy as np

from dreamer4_jax.data.sources import EpisodeSource, Request, Stretch
from dreamer4_jax.evals import probes
from dreamer4_jax.evals.check import motion
from dreamer4_jax.evals.check.timing import Clip

LENGTH = 32
"""Steps of a clip."""
SHORTEST = 12
"""Shorter clips hold no step with all that the probe needs."""
MOST_BYTES = 2 << 30
"""Of frames that are read."""
_BLACK, _WHITE = 8, 247


@dataclasses.dataclass
class Looks:
  """What the frames of a clip look like; lists of `[T]` and `[T - 1]`.

  Attributes:
    mean: brightness of each frame, from 0 to 1.
    black: whether nothing in it is brighter than 8 of 255.
    white: whether nothing in it is darker than 247 of 255.
    change: mean absolute change to the next frame, from 0 to 1.
  """

  mean: np.ndarray
  black: np.ndarray
  white: np.ndarray
  change: np.ndarray


@dataclasses.dataclass
class Sample:
  """Clips of one split.

  Attributes:
    clips: what the probe is given; without frames if `probed` is false.
    actions: by component, the known actions of all clips.
    repeated: share of known actions that are those of the step before.
    looks: of each clip; none for latents.
    frames: how many were read.
  """

  clips: list[Clip] = dataclasses.field(default_factory=list)
  actions: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  repeated: float = 0.0
  looks: list[Looks] = dataclasses.field(default_factory=list)
  frames: int = 0


def windows(source: EpisodeSource, clips: int) -> list[Stretch]:
  """Chooses clips that do not overlap, at random, in the order of the split.

  Args:
    source: the split.
    clips: at most; fewer if their frames were more than `MOST_BYTES`.
  """
  shape, dtype = source.fields['observation']
  size = int(np.prod(shape)) * dtype.itemsize * LENGTH
  found = [
    Stretch(episode, start, min(start + LENGTH, length))
    for episode, length in enumerate(source.index.lengths.tolist())
    for start in range(0, length, LENGTH)
    if min(LENGTH, length - start) >= min(SHORTEST, length)
  ]
  rng = np.random.default_rng(0)
  kept = rng.permutation(len(found))[: max(8, min(clips, MOST_BYTES // size))]
  return [found[i] for i in np.sort(kept)]


def draw(source: EpisodeSource, clips: int) -> Sample:
  """Reads clips, one at a time; only what describes them is kept."""
  space = source.description.actions
  found, same, pairs = Sample(), 0, 0
  actions: dict[str, list[np.ndarray]] = {part.name: [] for part in space}
  for stretch, steps in _read(source, windows(source, clips)):
    known, frames = steps['action_known'], steps['observation']
    found.frames += len(frames)
    if not source.description.tokenizer:
      found.looks.append(_looks(frames))
    for name, values in actions.items():
      values.append(steps[f'action/{name}'][known])
    if not space:
      continue
    encoded = probes.encode_actions(
      {part.name: steps[f'action/{part.name}'] for part in space}, space
    )
    both = known[1:] & known[:-1]
    same += int((encoded[1:] == encoded[:-1]).all(axis=-1)[both].sum())
    pairs += int(both.sum())
    if known.any() and len(known) >= SHORTEST:
      found.clips.append(_clip(stretch.episode, frames, encoded, known))
  found.actions = {k: np.concatenate(v) for k, v in actions.items() if v}
  found.repeated = same / max(pairs, 1)
  return found


def _read(
  source: EpisodeSource, stretches: list[Stretch]
) -> Iterator[tuple[Stretch, dict[str, np.ndarray]]]:
  for stretch in stretches:
    arrays = source.allocate((1, stretch.stop - stretch.start))
    source.read([Request(stretch, arrays)])
    yield stretch, {name: x[0] for name, x in arrays.items()}


def _clip(
  episode: int, frames: np.ndarray, actions: np.ndarray, known: np.ndarray
) -> Clip:
  if frames.dtype == np.uint8:
    return Clip.of_frames(episode, frames, actions, known)
  flat = frames.reshape(len(frames), -1).astype(np.float32)
  change = flat[1:] - flat[:-1]
  change = np.concatenate([change, abs(change)], axis=1)
  return Clip(episode, flat, change, actions, known)


def _looks(frames: np.ndarray) -> Looks:
  small = motion.shrink(frames)
  flat = frames.reshape(len(frames), -1)
  still = (flat[1:] == flat[:-1]).all(axis=1)
  change = abs(small[1:] - small[:-1]).mean(axis=(1, 2, 3))
  return Looks(
    mean=small.mean(axis=(1, 2, 3)),
    black=flat.max(axis=1) <= _BLACK,
    white=flat.min(axis=1) >= _WHITE,
    # Exactly 0 for the same frame only.
    change=np.where(still, 0.0, np.maximum(change, 1e-9)),
  )


def twins(ours: EpisodeSource, others: EpisodeSource, most: int) -> int | None:
  """Counts episodes that another split has as well, frames and actions.

  Args:
    ours: the split whose episodes are looked for.
    others: where.
    most: episodes that are read of each split.

  Returns:
    How many; None if more than `most` are alike in the index, so that only
    some were compared and none was found.
  """
  theirs: dict[tuple, list[int]] = {}
  for episode in range(len(others)):
    theirs.setdefault(_entry(others, episode), []).append(episode)
  mine = [e for e in range(len(ours)) if _entry(ours, e) in theirs]
  rivals = sorted({o for e in mine for o in theirs[_entry(ours, e)]})
  seen = {_print(others, episode) for episode in rivals[:most]}
  count = sum(_print(ours, episode) in seen for episode in mine[:most])
  whole = len(rivals) <= most and len(mine) <= most
  return count if count or whole else None


def _entry(source: EpisodeSource, episode: int) -> tuple:
  """What the index says of an episode."""
  index = source.index
  frame, task = index.of_episode(episode)
  length, gain = int(index.lengths[episode]), 0.0
  if index.returns is not None:
    gain = round(float(index.returns[episode]), 4)
  return length, gain, frame.tobytes(), task.tobytes()


def _print(source: EpisodeSource, episode: int) -> bytes:
  """A fingerprint of the steps in an episode's middle."""
  length = int(source.index.lengths[episode])
  start = max(0, length // 2 - LENGTH // 2)
  stretch = Stretch(episode, start, min(length, start + LENGTH))
  found = hashlib.blake2b(digest_size=16)
  for _, steps in _read(source, [stretch]):
    for name in sorted(steps):
      if name == 'observation' or name.startswith('action/'):
        found.update(steps[name].tobytes())
  return found.digest()
