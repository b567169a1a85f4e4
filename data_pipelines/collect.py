"""Records a dataset by playing in an environment.

python -m data_pipelines.collect --env navix:Navix-DoorKey-Random-6x6-v0 \
  --episodes 4000 --test-episodes 200 --out DIR --noise 0.1 0.3 0.6 1.0

Except for trained players, an episode depends only on the seed and its number.
If interrupted, the same command keeps the finished shards and records the
rest; the dataset is the same in the end. The report is printed as JSON.

Look at a dataset with `dreamer4 data info DIR` and `dreamer4 data show DIR`;
train on it with `dreamer4 train EXPERIMENT.py --data DIR`. In the experiment,
`actions`, `tasks`, `tokenizer.frame_shape` and `env` must be those of the
environment; docs/config.md says how to choose the rest, docs/atari.md has a
complete example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import multiprocessing
from multiprocessing import connection
import os
import pathlib
import pickle
import signal
import threading
import traceback
from typing import Any

import jax
import tqdm

from data_pipelines import players, recording, writer
from data_pipelines.command import (
  FailedError,
  in_words_of,
  main_of,
  quiet,
)
from data_pipelines.stage import CollectConfig, Stage
from dreamer4_jax.config import Config, EnvConfig
from dreamer4_jax.data import format as fmt
from dreamer4_jax.data import novelty
from dreamer4_jax.envs import Environment, make_env
from dreamer4_jax.runtime.memory import keep_freed_memory

__all__ = ['CollectConfig', 'collect', 'record_env']


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Share:
  """What one process plays.

  Attributes:
    config: of the recording.
    name: of the process; its shards begin with it.
    batch: episodes at once.
    numbers: of the episodes, by split.
    work: where the shards go.
    cores: on which the process runs; if empty, the system chooses.
    cache: where compiled programs are kept; empty for nowhere.
  """

  config: CollectConfig
  name: str
  batch: int
  numbers: Mapping[str, Sequence[int]]
  work: pathlib.Path
  cores: tuple[int, ...] = ()
  cache: str = ''


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
    ValueError: the environment is unknown, the player does not fit it, or
      `config.out` belongs to a run.
    ImportError: the environment's engine is not installed.
    FailedError: a process died.
  """
  out = writer.check_output(config.out, overwrite=config.overwrite)
  env = _environment(config)
  players.check_player(config.policy, env, config.env, config.run)
  description = _describe(config, env)
  counts = {'train': config.episodes, 'test': config.test_episodes}
  work = writer.work_directory(out, key=[description.source, repr(description)])
  numbers = {k: recording.missing(work, k, n) for k, n in counts.items()}
  left = sum(map(len, numbers.values()))
  shares = _deal(config, numbers, work) if left else []
  with tqdm.tqdm(
    total=sum(counts.values()),
    initial=sum(counts.values()) - left,
    unit=' episodes',
    disable=not progress,
  ) as bar:
    if len(shares) == 1:
      _play(shares[0], env, bar.update)
    elif shares:
      _play_in_processes(shares, bar.update)
  shards = {split: recording.finished(work, split) for split in counts}
  report = {}
  for split, paths in shards.items():
    tally = recording.Tally(env.spec.tasks)
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


def record_env(config: Config, **settings: Any) -> dict[str, Any]:
  """Records an experiment's environment, ready for its clips to be drawn.

  Args:
    config: of the run; its `env` is recorded into its first dataset, and the
      novelty of frames is measured if `data.novel_share` asks for it.
    **settings: other fields of `CollectConfig`.

  Returns:
    As `collect`.
  """
  env, path = config.env, config.data.path
  known = {'max_steps': env.max_steps, 'image_size': env.image_size}
  report = collect(
    CollectConfig(out=path, env=env.name, **{**known, **settings})
  )
  if config.data.novel_share:
    novelty.measure_dataset(path, config.data.train_split)
  return report


def _environment(config: CollectConfig) -> Environment:
  own = {
    f'EnvConfig.{field}': option
    for field, option in (
      ('name', 'env'),
      ('image_size', 'image_size'),
      ('max_steps', 'max_steps'),
    )
  }
  with in_words_of(own):
    return make_env(
      EnvConfig(
        name=config.env,
        image_size=config.image_size,
        max_steps=config.max_steps,
      )
    )


def _describe(config: CollectConfig, env: Environment) -> fmt.Description:
  """Returns the description; its source is all that the content depends on."""
  kept = dataclasses.asdict(config)
  for name in ('out', 'overwrite', 'workers', 'parallel', 'block'):
    kept.pop(name)
  kept |= {'noise': list(config.levels), 'repeat': config.repeats}
  return fmt.Description(
    actions=env.spec.actions,
    tasks=env.spec.tasks,
    frame_shape=env.spec.frame_shape,
    vectors=env.spec.vectors if config.vectors else (),
    chunk_length=config.chunk_length,
    labels={k: list(v) for k, v in env.spec.labels.items()},
    source=kept,
  )


def _deal(
  config: CollectConfig,
  numbers: Mapping[str, Sequence[int]],
  work: pathlib.Path,
) -> list[_Share]:
  """Deals episodes out to processes, each with cores of its own."""
  workers = config.workers or len(cores_of(0, 1)) or os.cpu_count() or 1
  most = max(map(len, numbers.values()))
  workers = min(workers, config.parallel, most)
  if jax.default_backend() != 'cpu':
    workers = 1
  return [
    _Share(
      config=config,
      name=str(i),
      # No more places than there are episodes to play in them.
      batch=min(max(1, config.parallel // workers), -(-most // workers)),
      numbers={split: all_[i::workers] for split, all_ in numbers.items()},
      work=work,
      cores=cores_of(i, workers),
      cache=jax.config.jax_compilation_cache_dir or '',
    )
    for i in range(workers)
  ]


def cores_of(number: int, workers: int) -> tuple[int, ...]:
  """Returns the cores of one of several processes; empty if unknown."""
  if not hasattr(os, 'sched_getaffinity'):
    return ()
  return tuple(sorted(os.sched_getaffinity(0))[number::workers])


def settle(cores: Sequence[int], cache: str = '') -> None:
  """Prepares a new process, before JAX starts its threads.

  Args:
    cores: on which it will run; if empty, the system chooses.
    cache: where compiled programs are kept; empty for nowhere.
  """
  keep_freed_memory()
  quiet()
  if cores:
    os.sched_setaffinity(0, cores)
  jax.config.update('jax_platforms', 'cpu')
  if cache:
    jax.config.update('jax_compilation_cache_dir', cache)


def _play(share: _Share, env: Environment, tick: Callable[[], Any]) -> None:
  """Plays and writes all episodes of a share."""
  stage = Stage(share.config, env, share.batch)
  description = _describe(share.config, env)
  for split, numbers in share.numbers.items():
    key = jax.random.fold_in(
      jax.random.key(share.config.seed), sorted(share.numbers).index(split)
    )
    recording.write_shards(
      recording.record(stage, numbers, key),
      share.work / f'{split}-{share.name}',
      description,
      tick,
    )


def _play_in_processes(
  shares: Sequence[_Share], update: Callable[[int], Any]
) -> None:
  """Plays each share in a process of its own.

  Threads would share XLA's one thread pool per process, and wait for each
  other in every small operation.
  """
  context = multiprocessing.get_context('spawn')
  # A counter for each, so that none waits for a lock held by a dead process.
  counts = context.RawArray('q', len(shares))
  errors = context.SimpleQueue()
  processes = [
    context.Process(target=_child, args=(s, i, counts, errors), daemon=True)
    for i, s in enumerate(shares)
  ]
  shown = 0
  try:
    for process in processes:
      process.start()
    running = processes
    while running:
      connection.wait([p.sentinel for p in running], timeout=0.5)
      # Checked first: a process that has ended has reported everything.
      running = [p for p in processes if p.exitcode is None]
      played = sum(counts)
      update(played - shown)
      shown = played
      if not errors.empty():
        raise errors.get()
      for process in processes:
        if process.exitcode:
          raise FailedError(
            f'a process that records ended with code {process.exitcode}, '
            'perhaps for lack of memory; the same command goes on where it '
            'was, with --workers 1 or a smaller --parallel if need be'
          )
  finally:
    for process in processes:
      if process.is_alive():
        process.terminate()
      if process.pid is not None:
        process.join()


def _child(share: _Share, number: int, counts: Any, errors: Any) -> None:
  """Runs in a new process."""
  # Control-C reaches all processes of a terminal; the parent ends this one.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  threading.Thread(target=_die_with_parent, daemon=True).start()
  settle(share.cores, share.cache)

  def tick() -> None:
    counts[number] += 1

  try:
    _play(share, _environment(share.config), tick)
  except Exception as error:
    error.add_note(traceback.format_exc())
    try:
      pickle.loads(pickle.dumps(error))
    except Exception:
      error = RuntimeError(f'{type(error).__name__}: {error}')
    errors.put(error)


def _die_with_parent() -> None:
  """Ends this process when its parent is gone, for whatever reason.

  Otherwise it would keep writing to a directory that the next command uses.
  """
  connection.wait([multiprocessing.parent_process().sentinel])
  os._exit(1)


def _show(config: CollectConfig, report: dict[str, Any]) -> None:
  print(json.dumps({'out': str(pathlib.Path(config.out)), **report}, indent=2))


if __name__ == '__main__':
  main_of(CollectConfig, collect, _show, description=__doc__)
