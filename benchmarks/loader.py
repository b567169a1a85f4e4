"""How fast the loader makes batches, compared with reading the files raw.

python -m benchmarks.loader                     # makes its own dataset
python -m benchmarks.loader --dataset DIR --run runs/quickstart

Prints one JSON object. Raw reading takes every record of the split through
array_record, in order, and throws it away: what remains if nothing is planned,
decoded, cut or stacked. The two take turns in one run, since machines are
noisy; figures are medians over repeats. The dataset is never cached in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import dataclasses
import json
import os
import pathlib
import platform
import statistics
import tempfile
import time
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader
import numpy as np
import tyro

from data_pipelines import writer
from dreamer4_jax.config import PHASES, ActionComponent, Config
from dreamer4_jax.data import Description, Draws, EpisodeSource, make_loader
from dreamer4_jax.runtime.memory import keep_freed_memory

READ_AT_ONCE = 64
"""Records that raw reading takes in one call."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderBenchmark:
  """What to measure."""

  dataset: str = ''
  """Directory of a dataset; empty makes one of 64x64 frames."""
  split: str = 'train'
  """Its split."""
  length: int = 16
  """Frames of a window."""
  batch_size: int = 32
  """Windows of a batch."""
  threads: int = 2
  """Threads that make batches."""
  chunk_length: int = 8
  """Frames of a record, in the dataset that is made."""
  frames: int = 60_000
  """Frames of the dataset that is made."""
  seconds: float = 3.0
  """Seconds of each measurement."""
  repeats: int = 5
  """Measurements of each kind."""
  run: str = ''
  """A finished quickstart run, to compare with what its steps consumed."""


def main(config: LoaderBenchmark) -> dict[str, Any]:
  """Measures, and returns what is printed."""
  keep_freed_memory()  # As `dreamer4 train` does.
  with tempfile.TemporaryDirectory() as directory:
    path = config.dataset or _make_dataset(config, directory)
    source = EpisodeSource(path, config.split, cache_bytes=0)
    shape, dtype = source.description.observation
    frame_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    files = _files(source)
    loader = make_loader(
      str(path),
      config.split,
      source.description,
      Draws(length=config.length, batch_size=config.batch_size),
      threads=config.threads,
      cache_bytes=0,
    )
    window_bytes = config.length * frame_bytes
    batch_bytes = config.batch_size * window_bytes
    # Work done so far, in bytes; each pass goes on where the last one stopped.
    raw, made = _raw(files), _batches(loader, batch_bytes)
    rates: dict[str, list[float]] = {'raw': [], 'loader': []}
    for _ in range(config.repeats + 1):
      rates['raw'].append(_rate(raw, config.seconds))
      rates['loader'].append(_rate(made, config.seconds))
    # The first of each warms up.
    median = {k: statistics.median(v[1:]) for k, v in rates.items()}
    shares = [
      b / a for a, b in zip(rates['raw'][1:], rates['loader'][1:], strict=True)
    ]
    result = {
      'windows_per_second': median['loader'] / window_bytes,
      'loader_mb_per_second': median['loader'] / 1e6,
      'raw_mb_per_second': median['raw'] / 1e6,
      'share_of_raw': statistics.median(shares),
      'share_of_raw_range': [min(shares), max(shares)],
      'frame_bytes': frame_bytes,
      'chunk_length': source.description.chunk_length,
      'file_bytes': sum(p.stat().st_size for p in files),
      'config': dataclasses.asdict(config),
      'cores': os.cpu_count(),
      'python': platform.python_version(),
    }
    if config.run:
      result |= consumption(pathlib.Path(config.run), result, config.length)
    return result


def consumption(
  run: pathlib.Path, result: dict[str, Any], length: int
) -> dict[str, Any]:
  """Returns how many windows a run's steps took each second, and the margin."""
  seconds = json.loads((run / 'seconds.json').read_text())
  config = Config.from_json((run / 'config.json').read_text())
  taken = {}
  for phase in PHASES:
    p = getattr(config.phases, phase)
    share = 1 / config.data.long_every
    long, short = share * p.longest_clip, (1 - share) * p.clip_length
    frames = p.batch_size * (short + long)
    taken[phase] = p.steps * frames / length / seconds[phase]
  return {
    'consumed_windows_per_second': taken,
    'times_the_consumption': result['windows_per_second'] / max(taken.values()),
  }


def _rate(work: Iterator[int], seconds: float) -> float:
  """Returns bytes per second of an iterator that yields bytes done."""
  begin, done = time.perf_counter(), 0
  while (spent := time.perf_counter() - begin) < seconds:
    done += next(work)
  return done / spent


def _batches(loader: Any, batch_bytes: int) -> Iterator[int]:
  for _ in loader:
    yield batch_bytes


def _raw(files: list[pathlib.Path]) -> Iterator[int]:
  """Reads all records of all files, in order, again and again."""
  readers = [ArrayRecordReader(str(path)) for path in files]
  while True:
    for reader in readers:
      count = reader.num_records()
      for begin in range(0, count, READ_AT_ONCE):
        records = reader.read(begin, min(begin + READ_AT_ONCE, count))
        yield sum(map(len, records))


def _files(source: EpisodeSource) -> list[pathlib.Path]:
  return sorted(source.path.glob(f'*-{source.split}.array_record*'))


def _make_dataset(config: LoaderBenchmark, directory: str) -> pathlib.Path:
  """Writes episodes of 500 frames that scroll over tiles of a few textures."""
  rng = np.random.default_rng(0)
  textures = rng.integers(0, 256, (16, 8, 8, 3), np.uint8)

  def episodes() -> Iterator[writer.Episode]:
    for _ in range(config.frames // 500):
      world = textures[rng.integers(0, 16, (64, 64))]
      image = world.transpose(0, 2, 1, 3, 4).reshape(512, 512, 3)
      at = np.cumsum(rng.integers(-2, 3, (500, 2)), axis=0) + 200
      frames = np.stack([image[r : r + 64, c : c + 64] for r, c in at % 448])
      known = np.arange(500) < 499
      yield writer.Episode(
        steps={
          'observation': frames,
          'action': {'action': rng.integers(0, 17, 500)},
          'action_known': known,
          'reward': known * rng.random(500),
          'events': known[:, None] & (rng.random((500, 22)) < 0.01),
        },
        terminal=True,
      )

  return writer.write_dataset(
    pathlib.Path(directory) / 'dataset',
    description=Description(
      actions=(ActionComponent(name='action', kind='categorical', size=17),),
      tasks=tuple(f'task{i}' for i in range(22)),
      frame_shape=(64, 64, 3),
      chunk_length=config.chunk_length,
    ),
    splits={config.split: episodes()},
  )


def run(command: Callable[[Any], dict[str, Any]], config_type: type) -> None:
  """Runs a benchmark from the command line."""
  print(json.dumps(command(tyro.cli(config_type)), indent=2))


if __name__ == '__main__':
  run(main, LoaderBenchmark)
