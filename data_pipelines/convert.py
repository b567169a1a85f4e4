"""What all converters share: many inputs, several processes, one dataset.

A converter provides a list of `Input` and a function that writes one of them
to a `writer.Shard`. Here they are grouped into parts, converted in parallel,
and published as one dataset. A bad input is skipped, counted and named in the
report; the others are not affected. After an interruption, the same command
keeps the parts that are done. Nothing is overwritten unless asked for.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
import concurrent.futures
from concurrent.futures.process import BrokenProcessPool
import dataclasses
import hashlib
import json
import logging
import multiprocessing
import os
import pathlib
import sys
from typing import Any

import tqdm

from data_pipelines import writer
from data_pipelines.command import main_of as main_of_command
from data_pipelines.files import stamp
from dreamer4_jax.config import require
from dreamer4_jax.data import format as fmt
from dreamer4_jax.runtime.memory import keep_freed_memory

_LOG = logging.getLogger(__name__)
PARTS = 512
"""A dataset has at most about this many shards."""
REPORT = 'conversion.json'
"""Name of the report in the directory of the dataset."""


class SkipError(Exception):
  """An input cannot be used; the message says why, in a few words."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
  """One thing to convert.

  Attributes:
    name: its name in the report.
    split: where its episodes go.
    what: whatever the converter needs, as plain data.
    files: that it is read from; if one changes, it is converted again.
  """

  name: str
  split: str
  what: Any
  files: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
  """Options of every converter: where a dataset goes and how it is made."""

  out: str
  """Directory of the dataset to write."""
  workers: int = 0
  """Processes; 0 uses one per core, 1 works in this process."""
  chunk_length: int = 8
  """Frames in a record: a quarter or half of a training clip is good."""
  overwrite: bool = False
  """Replace a finished dataset."""

  def __post_init__(self):
    require(self.workers >= 0, 'workers', self.workers, 'must be at least 0')


# Writes an input's episodes to the shard; returns counts of what was
# noted: `{'lines without a frame': 3}`. Raises `SkipError` or `EpisodeError`.
Convert = Callable[[Input, writer.Shard], dict[str, int]]


@dataclasses.dataclass(frozen=True)
class _Part:
  """Some inputs of one split, which share a shard."""

  path: pathlib.Path
  inputs: tuple[Input, ...]


def run(
  output: Output,
  description: fmt.Description,
  inputs: Sequence[Input],
  convert: Convert,
  *,
  settings: Any = None,
  notes: Mapping[str, int] | None = None,
  progress: bool = True,
) -> dict[str, Any]:
  """Converts all inputs and publishes the dataset.

  Args:
    output: where to write, and how.
    description: of the dataset.
    inputs: in the order in which episodes are wanted.
    convert: a picklable function, such as a `functools.partial` of a
      module-level function; it runs in other processes.
    settings: plain data on which the result depends; parts that were made with
      other settings are not reused.
    notes: for the report, on all inputs together.
    progress: show a bar with the time left.

  Returns:
    The report, which is also in the dataset's directory: inputs, episodes and
    frames by split, `skipped` (name to reason) and `notes` (text to count).

  Raises:
    FileExistsError: there is something at `output.out`.
    ValueError: nothing could be read; the message gives the reasons.
  """
  out = writer.check_output(output.out, overwrite=output.overwrite)
  if not inputs:
    raise ValueError(f'{out}: found no input at all')
  key = [
    repr(description),
    repr(settings),
    [dataclasses.astuple(i) for i in inputs],
    sorted({(file, *stamp(file)) for i in inputs for file in i.files}),
  ]
  digest = hashlib.sha256(json.dumps(key, default=str).encode()).hexdigest()
  work = writer.work_directory(out, key=digest)
  parts = _parts(work, inputs)
  job = _Job(description, convert)
  with tqdm.tqdm(
    total=len(inputs), desc='convert', unit=' inputs', disable=not progress
  ) as bar:
    _convert_all(job, parts, output.workers or os.cpu_count() or 1, work, bar)
  outcomes = [o for part in parts for o in _outcomes(part.path)]
  report = _report(inputs, outcomes, notes or {})
  if not any(s['episodes'] for s in report['splits'].values()):
    reasons = '; '.join(
      f'{n}: {r}' for n, r in list(report['skipped'].items())[:5]
    )
    raise ValueError(
      f'{out}: none of {len(inputs)} inputs could be read: {reasons}'
    )
  shards: dict[str, list[pathlib.Path]] = {}
  for part in parts:
    split = part.inputs[0].split
    if report['splits'][split]['episodes']:
      shards.setdefault(split, []).append(part.path)
  writer.publish(out, work, description, shards, files={REPORT: report})
  return report


def print_report(out: str, report: dict[str, Any]) -> None:
  """Prints what was read, skipped and why."""
  for split, counts in report['splits'].items():
    print(
      f'{split}: {counts["episodes"]:,} episodes, {counts["frames"]:,} frames '
      f'of {counts["inputs"]:,} inputs'
    )
  for note, count in sorted(report['notes'].items()):
    print(f'note: {note}: {count:,}')
  reasons = collections.Counter(report['skipped'].values())
  for reason, count in reasons.most_common():
    names = [n for n, r in report['skipped'].items() if r == reason]
    shown = ', '.join(printable(name) for name in names[:3])
    more = ', ...' if count > 3 else ''
    print(f'skipped {count:,}: {reason} ({shown}{more})')
  print(f'written to {out}; the whole report is {REPORT} there')


def split_of(group: str, eval_share: float) -> str:
  """Returns 'train' or 'test', the same for all members of a group.

  Args:
    group: what must stay together, such as the session of a recording.
    eval_share: expected share of groups in 'test'.
  """
  digest = hashlib.sha256(group.encode('utf-8', 'surrogateescape')).digest()
  return 'test' if int.from_bytes(digest[:4]) < eval_share * 2**32 else 'train'


def check_names(name: str, value: Sequence[str], form: str) -> None:
  """Checks an option whose parts are each NAME=FIELD, or a name alone.

  Args:
    name: of the option.
    value: its parts.
    form: of a part, for the message.

  Raises:
    ValueError: a name is not a Python identifier, or occurs twice.
  """
  names = [text.partition('=')[0] for text in value]
  require(
    all(n.isidentifier() for n in names) and len(set(names)) == len(names),
    name,
    value,
    f'must be {form} each, with distinct names of letters, digits and '
    'underscores',
  )


def printable(name: str) -> str:
  """Returns a file name with non-UTF-8 bytes escaped."""
  raw = name.encode('utf-8', 'surrogateescape')
  return raw.decode('utf-8', 'backslashreplace')


def _parts(work: pathlib.Path, inputs: Sequence[Input]) -> list[_Part]:
  size = -(-len(inputs) // PARTS)
  parts = []
  for split in dict.fromkeys(i.split for i in inputs):
    own = [i for i in inputs if i.split == split]
    for begin in range(0, len(own), size):
      path = work / f'{split}-{len(parts):05d}'
      parts.append(_Part(path, tuple(own[begin : begin + size])))
  return parts


@dataclasses.dataclass(frozen=True)
class _Job:
  """Converts one part; runs in another process."""

  description: fmt.Description
  convert: Convert

  def __call__(self, part: _Part, crashed: frozenset[str]) -> None:
    outcomes = []
    with writer.Shard(part.path, self.description) as shard:
      for item in part.inputs:
        _current(part.path).write_text(json.dumps(item.name))
        outcomes.append(self._one(item, shard, crashed))
      writer.write_json(_outcome_path(part.path), outcomes)
    _current(part.path).unlink()

  def _one(
    self, item: Input, shard: writer.Shard, crashed: frozenset[str]
  ) -> dict[str, Any]:
    before = len(shard.index.lengths)
    notes: dict[str, int] = {}
    reason = None
    try:
      if item.name in crashed:
        raise SkipError('the process that read it died')
      notes = self.convert(item, shard)
      if len(shard.index.lengths) == before:
        raise SkipError('no episode in it')
    except (SkipError, writer.EpisodeError) as error:
      reason = str(error)
    except MemoryError:
      raise
    except Exception as error:
      _LOG.debug('%s', item.name, exc_info=True)
      first_line = (str(error).splitlines() or [''])[0][:200]
      reason = f'unreadable ({type(error).__name__}: {first_line})'
    if reason is not None:
      shard.abandon()
      shard.forget(before)
    lengths = shard.index.lengths[before:]
    return {
      'name': item.name,
      'skipped': reason,
      'notes': notes,
      'episodes': len(lengths),
      'frames': sum(lengths),
    }


def _convert_all(
  job: _Job,
  parts: Sequence[_Part],
  workers: int,
  work: pathlib.Path,
  bar: tqdm.tqdm,
) -> None:
  pending = [p for p in parts if not writer.index_path(p.path).exists()]
  bar.update(sum(len(p.inputs) for p in parts if p not in pending))
  if workers == 1:
    for part in pending:
      job(part, frozenset())
      bar.update(len(part.inputs))
    return
  crashed: set[str] = set()
  context = multiprocessing.get_context('spawn')
  while pending:
    with concurrent.futures.ProcessPoolExecutor(
      min(workers, len(pending)),
      mp_context=context,
      initializer=keep_freed_memory,
    ) as pool:
      futures = {
        pool.submit(job, part, frozenset(crashed)): part for part in pending
      }
      try:
        for future in concurrent.futures.as_completed(futures):
          future.result()
          bar.update(len(futures[future].inputs))
      except BrokenProcessPool:
        # Only a process on its own shows which input killed it.
        if workers == 1:
          crashed |= {
            json.loads(_current(p.path).read_text())
            for p in pending
            if _current(p.path).exists()
          }
        workers = 1
      except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    for path in work.glob('*.current'):
      path.unlink(missing_ok=True)
    pending = [p for p in pending if not writer.index_path(p.path).exists()]


def _current(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(path.name + '.current')


def _outcome_path(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(path.name + '.outcomes.json')


def _outcomes(path: pathlib.Path) -> list[dict[str, Any]]:
  return json.loads(_outcome_path(path).read_text())


def _report(
  inputs: Sequence[Input],
  outcomes: Sequence[dict[str, Any]],
  known: Mapping[str, int],
) -> dict[str, Any]:
  split_of_name = {i.name: i.split for i in inputs}
  splits: dict[str, dict[str, int]] = {}
  notes: collections.Counter[str] = collections.Counter(known)
  for outcome in outcomes:
    split = splits.setdefault(
      split_of_name[outcome['name']], {'inputs': 0, 'episodes': 0, 'frames': 0}
    )
    split['inputs'] += outcome['skipped'] is None
    split['episodes'] += outcome['episodes']
    split['frames'] += outcome['frames']
    notes.update(outcome['notes'])
  return {
    'splits': splits,
    'skipped': {o['name']: o['skipped'] for o in outcomes if o['skipped']},
    'notes': dict(notes),
  }


def main_of(
  config_type: type, command: Callable[[Any], dict[str, Any]]
) -> None:
  """Runs a converter from the command line; see `command.main_of`."""
  main_of_command(
    config_type,
    command,
    lambda config, report: print_report(config.out, report),
    description=sys.modules[config_type.__module__].__doc__,
  )
