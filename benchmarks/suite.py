"""All measurements that the project reports, and their table.

python -m benchmarks.suite --device gpu --minutes 10
python -m benchmarks.suite --device cpu

Each is a benchmark in a process of its own. What it prints is kept in
`results/DEVICE/NAME.json`, and a measurement that is there is not repeated, so
the same command resumes where it stopped. `results/README.md` is rewritten
each time; it lists what has not been measured yet, and beside what was measured
on an H100 what `docs/gpu_report.json` estimated for one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import json
import pathlib
import subprocess
import sys
import time
from typing import Any, Literal

import tyro

from dreamer4_jax.config import require

RESULTS = pathlib.Path(__file__).parent / 'results'
REPORT = pathlib.Path(__file__).parents[1] / 'docs/gpu_report.json'


@dataclasses.dataclass(frozen=True)
class Measurement:
  """A benchmark with its options.

  Attributes:
    what: what is measured, for the table.
    arguments: of `python -m`.
    wanted: what the project aims at.
    job: the fields of `aot.Job` by which its estimate is found.
  """

  what: str
  arguments: str
  wanted: str = ''
  job: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _play(
  preset: str, steps: int, wanted: str = '', games: int = 1
) -> Measurement:
  side = f', {games} games' if games > 1 else ''
  return Measurement(
    f'a frame of play, {preset}, K = {steps}{side}',
    f'interactive --preset {preset} --steps {steps} --batch {games} '
    '--play 1000',
    wanted,
    dict(program='frame', preset=preset, steps=steps, rows=games),
  )


def _train(
  preset: str,
  rows: int,
  wanted: str = '',
  phase: str = 'dynamics',
  length: int = 64,
) -> Measurement:
  # The benchmark gives the tokenizer half of both.
  more = 2 if phase == 'tokenizer' else 1
  return Measurement(
    f'{phase} step, {preset}, {rows} clips of {length} frames',
    f'train --preset {preset} --phases {phase} --batch {more * rows} '
    f'--length {more * length}',
    wanted,
    dict(program=phase, preset=preset, rows=rows, length=length),
  )


MEASUREMENTS: Mapping[str, Mapping[str, Measurement]] = {
  'gpu': {
    'play-paper-4': _play('paper', 4, '63 frames/s or more'),
    'play-paper-4-games': _play('paper', 4, '75 frames/s or more', games=4),
    'train-base': _train('base', 32, '45 % or more'),
    'train-tokenizer-base': _train('base', 16, '40 % or more', 'tokenizer', 32),
    'imagination-base': Measurement(
      'imagination, base',
      'imagination --preset base --batches 16 64 256 --repeats 3',
    ),
    'train-paper': _train('paper', 4, '45 % or more'),
    'train-tokenizer-paper': _train('paper', 1, '40 % or more', 'tokenizer', 8),
    'play-paper-1': _play('paper', 1),
    'play-paper-2': _play('paper', 2),
    'play-paper-8': _play('paper', 8),
    'play-base-4': _play('base', 4),
  },
  'cpu': {
    'play-reference-4': Measurement(
      'a frame of play, reference, K = 4',
      'interactive --play 10000',
      'dynamics at most 1.15 of its passes; last over first 1.0',
    ),
    'imagination-reference': Measurement(
      'imagination, reference',
      'imagination',
      'at most 1.2 of its passes; twice the horizon at most 2.1',
    ),
    'train-reference': Measurement(
      'train steps, reference', 'train', '60 % or more'
    ),
    'compile-time': Measurement(
      'compiling the dynamics step, 32 layers over 8', 'compile_time'
    ),
  },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
  """What to run."""

  device: Literal['cpu', 'gpu']
  """Device whose measurements to make."""
  only: tuple[str, ...] = ()
  """Names of measurements; empty takes all."""
  again: bool = False
  """Repeat what has been measured."""
  minutes: float = 0.0
  """Stop after this many; 0 is no limit."""
  results: pathlib.Path = RESULTS
  """Directory of the results and their table."""

  def __post_init__(self):
    known = MEASUREMENTS[self.device]
    for name in self.only:
      require(name in known, 'only', name, f'must be of {", ".join(known)}')
    require(self.minutes >= 0, 'minutes', self.minutes, 'must not be negative')


def main(
  suite: Suite, run: Callable[..., Any] = subprocess.run
) -> dict[str, str]:
  """Measures and writes the table.

  Args:
    suite: what to run.
    run: runs a process, as `subprocess.run`.

  Returns:
    Why measurements failed, by name.
  """
  begin, failed = time.monotonic(), {}
  known = MEASUREMENTS[suite.device]
  for name in suite.only or known:
    file = suite.results / suite.device / f'{name}.json'
    if file.exists() and not suite.again:
      continue
    left = None
    if suite.minutes:
      left = 60 * suite.minutes - (time.monotonic() - begin)
      if left <= 0:
        failed[name] = 'no time left'
        continue
    print(f'{name}: benchmarks.{known[name].arguments}', file=sys.stderr)
    words = f'benchmarks.{known[name].arguments}'.split()
    command = [sys.executable, '-m', *words]
    try:
      done = run(command, capture_output=True, text=True, timeout=left)
    except subprocess.TimeoutExpired:
      failed[name] = 'no time left'
      continue
    if done.returncode:
      failed[name] = (done.stderr.strip().splitlines() or ['no output'])[-1]
      continue
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(done.stdout)
  for name, why in failed.items():
    print(f'{name}: {why}', file=sys.stderr)
  write_table(suite.results)
  return failed


def write_table(results: pathlib.Path) -> None:
  """Writes `README.md` of a directory of results."""
  lines = [
    '# Results',
    '',
    'Written by `python -m benchmarks.suite`; what the figures mean is said in',
    '[its README](../README.md).',
  ]
  for device, measurements in MEASUREMENTS.items():
    lines += [
      '',
      f'## {device.upper()}',
      '',
      '| what | result | wanted | `python -m benchmarks.` | measured on '
      '| estimated, H100 |',
      '|---|---|---|---|---|---|',
    ]
    for name, m in measurements.items():
      file = results / device / f'{name}.json'
      result, where = 'not yet measured', ''
      if file.exists():
        found = json.loads(file.read_text())
        result, where = _result(found), _where(found)
      lines.append(
        f'| {m.what} | {result} | {m.wanted} | `{m.arguments}` | {where} '
        f'| {_estimate(m)} |'
      )
  results.mkdir(parents=True, exist_ok=True)
  (results / 'README.md').write_text('\n'.join(lines) + '\n')


def _estimate(measurement: Measurement) -> str:
  """What the report of GPUs says of the same program on one H100."""
  if not measurement.job or not REPORT.exists():
    return ''
  wanted = {'topology': 'h100:1', **measurement.job}
  estimate = ''
  # The last one counts: those before may be of other versions of JAX.
  for key, found in json.loads(REPORT.read_text()).items():
    job = json.loads(key)
    if all(job[name] == value for name, value in wanted.items()):
      seconds = found.get('computing')
      if seconds and job['program'] == 'frame':
        estimate = f'{job["rows"] / seconds:.1f} frames/s'
      elif seconds:
        estimate = f'{seconds:.3f} s'
  return estimate


def _result(found: Mapping[str, Any]) -> str:
  """One line of what a benchmark printed."""
  programs, parts = found['programs'], []
  if 'play' in found:
    play = found['play']
    parts = [
      f'{play["frames_per_second"]:.1f} frames/s',
      f'dynamics {found["dynamics_frame_over_its_passes"]:.2f} of its passes',
      f'frame {found["frame_over_its_passes_and_picture"]:.2f} of passes and '
      'picture',
      f'last over first hundred of {play["frames"]:,} {play["growth"]:.2f}',
    ]
  elif 'ratio' in found:
    parts = [f'{found["ratio"]:.2f}']
  elif any('batch_' in name for name in found):
    for name, x in found.items():
      if name.startswith('batch_'):
        parts.append(
          f'{name.replace("_", " ")}: {x["frames_per_second"]:.0f} frames/s, '
          f'{x["rollout_over_its_passes"]:.2f} of its passes, '
          f'{x["twice_over_once"]:.2f}'
        )
  else:
    for name, x in programs.items():
      parts.append(
        f'{name} {x["seconds"]:.3f} s, {x["share_of_matmul"]:.0%} of the '
        'matmul rate'
      )
  return '; '.join(parts)


def _where(found: Mapping[str, Any]) -> str:
  m = found['machine']
  return (
    f'{m["device"]}, {m["cores"]} cores, jax {m["jax"]}, {m["date"]}, '
    f'{found["commit"]}'
  )


if __name__ == '__main__':
  sys.exit(bool(main(tyro.cli(Suite))))
