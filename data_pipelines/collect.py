"""Records a dataset with the scripted player.

python -m data_pipelines.collect --env navix:Navix-DoorKey-Random-6x6-v0 \
  --episodes 4000 --test-episodes 200 --out DIR --noise 0.1 0.3 0.6 1.0
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools
import json
import pathlib
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import tqdm
import tyro

from data_pipelines import doorkey_player, writer
from dreamer4_jax.config import EnvConfig, require
from dreamer4_jax.data import format as fmt
from dreamer4_jax.envs import make_env
from dreamer4_jax.envs.navix_env import ACTION, NavixDoorKey
from dreamer4_jax.types import Array, EnvStep


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectConfig:
  """What to record, and how."""

  out: str
  """Directory of the dataset to be."""
  env: str = 'navix:Navix-DoorKey-Random-6x6-v0'
  """Adapter and level."""
  episodes: int = 4000
  """Episodes of the split 'train'."""
  test_episodes: int = 200
  """Episodes of the split 'test'."""
  noise: tuple[float, ...] = (0.1, 0.3, 0.6, 1.0)
  """Shares of random actions; each episode draws one of them."""
  repeat: float = 0.25
  """Probability that a random action is repeated."""
  max_steps: int = 60
  """Time limit of an episode, in steps."""
  tile: int = 8
  """Pixels per tile side."""
  seed: int = 0
  """Seed of levels, noise and actions."""
  parallel: int = 128
  """Environments that run at once."""
  overwrite: bool = False
  """Replace a finished dataset."""

  def __post_init__(self):
    for name in ('episodes', 'test_episodes', 'parallel'):
      value = getattr(self, name)
      require(value >= 1, f'CollectConfig.{name}', value, 'must be at least 1')
    require(
      len(self.noise) > 0 and all(0 <= p <= 1 for p in self.noise),
      'CollectConfig.noise',
      self.noise,
      'needs at least one share, each in [0, 1]',
    )
    require(
      0 <= self.repeat < 1,
      'CollectConfig.repeat',
      self.repeat,
      'must lie in [0, 1)',
    )


@struct.dataclass
class Rollout:
  """A batch of episodes, run to the time limit.

  Attributes:
    first: what `reset` showed.
    steps: what each step showed, time leading: `[S, B, ...]`.
    actions: `[S, B]` int32.
    level: `[B]` int32 index into the noise levels.
  """

  first: EnvStep
  steps: EnvStep
  actions: Array
  level: Array


def rollout(
  env: NavixDoorKey, keys: Array, *, noise: Array, repeat: float
) -> Rollout:
  """Plays one episode per key to the time limit; jit it.

  Args:
    env: the environment.
    keys: `[B]` typed keys, one per episode.
    noise: `[levels]` float32 shares of random actions, drawn uniformly.
    repeat: probability that a random action is repeated.

  Returns:
    The episodes; what follows an episode's end repeats its last frame.
  """
  split = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
  level = jax.vmap(lambda key: jax.random.randint(key, (), 0, noise.size))(
    split[:, 0]
  )
  state, first = env.reset(split[:, 1])
  player = jax.vmap(doorkey_player.start)(state.timestep.state, noise[level])

  def body(carry, t):
    state, player = carry
    step_keys = jax.vmap(lambda key: jax.random.fold_in(key, t))(split[:, 2])
    act = functools.partial(doorkey_player.act, repeat=repeat)
    player, action = jax.vmap(act)(player, state.timestep.state, step_keys)
    state, step = env.step(state, {ACTION: action})
    return (state, player), (step, action)

  _, (steps, actions) = jax.lax.scan(
    body, (state, player), jnp.arange(env.spec.max_steps)
  )
  return Rollout(first=first, steps=steps, actions=actions, level=level)


def to_episodes(batch: Rollout) -> Iterator[writer.Episode]:
  """Yields each episode of a fetched batch, cut at its end.

  Args:
    batch: as `rollout` returns it, in host memory.
  """
  ended = batch.steps.terminal | batch.steps.timeout
  for i in range(ended.shape[1]):
    actions = int(np.argmax(ended[:, i])) + 1
    pad = functools.partial(_pad_last, length=actions, episode=i)
    yield writer.Episode(
      steps={
        'observation': np.concatenate(
          [batch.first.frame[i][None], batch.steps.frame[:actions, i]]
        ),
        'action': {ACTION: pad(batch.actions)},
        'action_known': np.arange(actions + 1) < actions,
        'reward': pad(batch.steps.reward),
        'events': pad(batch.steps.events).astype(np.uint8),
      },
      terminal=bool(batch.steps.terminal[actions - 1, i]),
    )


def _pad_last(x: np.ndarray, *, length: int, episode: int) -> np.ndarray:
  """Cuts `[S, B, ...]` to one episode, with 0 at its last frame."""
  x = x[:length, episode]
  return np.concatenate([x, np.zeros_like(x[:1])])


class _Tally:
  """Counts what goes by, for the report."""

  def __init__(self, noise: tuple[float, ...], tasks: tuple[str, ...]):
    self._noise, self._tasks = noise, tasks
    self._lengths: list[int] = []
    self._levels: list[int] = []
    self._achieved: list[np.ndarray] = []

  def add(self, episode: writer.Episode, level: int) -> None:
    self._lengths.append(len(episode.steps['reward']))
    self._levels.append(level)
    self._achieved.append(episode.steps['events'].any(0))

  def report(self) -> dict[str, Any]:
    levels = np.asarray(self._levels)
    achieved = np.asarray(self._achieved)
    # The last task is the one that ends the episode.
    success = {
      f'{p:g}': float(achieved[levels == i, -1].mean())
      for i, p in enumerate(self._noise)
      if (levels == i).any()
    }
    return {
      'episodes': len(self._lengths),
      'frames': int(sum(self._lengths)),
      'mean_length': float(np.mean(self._lengths)),
      'success_rate': float(achieved[:, -1].mean()),
      'success_rate_by_noise': success,
      'event_rate': {
        task: float(achieved[:, i].mean()) for i, task in enumerate(self._tasks)
      },
    }


def collect(config: CollectConfig, *, progress: bool = True) -> dict[str, Any]:
  """Records the splits 'train' and 'test' and writes them to disk.

  Args:
    config: what to record; the same config gives the same dataset.
    progress: show a progress bar.

  Returns:
    The report by split: episodes, frames, mean length in frames, success and
    event rates as shares of episodes.

  Raises:
    FileExistsError: there is something at `config.out`.
    ValueError: the environment is unknown.
  """
  out = writer.check_output(config.out, overwrite=config.overwrite)
  env = make_env(
    EnvConfig(name=config.env, tile=config.tile, max_steps=config.max_steps)
  )
  play = jax.jit(
    functools.partial(
      rollout,
      env,
      noise=jnp.asarray(config.noise, dtype=jnp.float32),
      repeat=config.repeat,
    )
  )
  counts = {'train': config.episodes, 'test': config.test_episodes}
  tallies = {name: _Tally(config.noise, env.spec.tasks) for name in counts}
  bar = tqdm.tqdm(
    total=sum(counts.values()), unit=' episodes', disable=not progress
  )

  def episodes(split: str) -> Iterator[writer.Episode]:
    key = jax.random.fold_in(
      jax.random.key(config.seed), sorted(counts).index(split)
    )
    for begin in range(0, counts[split], config.parallel):
      # Numbers past the end fill the last batch, which compiles no second time.
      numbers = jnp.arange(begin, begin + config.parallel)
      keys = jax.vmap(lambda n: jax.random.fold_in(key, n))(numbers)
      batch = jax.device_get(play(keys))
      wanted = counts[split] - begin
      for i, episode in enumerate(to_episodes(batch)):
        if i >= wanted:
          break
        level = int(batch.level[i])
        tallies[split].add(episode, level)
        bar.update()
        yield dataclasses.replace(
          episode, attributes={'noise': config.noise[level]}
        )

  with bar:
    writer.write_dataset(
      out,
      description=fmt.Description(
        actions=env.spec.actions,
        tasks=env.spec.tasks,
        frame_shape=env.spec.frame_shape,
        labels={k: list(v) for k, v in env.spec.labels.items()},
        source={
          k: v
          for k, v in dataclasses.asdict(config).items()
          if k not in ('out', 'overwrite')
        },
      ),
      splits={name: episodes(name) for name in counts},
      overwrite=config.overwrite,
    )
  return {name: tally.report() for name, tally in tallies.items()}


def main() -> None:
  """Records one dataset and prints the report as JSON."""
  config = tyro.cli(CollectConfig)
  report = collect(config)
  print(json.dumps({'out': str(pathlib.Path(config.out)), **report}, indent=2))


if __name__ == '__main__':
  main()
