"""What training runs of one experiment, with several seeds, show together.

A test on the episodes of one agent says whether that agent is better. What an
experiment claims is about agents that are trained afresh: its unit is the
training seed, and its interval is over seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import json
import math
import pathlib
from typing import Any

import numpy as np
from scipy import special

_NEEDED = (
  'seed', 'config', 'tokenizer', 'dynamics', 'agents', 'best_clone',
  'rl_vs_best_clone', 'rl_vs_best_clone_steps',
)  # fmt: skip
"""What `results.json` must have."""
RESULTS = 'results.json'
"""What an evaluation writes into the directory of a run."""
BEST = 'best clone'
"""Name that stands, among the policies, for the best clone of each run."""


def load_results(
  run_dirs: Sequence[pathlib.Path],
) -> dict[str, dict[str, Any]]:
  """Reads `results.json` of runs, by directory; each counts once.

  Raises:
    FileNotFoundError: a run was not evaluated.
    ValueError: a file is not JSON.
  """
  found = {}
  for run in run_dirs:
    path = run / RESULTS
    if not path.is_file():
      raise FileNotFoundError(
        f'{path}: no such file; evaluate the run with `dreamer4 evaluate {run}`'
      )
    try:
      found[str(run)] = json.loads(path.read_text())
    except ValueError as error:
      raise ValueError(
        f'{path}: is no JSON ({error}); write it again with `dreamer4 evaluate '
        f'{run}`'
      ) from error
  return found


def student_interval(
  values: Sequence[float], level: float = 0.95
) -> dict[str, Any]:
  """Estimates a mean by Student's t.

  Args:
    values: independent ones, at least one, such as one for each training seed.
    level: probability that the interval holds the mean.

  Returns:
    `mean`; `interval`, a pair, None for a single value; `n`.

  Raises:
    ValueError: there are no values.
  """
  x = np.asarray(values, np.float64)
  if x.ndim != 1 or not x.size:
    raise ValueError(f'values {x.shape}: must be a list of at least one number')
  mean, interval = float(x.mean()), None
  if x.size > 1:
    t = special.stdtrit(x.size - 1, (1 + level) / 2)
    spread = float(t * x.std(ddof=1) / math.sqrt(x.size))
    interval = [mean - spread, mean + spread]
  return {'mean': mean, 'interval': interval, 'n': int(x.size)}


def check_results(results: Mapping[str, Any], run: str) -> None:
  """Raises `ValueError` unless `dreamer4 evaluate` could have written these."""
  missing = [name for name in _NEEDED if name not in results]
  if missing:
    raise ValueError(
      f'{run}: results.json has no {", ".join(missing)}; it is of an older '
      f'version, evaluate the run again with `dreamer4 evaluate {run}`'
    )


def summarise(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """Combines the results of several training seeds.

  Args:
    runs: what `results.json` holds, by name of the run; at least one.

  Returns:
    Plain data. `measure`: `success`, or `return` if success is undefined in
    some run. `runs`: a row of figures for each run, None for what it does not
    have. `rl_minus_best_clone`: `student_interval` of the differences over
    runs. `steps`: likewise for the steps where both succeed, over the runs that
    have them, or None. `policies`: for each policy, including `BEST`,
    `student_interval` of its `score` (by the measure), `steps` and `return`
    over the runs that have it. `warnings`: sentences.

  Raises:
    ValueError: there are no runs, or one lacks what is needed.
  """
  if not runs:
    raise ValueError('runs: there are none; name at least one')
  for name, results in runs.items():
    check_results(results, name)
  known = all(
    agent['success'] is not None
    for results in runs.values()
    for agent in results['agents'].values()
  )
  measure = 'success' if known else 'return'
  rows = [_row(name, results, measure) for name, results in runs.items()]
  steps = [row['steps']['difference'] for row in rows if row['steps']]
  return {
    'measure': measure,
    'runs': rows,
    'rl_minus_best_clone': student_interval(
      [row['difference'] for row in rows]
    ),
    'steps': student_interval(steps) if steps else None,
    'policies': _policies(list(runs.values()), measure),
    'warnings': list(_warnings(runs)),
  }


def _row(name: str, results: Mapping[str, Any], measure: str) -> dict[str, Any]:
  """The figures of one run."""
  tokenizer, dynamics = results['tokenizer'], results['dynamics']
  agents, best = results['agents'], results['best_clone']
  reality = results.get('reality') or {}
  places = (tokenizer.get('player') or {}).values()
  seen = [p['right'] for p in places if p['right'] is not None]
  score = {k: _score(a, measure) for k, a in agents.items()}
  dreams = {f'exact_{h}': dynamics.get(f'exact_{h}') for h in (1, 16)}
  if dreams['exact_16'] is None:
    dreams['psnr_16'] = dynamics.get('psnr_16')
  return {
    'run': name,
    'seed': results['seed'],
    'tokenizer': {
      'psnr': tokenizer['psnr'],
      'exact': tokenizer.get('exact'),
      'player': min(seen) if seen else None,
    },
    'dynamics': dreams,
    'phantom': {
      who: (reality.get(who) or {}).get('phantom') for who in ('bc', 'rl')
    },
    'random': score['random'],
    'best_clone': {'name': best, 'score': score[best]},
    'rl': {k: v for k, v in score.items() if k.startswith('rl')},
    'difference': score['rl'] - score[best],
    'test': results['rl_vs_best_clone'],
    'steps': results['rl_vs_best_clone_steps'],
  }


def _score(agent: Mapping[str, Any], measure: str) -> float:
  return agent['success'] if measure == 'success' else agent['mean_return']


def _policies(
  runs: Sequence[Mapping[str, Any]], measure: str
) -> dict[str, dict[str, Any]]:
  """Figures of each policy over the runs that have it."""
  found: dict[str, list[Mapping[str, Any]]] = {}
  for results in runs:
    agents = results['agents']
    for name, agent in agents.items():
      found.setdefault(name, []).append(agent)
    found.setdefault(BEST, []).append(agents[results['best_clone']])
  return {
    name: {
      'score': student_interval([_score(a, measure) for a in agents]),
      'steps': student_interval([a['mean_length'] for a in agents]),
      'return': student_interval([a['mean_return'] for a in agents]),
    }
    for name, agents in found.items()
  }


def _warnings(runs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
  """Says why the runs may not be training seeds of one experiment."""
  seeds = [results['seed'] for results in runs.values()]
  twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
  if twice:
    yield (
      f'seed {", ".join(map(str, twice))} is that of more than one run; these '
      'are not independent'
    )
  fields = differing_fields([results['config'] for results in runs.values()])
  if fields:
    yield (
      f'the runs differ in more than their seeds: {", ".join(fields)}; they '
      'are not of one experiment'
    )


def differing_fields(configs: Sequence[Mapping[str, Any]]) -> list[str]:
  """Names the fields in which configs differ, other than seed and latents.

  Args:
    configs: as plain data.

  Returns:
    Dotted names. Each run has its own directories of latents; the datasets that
    they were made from are compared.
  """
  flat = [dict(_flatten(config)) for config in configs]
  names = dict.fromkeys(name for fields in flat for name in fields)
  return [
    name
    for name in names
    if name != 'seed'
    and not name.endswith('latents')
    and any(fields.get(name) != flat[0].get(name) for fields in flat)
  ]


def _flatten(value: Any, name: str = '') -> Iterator[tuple[str, Any]]:
  if isinstance(value, Mapping):
    items = value.items()
  elif isinstance(value, list) and any(isinstance(v, Mapping) for v in value):
    items = enumerate(value)
  else:
    yield name, value
    return
  for key, inner in items:
    yield from _flatten(inner, f'{name}.{key}' if name else str(key))


def markdown(report: Mapping[str, Any]) -> str:
  """Returns what `summarise` found as Markdown."""
  rows, measure = report['runs'], report['measure']
  lines = [f'Warning: {text}.\n' for text in report['warnings']]
  lines += [_table([_cells(row) for row in rows]), '']
  lines += [
    f'Scores are {measure}. Tests compare rl with the best clone of the same '
    'run, on the same episodes; those of steps where both succeed.',
    '',
    f'rl - best clone, {measure}, over {_count(len(rows), "training seed")}: '
    f'{_estimate(report["rl_minus_best_clone"], signed=True)}.',
    '',
  ]
  if report['steps']:
    n = report['steps']['n']
    lines += [
      'rl - best clone, steps where both succeed, over '
      f'{_count(n, "training seed")}: '
      f'{_estimate(report["steps"], signed=True)}.',
      '',
    ]
  table = [
    {
      'policy': name,
      measure: _estimate(figures['score']),
      'steps': _estimate(figures['steps'], digits=1),
      'return': _estimate(figures['return']),
      'runs': str(figures['score']['n']),
    }
    for name, figures in report['policies'].items()
  ]
  lines += [_table(table), '']
  lines += [
    'Means over runs, with 95 % intervals of Student over training seeds.'
  ]
  return '\n'.join(lines)


def _cells(row: Mapping[str, Any]) -> dict[str, str | None]:
  """A row of the table of runs; None for what the run does not have."""
  tokenizer, dynamics, best = (
    row[k] for k in ('tokenizer', 'dynamics', 'best_clone')
  )
  return {
    'run': row['run'],
    'seed': str(row['seed']),
    'tokenizer dB': _number(tokenizer['psnr'], 1),
    'exact': _number(tokenizer['exact']),
    'worst player': _number(tokenizer['player']),
    'dreams exact 1': _number(dynamics['exact_1']),
    'dreams exact 16': _number(dynamics['exact_16']),
    'dreams dB 16': _number(dynamics.get('psnr_16'), 1),
    'phantom bc': _number(row['phantom']['bc']),
    'phantom rl': _number(row['phantom']['rl']),
    'random': _number(row['random']),
    BEST: f'{_number(best["score"])} ({best["name"]})',
    **{name: _number(score) for name, score in row['rl'].items()},
    f'rl - {BEST}': _test(row['test']),
    f'rl - {BEST}, steps': _test(row['steps'], 1) if row['steps'] else None,
  }


def _table(rows: Sequence[Mapping[str, str | None]]) -> str:
  """A Markdown table, without the columns that no row has."""
  names = dict.fromkeys(name for row in rows for name in row)
  columns = [n for n in names if any(row.get(n) is not None for row in rows)]
  cells = [[row.get(name) or '-' for name in columns] for row in rows]
  lines = [columns, ['---'] * len(columns), *cells]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _test(compare: Mapping[str, Any], digits: int = 3) -> str:
  """Difference, interval and p of a paired test."""
  measure = '' if compare.get('measure') != 'return' else 'return '
  interval = _interval(compare['ci95'], digits, '+')
  p = compare['p_value']
  return f'{measure}{compare["difference"]:+.{digits}f}{interval}, p = {p:.2g}'


def _estimate(
  found: Mapping[str, Any], *, digits: int = 3, signed: bool = False
) -> str:
  sign = '+' if signed else ''
  mean = f'{found["mean"]:{sign}.{digits}f}'
  return mean + _interval(found['interval'], digits, sign)


def _interval(interval: Sequence[float] | None, digits: int, sign: str) -> str:
  if interval is None:
    return ''
  return ' [' + ', '.join(f'{x:{sign}.{digits}f}' for x in interval) + ']'


def _number(value: float | None, digits: int = 3) -> str | None:
  return None if value is None else f'{value:.{digits}f}'


def _count(n: int, noun: str) -> str:
  return f'{n} {noun}' + 's' * (n != 1)
