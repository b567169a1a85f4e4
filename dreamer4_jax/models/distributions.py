"""The policy's distribution: a product over action components.

Functions of logits as returned by `heads.PolicyHead` without the distance
axis. Every quantity is an exact sum over components, bits and dimensions.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dreamer4_jax.config import ActionComponent
from dreamer4_jax.models.actions import ActionSpace
from dreamer4_jax.types import Actions, Array

Logits = dict[str, Array]


def bin_centers(part: ActionComponent) -> Array:
  """Returns the `[bins]` values of a discretised continuous component."""
  return jnp.linspace(part.low, part.high, part.bins)


def _log_probs(logits: Array, part: ActionComponent) -> Array:
  """Log-probabilities of the classes, on a last axis (two for bits)."""
  logits = logits.astype(jnp.float32)
  if part.kind == 'binary':
    return jnp.stack(
      [jax.nn.log_sigmoid(-logits), jax.nn.log_sigmoid(logits)], axis=-1
    )
  return jax.nn.log_softmax(logits, axis=-1)


def _sum(x: Array, part: ActionComponent) -> Array:
  """Sums over bits or dimensions, if any."""
  return x if part.kind == 'categorical' else x.sum(axis=-1)


def _classes(action: Array, part: ActionComponent) -> Array:
  """Class index of an action; the nearest bin for a continuous component."""
  if part.kind != 'continuous':
    return action.astype(jnp.int32)
  share = (action - part.low) / (part.high - part.low)
  index = jnp.round(share * (part.bins - 1)).astype(jnp.int32)
  return jnp.clip(index, 0, part.bins - 1)


def sample(
  key: Array,
  logits: Logits,
  space: ActionSpace,
  temperature: Array | float = 1.0,
) -> Actions:
  """Draws actions; a continuous component gets the centre of a bin.

  Args:
    key: all randomness.
    logits: of each component.
    space: the action space.
    temperature: `[]`, at least 0. Logits are divided by it; at 0 each component
      gets its most likely value, the first if several tie.
  """
  warm = jnp.asarray(temperature, jnp.float32)
  greedy = warm <= 0
  warm = jnp.where(greedy, 1.0, warm)
  actions = {}
  keys = jax.random.split(key, len(space))
  for part, k in zip(space, keys, strict=True):
    log_probs = _log_probs(logits[part.name].astype(jnp.float32) / warm, part)
    drawn = jax.random.categorical(k, log_probs, axis=-1)
    index = jnp.where(greedy, jnp.argmax(log_probs, axis=-1), drawn)
    index = index.astype(jnp.int32)
    if part.kind == 'continuous':
      index = bin_centers(part)[index]
    actions[part.name] = index
  return actions


def log_prob(logits: Logits, actions: Actions, space: ActionSpace) -> Array:
  """Returns log pi(a), `[...]` float32."""
  total = 0.0
  for part in space:
    log_probs = _log_probs(logits[part.name], part)
    index = _classes(actions[part.name], part)[..., None]
    chosen = jnp.take_along_axis(log_probs, index, axis=-1)[..., 0]
    total += _sum(chosen, part)
  return total


def entropy(logits: Logits, space: ActionSpace) -> Array:
  """Returns the entropy in nats, `[...]` float32."""
  total = 0.0
  for part in space:
    log_probs = _log_probs(logits[part.name], part)
    total -= _sum((jnp.exp(log_probs) * log_probs).sum(axis=-1), part)
  return total


def kl(p: Logits, q: Logits, space: ActionSpace) -> Array:
  """Returns KL[p || q] in nats, `[...]` float32."""
  total = 0.0
  for part in space:
    log_p = _log_probs(p[part.name], part)
    log_q = _log_probs(q[part.name], part)
    total += _sum((jnp.exp(log_p) * (log_p - log_q)).sum(axis=-1), part)
  return total
