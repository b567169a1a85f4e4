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
from dreamer4_jax.rollout.context import last_frame, prepare_context
from dreamer4_jax.rollout.denoise import (
  FrameInput,
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
  replay = policy if isinstance(policy, Replay) else None
  with_agent = replay is None
  context_key, key = jax.random.split(key)
  context = prepare_context(
    world, params, batch, context_key, with_agent=with_agent
  )
  token = None
  if with_agent:
    token = world.agent_token(params, last_frame(batch.task))
  shape = last_frame(context.z).shape
  known = jnp.ones((shape[0], horizon), bool)
  if replay and replay.known is not None:
    known = replay.known
  h = context.agent[:, -1] if with_agent else None

  def body(carry: PyTree, i: Array):
    cache, h = carry
    act, start, noise = jax.random.split(jax.random.fold_in(key, i), 3)
    action = (
      jax.tree.map(lambda x: x[:, i], replay.actions)
      if replay
      else policy(act, h, i)
    )
    inputs = FrameInput(
      prev_action=jax.tree.map(lambda a: a[:, None], action),
      prev_action_mask=jax.lax.dynamic_slice_in_dim(known, i, 1, axis=1),
      agent=token,
    )
    z = denoise_frame(
      world,
      params,
      cache,
      inputs,
      jax.random.normal(start, shape),
      steps=sampling_steps,
    )
    noise = jax.random.normal(noise, shape)
    h, cache = append_frame(world, params, cache, inputs, z, noise)
    noisy = context_noise(world, z, noise)  # Computed once, above.
    return (cache, h), (z[:, 0], noisy[:, 0], action, h)

  _, (z, noisy, actions, agent) = jax.lax.scan(
    body, (context.cache, h), jnp.arange(horizon)
  )
  batch_major = lambda x: jnp.swapaxes(x, 0, 1)
  if with_agent:
    agent = jnp.concatenate([context.agent[:, -1:], batch_major(agent)], axis=1)
  return Rollout(
    z=batch_major(z),
    noisy=jnp.concatenate([context.noisy, batch_major(noisy)], axis=1),
    actions=jax.tree.map(batch_major, actions),
    agent=agent,
  )


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
  agent, arrived = world.config.agent, rollout.agent[:, 1:]
  twohot = TwoHot(agent.bins, agent.bin_limit)
  reward = twohot.mean(world.head(params, 'reward', arrived)[:, :, 0])
  cont = world.head(params, 'continuation', arrived)[:, :, 0]
  return reward, jax.nn.sigmoid(cont)


def sample_policy(world: World, params: Params, head: str = 'policy') -> Policy:
  """Returns a policy that samples from a head (`policy` or `prior`)."""

  def policy(key: Array, h: Array, step: Array) -> Actions:
    del step
    logits = jax.tree.map(lambda x: x[:, 0], world.head(params, head, h))
    return distributions.sample(key, logits, world.space)

  return policy
