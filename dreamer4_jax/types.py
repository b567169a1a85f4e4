"""Structs that travel between folders, and the axis glossary.

Axis letters, used in every docstring: `B` batch, `T` frames, `H W C` image,
`P` patch side, `N` tokens in a frame, `L` tokenizer latents, `D` model width,
`K` sampling steps, `A` action components.

Time convention. On disk (RLDS), step t holds `observation[t]`, the
`action[t]` chosen after seeing it, and what that action earned. In a `Batch`
everything is aligned to the frame on which it can be *seen*: `prev_action[t]`
led to frame t, `reward[t]` was received on arriving at frame t, and `cont[t]`
is 0 iff frame t is terminal. A policy that reads frame t predicts
`action[t]`, which is in no input at or before t.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from flax import struct
import jax
import jax.numpy as jnp

Array: TypeAlias = jax.Array
PyTree: TypeAlias = Any
Actions: TypeAlias = dict[str, Array]
"""Action components by name: categorical `[...]` int32, binary `[..., n]`
int32 in {0, 1}, continuous `[..., n]` float32."""

Vectors: TypeAlias = dict[str, Array]
"""What is observed along with the image, such as proprioception, by name:
`[..., n]` float32, in the data's units."""


@struct.dataclass
class Levels:
  """How noisy examples, or frames of clips, are, and how far a step goes.

  On the grid of `max_steps` = K_max, a power of two, a step size d is one of
  1, 1/2, ..., 1/K_max, and a signal level tau one of 0, d, ..., 1: 0 is noise
  and 1 is data. Both travel as integers, so that no level is ever rounded.

  Attributes:
    signal_index: `[...]` int32, tau K_max; in 0..K_max, and below K_max where a
      step begins.
    step_index: `[...]` int32, log2(1/d), in 0..log2(K_max).
    max_steps: K_max.
  """

  signal_index: Array
  step_index: Array
  max_steps: int = struct.field(pytree_node=False)

  @property
  def signal_level(self) -> Array:
    """Tau, `[...]` float32 and exact."""
    return jnp.asarray(self.signal_index).astype(jnp.float32) / self.max_steps

  @property
  def step_size(self) -> Array:
    """Step size d, `[...]` float32 and exact."""
    steps = jnp.left_shift(1, jnp.asarray(self.step_index))
    return 1.0 / steps.astype(jnp.float32)

  def broadcast(self, shape: tuple[int, ...]) -> Levels:
    """Returns the same levels for all of `shape`, for example `(B, T)`."""
    whole = lambda index: jnp.broadcast_to(jnp.asarray(index, jnp.int32), shape)
    return jax.tree.map(whole, self)


@struct.dataclass
class Batch:
  """Clips, aligned by arrival (see the module docstring).

  Attributes:
    frames: `[B, T, H, W, C]` uint8; or `[B, T, L, b]` float16 latents, from a
      pre-tokenised dataset.
    action: action chosen at frame t, components `[B, T, ...]`.
    action_mask: `[B, T]` bool, whether `action[t]` is known.
    prev_action: action that led to frame t, components `[B, T, ...]`.
    prev_action_mask: `[B, T]` bool; false on first frames, on unlabeled
      video, and on frames treated as separate images.
    cloned: `[B, T]` bool, whether behaviour is cloned from `action[t]`: it is
      known, and chosen in a relevant clip no later than the action that
      achieves the task, or in a clip of a baseline.
    reward: `[B, T, num_tasks]` float32, reward on arriving at t, for each task.
    cont: `[B, T]` float32, 0 iff frame t is terminal (a time-out is not).
    task: `[B, T]` int32 task id that the agent token is given at frame t; in
      clips of a baseline the id of its prompt, `num_tasks` or above.
    segment_ids: `[B, T]` int32; frames see only their own segment.
    relevant: `[B]` bool, the clip was chosen because a task is achieved in it
      or soon after it or, for a baseline or if no task is ever achieved,
      because its actions are known.
    vectors: what is observed along with frame t, components `[B, T, n]`; empty
      if frames are latents, which hold it already.
  """

  frames: Array
  action: Actions
  action_mask: Array
  prev_action: Actions
  prev_action_mask: Array
  cloned: Array
  reward: Array
  cont: Array
  task: Array
  segment_ids: Array
  relevant: Array
  vectors: Vectors = struct.field(default_factory=dict)

  @classmethod
  def of(
    cls,
    frames: Array,
    action: Actions | None = None,
    *,
    first: Array | None = None,
    **known: Any,
  ) -> Batch:
    """Makes a batch of what is given, and fills in the rest.

    For arrays of your own; datasets are read by `data.make_loader`.

    Args:
      frames: `[B, T, H, W, C]` uint8, or latents.
      action: chosen at frame t, components `[B, T, ...]`. None is video without
        actions, for the tokenizer; for the dynamics, give `models.no_action`
        instead, with `action_mask` false.
      first: `[B, T]` bool, first frames of episodes, by default that of each
        clip. Frames see only those of their own episode.
      **known: other fields, as they are. By default all actions are known and
        to be cloned, there is one task, without a reward, and no frame is
        terminal.

    Raises:
      ValueError: an array does not lead with `[B, T]`.
      TypeError: there is no such field.
    """
    lead = jnp.shape(frames)[:2]
    if first is None:
      first = jnp.zeros(lead, bool).at[:, 0].set(True)
    action = action or {}
    for name, x in {'first': first, **action}.items():
      if jnp.shape(x)[:2] != lead:
        raise ValueError(
          f'{name} has shape {jnp.shape(x)}: must lead with [B, T] = {lead} of '
          'the frames'
        )
    first = jnp.asarray(first, bool)
    seen = known.get('action_mask', jnp.full(lead, bool(action)))

    def arrive(x: Array) -> Array:
      x = jnp.roll(jnp.asarray(x), 1, axis=1)
      blank = first.reshape(*lead, *(1,) * (x.ndim - 2))
      return jnp.where(blank, jnp.zeros((), x.dtype), x)

    fields = {
      'action': action,
      'action_mask': seen,
      'prev_action': {name: arrive(x) for name, x in action.items()},
      # What led to the first frame of a clip is not in it.
      'prev_action_mask': arrive(seen).at[:, 0].set(False),
      'cloned': seen,
      'reward': jnp.zeros((*lead, 1)),
      'cont': jnp.ones(lead),
      'task': jnp.zeros(lead, jnp.int32),
      'segment_ids': jnp.cumsum(first.at[:, 0].set(False), axis=1),
      'relevant': jnp.ones(lead[:1], bool),
    }
    return cls(frames=frames, **fields | known)


@struct.dataclass
class DreamBatch:
  """What imagination trains on while it trains the world model as well.

  Attributes:
    contexts: clips that dreams continue.
    clips: as many clips again, drawn as in finetuning.
  """

  contexts: Batch
  clips: Batch


@struct.dataclass
class Observation:
  """What an agent sees at a step.

  Attributes:
    frame: `[B, H, W, C]` uint8.
    is_first: `[B]` bool, an episode starts with this frame.
    vectors: what is observed along with the frame, components `[B, n]`.
  """

  frame: Array
  is_first: Array
  vectors: Vectors = struct.field(default_factory=dict)


@struct.dataclass
class EnvStep:
  """What a batch of environments shows after `reset` or `step`.

  Attributes:
    frame: `[B, H, W, C]` uint8.
    reward: `[B]` float32, the environment's own reward (0 after `reset`).
    events: `[B, num_tasks]` float32, 1 where the task was achieved on this
      step.
    terminal: `[B]` bool, the episode ended for good.
    timeout: `[B]` bool, the episode was cut by its time limit.
    vectors: what is observed along with the frame, components `[B, n]`.
  """

  frame: Array
  reward: Array
  events: Array
  terminal: Array
  timeout: Array
  vectors: Vectors = struct.field(default_factory=dict)
