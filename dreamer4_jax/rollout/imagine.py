"""Imagined rollouts: a scan over the horizon with a fixed-size cache.

Source: section 3.3 of arXiv 2509.24527.
"""

from __future__ import annotations

from collections.abc import Callable

from flax import struct
import jax
import jax.numpy as jnp

from dreamer4_jax.models import Params, World, distributions
from dreamer4_jax.objectives import TwoHot
from dreamer4_jax.rollout.context import (
  Context,
  last_frame,
  prepare_context,
  take_back_last,
)
from dreamer4_jax.rollout.denoise import (
  FrameInput,
  Pending,
  append_and_denoise,
  append_frame,
  context_noise,
  denoise_frame,
)
from dreamer4_jax.types import Actions, Array, Batch, PyTree

# (key, h [B, D], step []) -> action components [B, ...]
Policy = Callable[[Array, Array, Array], Actions]


@struct.dataclass
class Replay:
  """Given actions instead of a policy; dreams then need no agent token.

  Attributes:
    actions: components `[B, H, ...]`.
    known: `[B, H]` bool, whether they are known, unlike those of unlabeled
      video; by default all are.
  """

  actions: Actions
  known: Array | None = None


@struct.dataclass
class Rollout:
  """Imagined frames.

  Attributes:
    z: `[B, H, N_z, C]` standardised tokens of the imagined frames.
    noisy: `[B, T + H, N_z, C]` tokens of context and dream as the model saw
      them, at the context level.
    actions: components `[B, H, ...]`; `actions[:, i]` led to `z[:, i]`.
    agent: `[B, H + 1, D]` agent states: that of the last context frame, then
      those of the imagined frames. None without an agent token.
  """

  z: Array
  noisy: Array
  actions: Actions
  agent: Array | None


def imagine(
  world: World,
  params: Params,
  batch: Batch,
  key: Array,
  *,
  policy: Policy | Replay,
  horizon: int,
  sampling_steps: int,
) -> Rollout:
  """Continues every clip of a batch for `horizon` frames.

  The action that the policy draws at h is the action the denoiser of the next
  frame is given, and the agent state of that frame comes from the one pass
  that appends it, as it does when acting. The task of the last context frame
  is held.

  Args:
    world: modules.
    params: parameters; never differentiated through.
    batch: contexts, `[B, T, ...]`.
    key: all randomness.
    policy: draws actions, see `sample_policy`; or a `Replay`, without an agent
      token.
    horizon: H.
    sampling_steps: K.
  """
  params = world.for_inference(params)  # Once, not in every frame.
  context_key, key = jax.random.split(key)
  replay = policy if isinstance(policy, Replay) else None
  context = prepare_context(
    world, params, batch, context_key, with_agent=replay is None
  )
  if replay:
    start, frame = _replay(world, params, batch, context, replay)
  else:
    start, frame = _act(world, params, batch, context, policy)

  def body(carry: PyTree, i: Array):
    action_key, *keys = jax.random.split(jax.random.fold_in(key, i), 3)
    first, noise = (
      jax.random.normal(k, last_frame(context.z).shape) for k in keys
    )
    z, noisy, action, carry, h = frame(
      carry, i, action_key, first, noise, sampling_steps
    )
    return carry, (z[:, 0], noisy[:, 0], action, h)

  _, found = jax.lax.scan(body, start, jnp.arange(horizon))
  z, noisy, actions, agent = jax.tree.map(
    lambda x: jnp.swapaxes(x, 0, 1), found
  )
  if replay is None:
    agent = jnp.concatenate([context.agent[:, -1:], agent], axis=1)
  return Rollout(
    z=z,
    noisy=jnp.concatenate([context.noisy, noisy], axis=1),
    actions=actions,
    agent=agent,
  )


def _act(
  world: World, params: Params, batch: Batch, context: Context, policy: Policy
):
  """The start, and a function of a frame, whose action a policy draws."""
  token = world.agent_token(params, last_frame(batch.task))

  def frame(carry, i, action_key, start, noise, steps):
    cache, h = carry
    action = policy(action_key, h, i)
    inputs = FrameInput(
      prev_action=jax.tree.map(lambda a: a[:, None], action),
      prev_action_mask=jnp.ones(start.shape[:2], bool),
      agent=token,
    )
    z = denoise_frame(world, params, cache, inputs, start, steps=steps)
    h, cache = append_frame(world, params, cache, inputs, z, noise)
    # Computed once, above.
    return z, context_noise(world, z, noise), action, (cache, h), h

  return (context.cache, context.agent[:, -1]), frame


def _replay(
  world: World, params: Params, batch: Batch, context: Context, replay: Replay
):
  """The same for given actions: a frame is appended together with the next."""

  def frame(carry, i, unused_key, start, noise, steps):
    cache, pending = carry
    at = lambda x: jax.lax.dynamic_slice_in_dim(x, i, 1, axis=1)
    known = jnp.ones(start.shape[:2], bool)
    if replay.known is not None:
      known = at(replay.known)
    action = jax.tree.map(at, replay.actions)
    inputs = FrameInput(prev_action=action, prev_action_mask=known, agent=None)
    z, cache = append_and_denoise(
      world, params, cache, pending, inputs, start, steps=steps
    )
    noisy = context_noise(world, z, noise)
    pending = Pending(noisy=noisy, inputs=inputs, segment=cache.segment)
    action = jax.tree.map(lambda a: a[:, 0], action)
    return z, noisy, action, (cache, pending), None

  return take_back_last(context, batch), frame


def arrivals(
  world: World, params: Params, rollout: Rollout
) -> tuple[Array, Array]:
  """Predicts the reward and continuation of imagined frames.

  Args:
    world: modules.
    params: entries `reward`, `continuation`.
    rollout: with agent states.

  Returns:
    Expected reward of the task held, and probability that the episode goes on,
    on arriving at each imagined frame, `[B, H]` float32.
  """
  return arrival(world, params, rollout.agent[:, 1:])


def arrival(world: World, params: Params, agent: Array) -> tuple[Array, Array]:
  """Reads off agent states what their frames were arrived at with.

  Args:
    world: modules.
    params: entries `reward`, `continuation`.
    agent: `[..., D]` agent states.

  Returns:
    Expected reward of the task held, and probability that the episode goes on,
    `[...]` float32.
  """
  config = world.config.agent
  twohot = TwoHot(config.bins, config.bin_limit)
  reward = twohot.mean(world.head(params, 'reward', agent)[..., 0, :])
  cont = world.head(params, 'continuation', agent)[..., 0]
  return reward, jax.nn.sigmoid(cont)


def sample_policy(world: World, params: Params, head: str = 'policy') -> Policy:
  """Returns a policy that samples from a head (`policy` or `prior`)."""

  def policy(key: Array, h: Array, step: Array) -> Actions:
    del step
    logits = jax.tree.map(lambda x: x[:, 0], world.head(params, head, h))
    return distributions.sample(key, logits, world.space)

  return policy
