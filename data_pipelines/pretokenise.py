"""Runs a trained tokenizer over a dataset once and stores its latents.

python -m data_pipelines.pretokenise --run runs/NAME --dataset DIR --out DIR

The dynamics then never touches pixels: set `data.sources.0.latents` to the new
dataset. It carries the tokenizer's fingerprint, and training with another
tokenizer refuses it. Every episode is encoded frame by frame with a cache, as
an agent sees it when acting. Latents are stored as float16, which rounds values
in (-1, 1) by at most 2.5e-4. If the command is interrupted, calling it again
keeps the finished parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import json
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from data_pipelines import writer
from data_pipelines.command import in_words_of, main_of
from data_pipelines.files import stamp
from dreamer4_jax.checkpoint import load_params
from dreamer4_jax.config import require
from dreamer4_jax.data import EpisodeSource, novelty
from dreamer4_jax.data import format as fmt
from dreamer4_jax.data.sources import Request, Stretch, open_builder
from dreamer4_jax.models import Params, World, tokenizer_caches
from dreamer4_jax.nn import TimeCache, append, start_segment
from dreamer4_jax.types import Array, Vectors

PART_BYTES = 1 << 28
"""Bytes of latents between points from which an interrupted run can resume."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretokeniseConfig:
  """Which tokenizer, which dataset, and how."""

  run: str
  """Run directory of the tokenizer."""
  dataset: str
  """Dataset of frames."""
  out: str
  """Directory of the dataset of latents to write."""
  streams: int = 32
  """Episodes that are encoded in parallel."""
  block: int = 16
  """Frames of each episode that are encoded in one call."""
  overwrite: bool = False
  """Replace a finished dataset."""

  def __post_init__(self):
    for name in ('streams', 'block'):
      value = getattr(self, name)
      require(value >= 1, name, value, 'must be at least 1')


def pretokenise_run(run: str, dataset: str, out: str) -> dict[str, int]:
  """Stores the latents of a run's trained tokenizer, as an experiment does."""
  return pretokenise(PretokeniseConfig(run=run, dataset=dataset, out=out))


def pretokenise(
  config: PretokeniseConfig, *, progress: bool = True
) -> dict[str, int]:
  """Writes the dataset of latents.

  Returns:
    Frames by split.

  Raises:
    FileNotFoundError: no dataset, or no trained tokenizer.
    FileExistsError: there is something at `config.out`.
    ValueError: the dataset's frames or vectors do not fit the tokenizer, or it
      holds latents.
  """
  out = writer.check_output(config.out, overwrite=config.overwrite, in_run=True)
  trained, run = load_params(config.run, 'tokenizer')
  world = World.from_config(run)
  tokenizer = world.fingerprint(trained)
  t = run.tokenizer
  with in_words_of({'SourceConfig.path': 'dataset'}):
    splits = sorted(open_builder(config.dataset).info.splits)
  sources = {
    split: EpisodeSource(
      config.dataset,
      split,
      frame_shape=t.frame_shape,
      vectors=run.vectors,
      cache_bytes=0,
    )
    for split in splits
  }
  given = next(iter(sources.values())).description
  if given.tokenizer:
    raise ValueError(
      f'{config.dataset}: found latents of tokenizer {given.tokenizer}, '
      'expected frames'
    )
  description = dataclasses.replace(
    given,
    tokenizer=tokenizer,
    latent_shape=t.latent_shape,
    vectors=(),
    source={**given.source, 'frames_of': str(pathlib.Path(config.dataset))},
  )
  work = writer.work_directory(
    out, key=[tokenizer, str(config), _stamps(config.dataset)]
  )
  encode = jax.jit(functools.partial(encode_block, world))
  params = jax.tree.map(jnp.asarray, {'tokenizer': trained['tokenizer']})
  cache, _ = tokenizer_caches(world.tokenizer, config.streams)
  part_frames = PART_BYTES // (2 * t.num_latents * t.bottleneck_dim)
  frames = {name: int(s.index.lengths.sum()) for name, s in sources.items()}
  shards: dict[str, list[pathlib.Path]] = {}
  with tqdm.tqdm(
    total=sum(frames.values()),
    desc='pretokenise',
    unit=' frames',
    disable=not progress,
  ) as bar:
    for split, source in sources.items():
      shards[split] = []
      parts = _parts(source.index.lengths, part_frames)
      for number, part in enumerate(parts):
        path = work / f'{split}-{number:05d}'
        shards[split].append(path)
        if not writer.index_path(path).exists():
          with writer.Shard(path, description) as shard:
            for episode in _encode_part(
              config, encode, params, cache, source, part
            ):
              shard.add(episode)
        bar.update(int(source.index.lengths[part.start : part.stop].sum()))
  writer.publish(out, work, description, shards)
  for split in splits:
    # The episodes are the same, in the same order.
    weights = novelty.weights_path(config.dataset, split)
    if weights.exists():
      shutil.copy(weights, novelty.weights_path(out, split))
  return frames


def _stamps(dataset: str) -> list[tuple[str, int, int]]:
  """Returns what changes when a dataset grows or is made again."""
  folder = pathlib.Path(dataset).expanduser()
  # The weights of rare frames may be measured at any time.
  files = [p for p in sorted(folder.iterdir()) if p.suffix != '.npy']
  return [(p.name, *stamp(str(p))) for p in files]


def encode_block(
  world: World,
  params: Params,
  cache: TimeCache,
  frames: Array,
  vectors: Vectors,
  first: Array,
) -> tuple[Array, TimeCache]:
  """Encodes the next frames of B streams; jit it.

  Args:
    world: modules.
    params: entry `tokenizer`.
    cache: of the encoder.
    frames: `[B, T, H, W, C]` uint8.
    vectors: what is seen beside them, components `[B, T, n]`.
    first: `[B, T]` bool, an episode starts with this frame.

  Returns:
    Latents `[B, T, L, b]` float16, and the new cache.
  """

  def body(cache, item):
    (frame, beside), is_first = item
    cache = start_segment(cache, is_first)
    z, new = world.latents(params, frame, vectors=beside, cache=cache)
    return append(cache, new), z[:, 0].astype(jnp.float16)

  time_leading = lambda x: jnp.moveaxis(x, 1, 0)
  single = lambda x: time_leading(x)[:, :, None]
  seen = jax.tree.map(single, (frames, vectors))
  cache, z = jax.lax.scan(body, cache, (seen, time_leading(first)))
  return jnp.moveaxis(z, 0, 1), cache


def _encode_part(
  config: PretokeniseConfig,
  encode: Any,
  params: Params,
  cache: TimeCache,
  source: EpisodeSource,
  part: range,
) -> Iterator[writer.Episode]:
  """Yields the episodes of a part, in order, with latents instead of frames."""
  lengths = {e: int(source.index.lengths[e]) for e in part}
  steps = {e: source.allocate((1, n)) for e, n in lengths.items()}
  latents: dict[int, list[np.ndarray]] = {e: [] for e in part}
  seen_only = lambda name: name == 'observation' or name.startswith('vector/')
  for arrays in steps.values():
    for name in filter(seen_only, list(arrays)):
      arrays.pop(name)
  ribbons = _deal(lengths, config.streams)
  longest = max(sum(lengths[e] for e in ribbon) for ribbon in ribbons)
  shape = (config.streams, config.block)
  # Zeros where no episode is read into them, and not uninitialised infinities.
  into = {
    name: np.zeros_like(x)
    for name, x in source.allocate(shape).items()
    if seen_only(name)
  }
  seen = fmt.unflatten(into)
  for begin in range(0, longest, config.block):
    first = np.zeros(shape, bool)
    requests, places = [], []
    for row, ribbon in enumerate(ribbons):
      for stretch, column in _between(ribbon, lengths, begin, config.block):
        requests += [
          Request(stretch, into, row, column),
          Request(stretch, steps[stretch.episode], 0, stretch.start),
        ]
        places.append((stretch, row, column))
        first[row, column] |= stretch.start == 0
    source.read(requests)
    z, cache = encode(
      params, cache, seen['observation'], seen.get('vector', {}), first
    )
    z = np.asarray(z)
    for stretch, row, column in places:
      size = stretch.stop - stretch.start
      latents[stretch.episode].append(z[row, column : column + size].copy())
  for episode, arrays in steps.items():
    flat = {k: v[0] for k, v in arrays.items()}
    terminal = bool(flat['is_terminal'][-1])
    for flag in ('is_first', 'is_last', 'is_terminal'):
      flat.pop(flag)
    flat['observation'] = np.concatenate(latents[episode])
    yield writer.Episode(
      steps=flat,
      terminal=terminal,
      attributes=source.index.attributes[episode],
    )


def _parts(lengths: np.ndarray, frames: int) -> list[range]:
  """Cuts the episodes into parts of about `frames` frames."""
  parts, begin, held = [], 0, 0
  for episode, length in enumerate(lengths):
    held += int(length)
    if held >= frames or episode == len(lengths) - 1:
      parts.append(range(begin, episode + 1))
      begin, held = episode + 1, 0
  return parts


def _deal(lengths: dict[int, int], streams: int) -> list[list[int]]:
  """Deals episodes to streams of about equal length."""
  ribbons: list[list[int]] = [[] for _ in range(streams)]
  loads = [0] * streams
  for episode in sorted(lengths, key=lengths.__getitem__, reverse=True):
    least = loads.index(min(loads))
    ribbons[least].append(episode)
    loads[least] += lengths[episode]
  return ribbons


def _between(
  ribbon: Sequence[int], lengths: dict[int, int], begin: int, size: int
) -> Iterator[tuple[Stretch, int]]:
  """Yields the stretches in `size` frames of a ribbon, and their columns."""
  at = 0
  for episode in ribbon:
    start = max(0, begin - at)
    stop = min(lengths[episode], begin + size - at)
    if start < stop:
      yield Stretch(episode, start, stop), at + start - begin
    at += lengths[episode]


def _show(config: PretokeniseConfig, frames: dict[str, int]) -> None:
  print(json.dumps({'out': config.out, 'frames': frames}))


if __name__ == '__main__':
  main_of(PretokeniseConfig, pretokenise, _show, description=__doc__)
