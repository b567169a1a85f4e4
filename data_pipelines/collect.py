"""Records a dataset: an environment, and somebody who plays in it.

python -m data_pipelines.collect --env navix:Navix-DoorKey-Random-6x6-v0 \
  --episodes 4000 --test-episodes 200 --out DIR --noise 0.1 0.3 0.6 1.0

An episode depends on the seed and its number alone. Finished episodes are kept
when the command is interrupted, and the dataset is the same in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import concurrent.futures
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import queue
from typing import Any, Literal

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import tqdm
import tyro

from data_pipelines import players, writer
from dreamer4_jax.config import EnvConfig, require
from dreamer4_jax.data import format as fmt
from dreamer4_jax.envs import Environment, make_env
from dreamer4_jax.types import Actions, Array, EnvStep, PyTree

SHARD_FRAMES = 20_000
"""Frames between two points at which an interrupted recording goes on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectConfig:
  """What to record, and how."""

  out: str
  """Directory of the dataset to be."""
  env: str = 'navix:Navix-DoorKey-Random-6x6-v0'
  """Adapter and level."""
  policy: Literal['scripted', 'random', 'checkpoint'] = 'scripted'
  """Who plays."""
  run: str = ''
  """Run directory of a trained agent, for the policy checkpoint."""
  episodes: int = 4000
  """Episodes of the split 'train'."""
  test_episodes: int = 200
  """Episodes of the split 'test'."""
  noise: tuple[float, ...] = (0.1, 0.3, 0.6, 1.0)
  """Shares of random actions of a scripted player; each episode draws one."""
  repeat: float = 0.25
  """Probability that a random action is repeated."""
  restless: float = 0.0
  """Chance per step that a scripted player of Craftax begins to wander."""
  idle: float = 0.0
  """Chance per step that it begins to stand around."""
  max_steps: int = 60
  """Time limit of an episode, in steps."""
  tile: int = 8
  """Pixels per tile side, in grid worlds."""
  image_size: tuple[int, int] | None = None
  """Height and width of simulators' frames."""
  seed: int = 0
  """Seed of levels, noise and actions."""
  parallel: int = 128
  """Environments that run at once."""
  threads: int = 0
  """Threads that share them; 0 takes one for each core, 1 on accelerators."""
  block: int = 0
  """Steps between two looks at who has finished; 0 takes the time limit, but
  at most 64."""
  chunk_length: int = 8
  """Frames in a record."""
  overwrite: bool = False
  """Replace a finished dataset."""

  def __post_init__(self):
    for name in ('episodes', 'test_episodes', 'parallel'):
      value = getattr(self, name)
      require(value >= 1, f'CollectConfig.{name}', value, 'must be at least 1')
    for name in ('threads', 'block'):
      value = getattr(self, name)
      require(value >= 0, f'CollectConfig.{name}', value, 'must be at least 0')
    require(
      len(self.noise) > 0 and all(0 <= p <= 1 for p in self.noise),
      'CollectConfig.noise',
      self.noise,
      'needs at least one share, each in [0, 1]',
    )
    for name in ('restless', 'idle'):
      value = getattr(self, name)
      require(
        0 <= value <= 1, f'CollectConfig.{name}', value, 'must lie in [0, 1]'
      )
    require(
      0 <= self.repeat < 1,
      'CollectConfig.repeat',
      self.repeat,
      'must lie in [0, 1)',
    )
    require(
      self.policy != 'checkpoint' or bool(self.run),
      'CollectConfig.run',
      self.run,
      'must name the run directory of the agent',
    )


@struct.dataclass
class Lane:
  """B episodes that are being played.

  Attributes:
    state: the environment's.
    step: what it shows, `[B, ...]`.
    memory: the player's.
    keys: `[B]` typed keys of the episodes.
    t: `[B]` int32 steps so far.
  """

  state: PyTree
  step: EnvStep
  memory: PyTree
  keys: Array
  t: Array


@struct.dataclass
class Played:
  """What happened in a block, `[S, B, ...]`: steps, and the actions before."""

  step: EnvStep
  action: Actions


class Stage:
  """An environment, a player, and how they are run on B episodes."""

  def __init__(self, config: CollectConfig, env: Environment, batch: int):
    """Makes the player; programs are compiled when they are first run."""
    self.env, self.batch = env, batch
    self.config = config
    self.player = players.make_player(
      config.policy,
      env,
      config.env,
      repeat=config.repeat,
      run=config.run,
      batch=batch,
    )
    self.block = config.block or min(env.spec.max_steps, 64)
    if env.spec.on_host:
      self.begin, self.resume = self._begin, self._host_resume
      self.play = self._host_play
      self._act = jax.jit(self._decide)
    else:
      self.begin, self.resume = jax.jit(self._begin), jax.jit(self._resume)
      self.play = jax.jit(self._play, donate_argnums=1)

  @functools.cached_property
  def keys(self) -> Callable[[Array, Sequence[int]], Array]:
    """Maps a split's key and the numbers of episodes to their keys, `[B]`."""
    each = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    jitted = jax.jit(each)
    return lambda key, numbers: jitted(key, jnp.asarray(numbers, jnp.uint32))

  @functools.cached_property
  def levels(self) -> Callable[[Array], Array]:
    """Maps the keys of episodes to their noise levels, `[B]` int32."""

    def one(key: Array) -> Array:
      own = jax.random.split(key, 3)[0]
      return jax.random.randint(own, (), 0, len(self.config.noise))

    return jax.jit(jax.vmap(one))

  def _begin(self, keys: Array) -> Lane:
    state, step = self.env.reset(
      jax.vmap(lambda key: jax.random.split(key, 3)[1])(keys)
    )
    noise = jnp.asarray(self.config.noise, jnp.float32)[self.levels(keys)]
    dials = players.Dials(
      noise=noise,
      restless=jnp.full_like(noise, self.config.restless),
      idle=jnp.full_like(noise, self.config.idle),
    )
    return Lane(
      state=state,
      step=step,
      memory=self.player.start(state, dials),
      keys=keys,
      t=jnp.zeros(keys.shape, jnp.int32),
    )

  def _resume(self, lane: Lane, keys: Array, restarted: Array) -> Lane:
    """Starts new episodes in some places; the others go on."""
    new = self._begin(keys)
    memory = self.player.restart(lane.memory, new.memory, restarted)
    mixed = players.where_batch(
      lane.replace(memory=()), new.replace(memory=()), restarted
    )
    return mixed.replace(memory=memory)

  def _decide(self, params: PyTree, lane: Lane) -> tuple[PyTree, Actions]:
    keys = jax.vmap(
      lambda key, t: jax.random.fold_in(jax.random.split(key, 3)[2], t)
    )(lane.keys, lane.t)
    return self.player.act(
      params, lane.memory, lane.state, lane.step, lane.t == 0, keys
    )

  def _play(self, params: PyTree, lane: Lane) -> tuple[Lane, Played]:
    def body(lane: Lane, _):
      memory, actions = self._decide(params, lane)
      state, step = self.env.step(lane.state, actions)
      lane = lane.replace(state=state, step=step, memory=memory, t=lane.t + 1)
      return lane, Played(step=step, action=actions)

    return jax.lax.scan(body, lane, None, length=self.block)

  def _host_play(self, params: PyTree, lane: Lane) -> tuple[Lane, Played]:
    """As `_play`, with a simulator that cannot be jitted."""
    history = []
    for _ in range(self.block):
      memory, actions = self._act(params, lane.replace(state=()))
      actions = jax.device_get(actions)
      state, step = self.env.step(lane.state, actions)
      lane = lane.replace(state=state, step=step, memory=memory, t=lane.t + 1)
      history.append(Played(step=step, action=actions))
    return lane, jax.tree.map(lambda *x: np.stack(x), *history)

  def _host_resume(self, lane: Lane, keys: Array, restarted: Array) -> Lane:
    """Simulators start all their episodes at once."""
    new = self._begin(keys)
    memory = self.player.restart(lane.memory, new.memory, restarted)
    return new.replace(memory=memory)


@dataclasses.dataclass
class _Open:
  """An episode that is being recorded.

  Attributes:
    number: of the episode.
    level: index into the noise levels.
    frames: pieces of its frames, time leading.
    steps: pieces of what its steps hold beside frames.
  """

  number: int
  level: int = 0
  frames: list[np.ndarray] = dataclasses.field(default_factory=list)
  steps: list[dict[str, Any]] = dataclasses.field(default_factory=list)

  def add(self, played: Played, place: int) -> bool | None:
    """Takes a block's steps up to the end of the episode.

    Returns:
      Whether the episode ended for good; None if it has not ended.
    """
    step = played.step
    ended = step.terminal[:, place] | step.timeout[:, place]
    count = int(np.argmax(ended)) + 1 if ended.any() else len(ended)
    own = jax.tree.map(lambda x: x[:count, place].copy(), played)
    self.frames.append(own.step.frame)
    self.steps.append(
      {
        'action': own.action,
        'action_known': np.ones(count, bool),
        'reward': own.step.reward,
        'events': own.step.events.astype(np.uint8),
      }
    )
    return bool(step.terminal[count - 1, place]) if ended.any() else None

  def close(self, terminal: bool, noise: float) -> writer.Episode:
    """Returns the whole episode; its last frame has no action."""
    last = jax.tree.map(lambda x: np.zeros_like(x[:1]), self.steps[-1])
    steps = jax.tree.map(lambda *x: np.concatenate(x), *self.steps, last)
    return writer.Episode(
      steps={'observation': np.concatenate(self.frames), **steps},
      terminal=terminal,
      attributes={'number': self.number, 'noise': noise},
    )


def record(
  stage: Stage, numbers: queue.SimpleQueue[int], key: Array
) -> Iterator[writer.Episode]:
  """Plays episodes until no numbers are left.

  Args:
    stage: environment and player.
    numbers: of the episodes still to be played; may be shared by threads.
    key: of the split.

  Yields:
    Episodes, in the order in which they end, with the attribute `number`.
  """
  places: list[_Open | None] = [None] * stage.batch
  lane: Lane | None = None
  while True:
    restarted = np.zeros(stage.batch, bool)
    # Simulators on the host start all their episodes at once.
    if not (stage.env.spec.on_host and any(places)):
      for i in range(stage.batch):
        number = _take(numbers) if places[i] is None else None
        if number is not None:
          places[i], restarted[i] = _Open(number), True
    if not any(places):
      return
    if restarted.any():
      # Places without an episode play on, and nobody watches.
      keys = stage.keys(key, [p.number if p else 0 for p in places])
      lane = (
        stage.begin(keys)
        if lane is None
        else stage.resume(lane, keys, jnp.asarray(restarted))
      )
      levels, first = jax.device_get((stage.levels(keys), lane.step.frame))
      for i in np.flatnonzero(restarted):
        places[i].level = int(levels[i])
        places[i].frames.append(first[i : i + 1].copy())
    lane, played = stage.play(stage.player.params, lane)
    played = jax.device_get(played)
    for i, place in enumerate(places):
      terminal = place.add(played, i) if place else None
      if terminal is not None:
        yield place.close(terminal, stage.config.noise[place.level])
        places[i] = None


def _take(numbers: queue.SimpleQueue[int]) -> int | None:
  try:
    return numbers.get_nowait()
  except queue.Empty:
    return None


class _Tally:
  """Counts what goes by, for the report."""

  def __init__(self, tasks: tuple[str, ...]):
    self._tasks = tasks
    self._lengths: list[int] = []
    self._noise: list[float] = []
    self._achieved: list[np.ndarray] = []

  def add_index(self, index: writer.ShardIndex) -> None:
    """Counts the episodes of a shard."""
    for length, events, attributes in zip(
      index.lengths, index.events, index.attributes, strict=True
    ):
      achieved = np.zeros(len(self._tasks), bool)
      achieved[[task for _, task in events]] = True
      self._lengths.append(length)
      self._noise.append(attributes['noise'])
      self._achieved.append(achieved)

  def report(self) -> dict[str, Any]:
    """Returns means; the last task is the one called success."""
    achieved, noise = np.asarray(self._achieved), np.asarray(self._noise)
    rates = lambda rows: dict(
      zip(self._tasks, achieved[rows].mean(0).tolist(), strict=True)
    )
    by_noise = {f'{p:g}': rates(noise == p) for p in sorted(set(self._noise))}
    return {
      'episodes': len(self._lengths),
      'frames': int(sum(self._lengths)),
      'mean_length': float(np.mean(self._lengths)),
      'success_rate': float(achieved[:, -1].mean()),
      'event_rate': rates(slice(None)),
      'event_rate_by_noise': by_noise,
    }


def collect(config: CollectConfig, *, progress: bool = True) -> dict[str, Any]:
  """Records the splits 'train' and 'test' and writes them to disk.

  Args:
    config: what to record; the same config gives the same dataset.
    progress: show a progress bar.

  Returns:
    The report by split: episodes, frames, mean length in frames, success and
    event rates as shares of episodes, also by noise.

  Raises:
    FileExistsError: there is something at `config.out`.
    FileNotFoundError: the run of the checkpoint has not been trained.
    ValueError: the environment is unknown, or the player does not fit it.
  """
  out = writer.check_output(config.out, overwrite=config.overwrite)
  env = make_env(
    EnvConfig(
      name=config.env,
      tile=config.tile,
      image_size=config.image_size,
      max_steps=config.max_steps,
    )
  )
  kept = {
    k: v
    for k, v in dataclasses.asdict(config).items()
    if k not in ('out', 'overwrite', 'threads')
  }
  description = fmt.Description(
    actions=env.spec.actions,
    tasks=env.spec.tasks,
    frame_shape=env.spec.frame_shape,
    chunk_length=config.chunk_length,
    labels={k: list(v) for k, v in env.spec.labels.items()},
    source=kept,
  )
  counts = {'train': config.episodes, 'test': config.test_episodes}
  work = writer.work_directory(out, key=[kept, repr(description)])
  threads = _threads(config, env)
  batch = max(1, config.parallel // threads)
  stage = Stage(config, env, batch)
  shards: dict[str, list[pathlib.Path]] = {}
  with tqdm.tqdm(
    total=sum(counts.values()), unit=' episodes', disable=not progress
  ) as bar:
    for split, count in counts.items():
      key = jax.random.fold_in(
        jax.random.key(config.seed), sorted(counts).index(split)
      )
      numbers = _missing(work, split, count, bar)
      write = lambda i, split=split, key=key, numbers=numbers: _write(
        stage, numbers, key, work, f'{split}-{i}', description, bar
      )
      with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(write, i) for i in range(threads)]:
          done.result()
      shards[split] = _finished(work, split)
  report = {}
  for split, paths in shards.items():
    tally = _Tally(env.spec.tasks)
    for path in paths:
      tally.add_index(writer.read_index(path))
    report[split] = tally.report()
  writer.publish(
    out,
    work,
    description,
    shards,
    files={'collection.json': report},
    order='number',
  )
  return report


def _threads(config: CollectConfig, env: Environment) -> int:
  if env.spec.on_host or jax.default_backend() != 'cpu':
    return 1
  return min(config.threads or os.cpu_count() or 1, config.parallel)


def _finished(work: pathlib.Path, split: str) -> list[pathlib.Path]:
  """Returns the finished shards of a split."""
  suffix = writer.index_path(work / 'x').name.removeprefix('x')
  found = sorted(work.glob(f'{split}-*{suffix}'))
  return [p.with_name(p.name.removesuffix(suffix)) for p in found]


def _missing(
  work: pathlib.Path, split: str, count: int, bar: tqdm.tqdm
) -> queue.SimpleQueue[int]:
  """Returns the numbers of the episodes that no finished shard holds."""
  done = {
    attributes['number']
    for path in _finished(work, split)
    for attributes in writer.read_index(path).attributes
  }
  bar.update(len(done))
  numbers: queue.SimpleQueue[int] = queue.SimpleQueue()
  for number in range(count):
    if number not in done:
      numbers.put(number)
  return numbers


def _write(
  stage: Stage,
  numbers: queue.SimpleQueue[int],
  key: Array,
  work: pathlib.Path,
  name: str,
  description: fmt.Description,
  bar: tqdm.tqdm,
) -> None:
  """Writes episodes to shards of about `SHARD_FRAMES`."""
  episodes = record(stage, numbers, key)
  following = next(episodes, None)
  free = (work / f'{name}-{i:05d}' for i in itertools.count())
  while following is not None:
    path = next(p for p in free if not writer.index_path(p).exists())
    with writer.Shard(path, description) as shard:
      while following is not None:
        shard.add(following)
        bar.update()
        following = next(episodes, None)
        if sum(shard.index.lengths) >= SHARD_FRAMES:
          break


def main() -> None:
  """Records one dataset and prints the report as JSON."""
  config = tyro.cli(CollectConfig)
  report = collect(config)
  print(json.dumps({'out': str(pathlib.Path(config.out)), **report}, indent=2))


if __name__ == '__main__':
  main()
