"""Targets of multi-token prediction."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dreamer4_jax.objectives._shapes import same_shape
from dreamer4_jax.types import Array, PyTree


def multi_token_targets(
  x: PyTree, valid: Array, segment_ids: Array, distances: int
) -> tuple[PyTree, Array]:
  """Aligns what lies n = 0..`distances`-1 frames ahead with each frame.

  Section 3.3 of the paper: from frame t, heads predict the action, reward
  and continuation of frames t+n.

  Args:
    x: `[B, T, ...]` array, or a tree of them such as `Actions`.
    valid: `[B, T]` bool, whether `x` is known at a frame.
    segment_ids: `[B, T]` int; prediction does not cross segments.
    distances: number of distances, at least 1.

  Returns:
    Targets `[B, T, distances, ...]` in the dtype of `x`, entry (t, n) is
    `x[t+n]`; and their mask `[B, T, distances]` bool, false where t+n lies
    past the clip, in another segment than t, or is not valid. What a masked
    target holds has no meaning.

  Raises:
    ValueError: if the shapes differ or `distances` is not positive.
  """
  if distances < 1:
    raise ValueError(f'distances = {distances}: must be at least 1')
  same_shape(valid=valid, segment_ids=segment_ids)
  for leaf in jax.tree.leaves(x):
    if leaf.shape[:2] != valid.shape:
      raise ValueError(f'x {leaf.shape} must begin with {valid.shape}')
  length = valid.shape[1]
  ahead = jnp.arange(length)[:, None] + jnp.arange(distances)[None, :]
  index = jnp.minimum(ahead, length - 1)
  targets = jax.tree.map(lambda leaf: leaf[:, index], x)
  same_segment = segment_ids[:, index] == segment_ids[:, :, None]
  inside = (ahead < length)[None]
  return targets, inside & same_segment & valid[:, index].astype(bool)


def multi_token_rewards(
  reward: Array, task: Array, segment_ids: Array, distances: int
) -> tuple[Array, Array]:
  """Aligns rewards as `multi_token_targets` does, each for the frame's task.

  The agent token at frame t is given one task. What lies ahead counts for that
  task, even if the labels of later frames name another.

  Args:
    reward: `[B, T, num_tasks]` reward on arriving at a frame, for each task.
    task: `[B, T]` int task of the agent token; ids from `num_tasks` on are not
      tasks and have no reward.
    segment_ids: `[B, T]` int.
    distances: number of distances, at least 1.

  Returns:
    `[B, T, distances]`, entry (t, n) is `reward[t+n, task[t]]`, and the mask of
    `multi_token_targets`.
  """
  everywhere = jnp.ones(task.shape, bool)
  ahead, seen = multi_token_targets(reward, everywhere, segment_ids, distances)
  own = task[:, :, None, None]
  rewards = jnp.take_along_axis(ahead, own, axis=-1, mode='fill', fill_value=0)
  return rewards[..., 0], seen
