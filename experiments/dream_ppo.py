"""PPO that practises in dreams and is then measured in the real environment.

python -m experiments.dream_ppo runs/quickstart

An algorithm that knows nothing of world models: frames in, actions out, in the
manner of CleanRL. All its experience is dreamed, by `dreamer4_jax.play`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
import dataclasses
import json
import math
import pathlib
import time
from typing import Any

from einops import rearrange
from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
import optax

from dreamer4_jax import envs, evals
from dreamer4_jax.models import World, distributions
from dreamer4_jax.models.actions import ActionSpace
from dreamer4_jax.objectives import lambda_returns
from dreamer4_jax.play import LoadedDream, load_dream
from dreamer4_jax.types import Actions, Array, PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """How to practise."""

  updates: int = 300
  """Times that all dreams are dreamed anew and learned from."""
  minutes: float = math.inf
  """After which there is no further update."""
  dreams: int = 64
  """Dreams side by side."""
  epochs: int = 4
  """Times that their frames are gone through."""
  parts: int = 4
  """Minibatches of a time through."""
  learning_rate: float = 1e-3
  """Of Adam."""
  gamma: float = 0.95
  """Discount."""
  lam: float = 0.95
  """Lambda of the advantage."""
  clip: float = 0.2
  """How far a ratio of probabilities may go from 1."""
  value: float = 0.5
  """Weight of the value loss."""
  entropy: float = 0.01
  """Weight of the entropy."""


class ActorCritic(nn.Module):
  """Logits of all components, and the value, of frames `[B, H, W, C]`.

  Patches are seen one by one and then together. What a strided convolution
  does, products do many times faster in a loop on a CPU.
  """

  space: ActionSpace
  patch: int

  @nn.compact
  def __call__(self, frame: Array) -> tuple[distributions.Logits, Array]:
    """Returns logits `[B, ...]` by component, and values `[B]`."""
    rest = [(0, -side % self.patch) for side in frame.shape[1:3]]
    x = rearrange(
      jnp.pad(frame.astype(jnp.float32) / 255, [(0, 0), *rest, (0, 0)]),
      'b (r y) (c x) k -> b (r c) (y x k)', y=self.patch, x=self.patch,
    )  # fmt: skip
    for width in (64, 32):
      x = nn.relu(nn.Dense(width)(x))
    x = nn.relu(nn.Dense(256)(x.reshape(len(x), -1)))
    small, logits = nn.initializers.orthogonal(0.01), {}
    for part in self.space:
      shape = (part.size, *(part.bins,) * (part.kind == 'continuous'))
      out = nn.Dense(math.prod(shape), kernel_init=small, name=part.name)(x)
      logits[part.name] = out.reshape(-1, *shape)
    return logits, nn.Dense(1, name='value')(x)[:, 0]


@struct.dataclass
class Experience:
  """N dreamed frames and what was done there; `weight` 0 after the end."""

  frame: Array
  action: Actions
  log_prob: Array
  weight: Array
  advantage: Array
  returns: Array


def dream(
  loaded: LoadedDream, net: ActorCritic, params: PyTree, key: Array, s: Settings
) -> tuple[Experience, dict[str, Array]]:
  """Dreams from random real frames to the horizon, `[B * H, ...]`."""
  world, space = loaded.dream, net.space
  keys = jax.random.split(key, 2 + world.horizon)
  row = jax.random.randint(keys[0], (s.dreams,), 0, len(loaded.contexts.cont))
  start = jax.tree.map(lambda x: x[row], loaded.contexts)

  def turn(now, key):
    state, shown = now
    act_key, dream_key = jax.random.split(key)
    logits, value = net.apply(params, shown.frame)
    action = distributions.sample(act_key, logits, space)
    log_prob = distributions.log_prob(logits, action, space)
    alive = (~state.over).astype(jnp.float32)
    new = world.step(loaded.params, state, action, dream_key)
    seen = (shown.frame, action, log_prob, alive, value)
    return new, (seen, new[1].reward, new[1].terminal)

  now = world.reset(loaded.params, start, keys[1])
  (_, last), found = jax.lax.scan(turn, now, keys[2:])
  swap = lambda x: jnp.swapaxes(x, 0, 1)
  (frame, action, log_prob, alive, value), reward, end = jax.tree.map(
    swap, found
  )
  # What is cut at the horizon would have gone on.
  value = jnp.append(value, net.apply(params, last.frame)[1][:, None], axis=1)
  returns = lambda_returns(reward, ~end, value, gamma=s.gamma, lam=s.lam)
  e = Experience(
    frame, action, log_prob, alive, returns - value[:, :-1], returns
  )
  metrics = {
    'return': reward.sum(axis=1).mean(),
    'length': alive.sum(axis=1).mean(),
    'ended': end[:, -1].mean(),
  }
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), e), metrics


def loss(params: PyTree, net: ActorCritic, e: Experience, s: Settings) -> Array:
  """The clipped surrogate, value loss and entropy, `[]`."""
  mean = lambda x: (x * e.weight).sum() / jnp.maximum(e.weight.sum(), 1)
  logits, value = net.apply(params, e.frame)
  log_prob = distributions.log_prob(logits, e.action, net.space)
  ratio = jnp.exp(log_prob - e.log_prob)
  centred = e.advantage - mean(e.advantage)
  advantage = centred / (jnp.sqrt(mean(centred**2)) + 1e-8)
  near = jnp.clip(ratio, 1 - s.clip, 1 + s.clip)
  policy = -mean(jnp.minimum(ratio * advantage, near * advantage))
  error = mean((value - e.returns) ** 2)
  entropy = mean(distributions.entropy(logits, net.space))
  return policy + s.value * error - s.entropy * entropy


def make_update(
  loaded: LoadedDream, net: ActorCritic, s: Settings
) -> tuple[optax.GradientTransformation, Callable[..., Any]]:
  """Returns the optimizer, and a compiled update, dreams included."""
  adam = optax.chain(
    optax.clip_by_global_norm(0.5), optax.adam(s.learning_rate)
  )

  @jax.jit
  def update(world_params, contexts, params, moments, key):
    own = LoadedDream(loaded.dream, world_params, contexts)
    dream_key, key = jax.random.split(key)
    e, metrics = dream(own, net, params, dream_key, s)

    def learn(carry, rows):
      params, moments = carry
      part = jax.tree.map(lambda x: x[rows], e)
      grads = jax.grad(loss)(params, net, part, s)
      changes, moments = adam.update(grads, moments)
      return (optax.apply_updates(params, changes), moments), None

    count = len(e.weight)
    order = [
      jax.random.permutation(k, count) for k in jax.random.split(key, s.epochs)
    ]
    rows = jnp.concatenate(order).reshape(s.epochs * s.parts, -1)
    (params, moments), _ = jax.lax.scan(learn, (params, moments), rows)
    return params, moments, metrics

  return adam, update


def train(
  loaded: LoadedDream, s: Settings, key: Array
) -> tuple[ActorCritic, PyTree, list[dict[str, float]]]:
  """Practises; returns the network, its parameters, and metrics by update."""
  tokenizer = loaded.dream.world.config.tokenizer
  net = ActorCritic(loaded.dream.world.space, tokenizer.patch_size)
  shape = tokenizer.frame_shape
  params = net.init(key, jnp.zeros((1, *shape), jnp.uint8))
  adam, update = make_update(loaded, net, s)
  moments, log = adam.init(params), []
  begun = time.monotonic()
  for i in range(s.updates):
    params, moments, metrics = update(
      loaded.params, loaded.contexts, params, moments,
      jax.random.fold_in(key, i),
    )  # fmt: skip
    log.append({k: float(v) for k, v in metrics.items()})
    late = time.monotonic() - begun > 60 * s.minutes
    if i % 10 == 0 or i == s.updates - 1 or late:
      print(json.dumps({'update': i, **log[-1]}), flush=True)
    if late:
      break
  return net, params, log


def evaluate(
  world: World, env: envs.Environment, net: ActorCritic, params: PyTree,
  episodes: int = 300,
) -> dict[str, Any]:  # fmt: skip
  """Plays the real environment, beside random actions on the same episodes."""
  seed = world.config.eval.seed

  def agent(params, memory, step, is_first, key):
    logits, _ = net.apply(params, step.frame)
    return distributions.sample(key, logits, net.space), memory

  players = {'ppo': (agent, params), 'random': (evals.random_agent(world), {})}
  return {
    name: evals.run_episodes(
      env, play, own, (), seeds=range(seed, seed + episodes),
      key=jax.random.key(seed), label=name,
    ).summary()
    for name, (play, own) in players.items()
  }  # fmt: skip


def main() -> None:
  """Parses the command line, practises, measures, and prints both."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('run', type=pathlib.Path)
  parser.add_argument('--updates', type=int, default=Settings.updates)
  parser.add_argument('--minutes', type=float, default=Settings.minutes)
  parser.add_argument('--dreams', type=int, default=Settings.dreams)
  parser.add_argument('--horizon', type=int, help='frames of a dream')
  parser.add_argument('--task', help='by default the prompt of the run')
  parser.add_argument('--episodes', type=int, default=300)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  given = {'horizon': args.horizon} if args.horizon else {}
  if args.task:
    given['task'] = args.task
  else:
    given['prompt'] = ()  # Of the run: a reward for each of its tasks.
  loaded = load_dream(args.run, **given)
  s = Settings(updates=args.updates, minutes=args.minutes, dreams=args.dreams)
  net, params, _ = train(loaded, s, jax.random.key(args.seed))
  world = loaded.dream.world
  env = envs.make_env(world.config.env)
  found = evaluate(world, env, net, params, args.episodes)
  print(json.dumps(found, indent=2))


if __name__ == '__main__':
  main()
