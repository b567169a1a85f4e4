"""A page of results from the directories of evaluated runs.

Nothing is computed again: the page holds what `dreamer4 evaluate` wrote, the
plots and pictures lie beside it, and one command makes it anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import os
import pathlib
import shutil
from typing import Any

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np

from dreamer4_jax.evals import seeds
from dreamer4_jax.evals.recorded import is_recorded
from dreamer4_jax.evals.statistics import milestones, wilson

EPISODES = 'episodes.npz'
"""Every episode of an evaluation, see `policies.outcomes`."""
_PICTURES = {
  'training.png': 'the main curves of every phase, against train steps',
  'worst.png': 'the worst held-out frames, original above decoded',
  'dreams.png': 'held-out clips, real above dreamed',
  'extremes.mp4': 'the best, the median and the worst episode of rl',
  'dreams.mp4': 'held-out clips, real above dreamed',
}


def write_page(
  run_dirs: Sequence[pathlib.Path], out: pathlib.Path, command: str
) -> None:
  """Writes a page, and plots and pictures beside it.

  Args:
    run_dirs: evaluated runs of one experiment that differ in their seed.
    out: Markdown file; what belongs to it is named after it.
    command: shown as what makes the page.

  Raises:
    FileNotFoundError: a run was not evaluated.
    ValueError: results are not what an evaluation writes.
  """
  runs = seeds.load_results(run_dirs)
  report = seeds.summarise(runs)
  out.parent.mkdir(parents=True, exist_ok=True)
  first = next(iter(runs.values()))
  lines = [f'# {first["config"]["env"]["name"]}', '', seeds.markdown(report)]
  played = _episodes(run_dirs)
  if played:
    lines += ['', *achievement_lines(played, _asked(first))]
    picture = out.with_name(f'{out.stem}-milestones.png')
    plot_milestones(played, _asked(first), first['best_clone'], picture)
    lines += ['', f'![milestones]({picture.name})']
  for name, what in _PICTURES.items():
    path = pathlib.Path(next(iter(runs))) / name
    if path.is_file():
      copy = out.with_name(f'{out.stem}-{name}')
      shutil.copyfile(path, copy)
      mark = '!' if copy.suffix == '.png' else ''
      lines += ['', f'{mark}[{what}]({copy.name})']
  lines += ['', *_provenance(runs, command)]
  text = '\n'.join(lines) + '\n'
  temporary = out.with_suffix('.tmp')
  temporary.write_text(text)
  os.replace(temporary, out)


def _asked(results: Mapping[str, Any]) -> list[str]:
  """Names of the tasks of the prompt, in order."""
  config = results['config']
  tasks, prompt = config['tasks'], config.get('prompt') or config['tasks']
  name = lambda stage: stage if stage in tasks else stage.rpartition(':')[0]
  # The last of the prompt is the goal, whatever it names before.
  return [*dict.fromkeys(name(stage) for stage in reversed(prompt))][::-1]


Played = dict[str, dict[str, list[np.ndarray]]]
"""By policy and field, an array of every run, `[episodes, ...]`."""


def _episodes(run_dirs: Sequence[pathlib.Path]) -> dict[str, Any]:
  """Reads every episode of every run; empty if a run lacks the file."""
  found: Played = {}
  tasks: list[str] = []
  for run in run_dirs:
    if not (run / EPISODES).is_file():
      return {}
    with np.load(run / EPISODES) as archive:
      tasks = archive['tasks'].tolist()
      for name in archive.files:
        policy, _, field = name.rpartition('/')
        # Runs on the same recordings: they count once.
        if policy and not (run != run_dirs[0] and is_recorded(policy)):
          own = found.setdefault(policy, {})
          own.setdefault(field, []).append(archive[name])
  return {'tasks': tasks, 'policies': found} if len(tasks) > 3 else {}


def achievement_lines(
  played: Mapping[str, Any], asked: Sequence[str]
) -> list[str]:
  """What episodes achieve, by policy, and rl against every clone.

  Args:
    played: `tasks`, and by policy and field an array of every run.
    asked: tasks of the prompt.
  """
  tasks, policies = played['tasks'], played['policies']
  index = [tasks.index(name) for name in asked]
  counts = {
    name: {
      'achievements': [a.sum(axis=1) for a in own['achieved']],
      'milestones': [a[:, index].sum(axis=1) for a in own['achieved']],
    }
    for name, own in policies.items()
  }
  lines = [
    '## What episodes achieve',
    '',
    f'Different tasks in an episode, of all {len(tasks)} and of the '
    f'{len(asked)} that are asked for; and the share of episodes with each of '
    "these. Means over runs, with Student's 95 % intervals over them; "
    '`recorded` is what the held-out recordings contain, by the noise of their '
    'player.',
    '',
    f'| policy | achievements | milestones | {" | ".join(asked)} |',
    '|---' * (3 + len(asked)) + '|',
  ]
  for name, own in counts.items():
    cells = [_over_runs(own[kind]) for kind in ('achievements', 'milestones')]
    for i in index:
      share = np.mean([a[:, i].mean() for a in policies[name]['achieved']])
      cells.append(f'{share:.2f}')
    lines.append(f'| {name} | {" | ".join(cells)} |')
  lines += [
    '',
    '| paired difference | achievements | milestones |',
    '|---|---|---|',
  ]
  for name in counts:
    if name.startswith('bc') and 'rl' in counts:
      cells = [
        _over_runs(
          [a - b for a, b in zip(counts['rl'][kind], counts[name][kind],
                                 strict=True)],
          signed=True,
        )
        for kind in ('achievements', 'milestones')
      ]  # fmt: skip
      lines.append(f'| rl - {name} | {" | ".join(cells)} |')
  return [*lines, '', *_goal_lines(played)]


def _goal_lines(played: Mapping[str, Any]) -> list[str]:
  """How often episodes succeed, all runs together."""
  lines = [
    "Success, all runs together, with Wilson's 95 % interval:",
    '',
    '| policy | share of episodes |',
    '|---|---|',
  ]
  for name, own in played['policies'].items():
    success = np.concatenate(own['success'])
    low, high = wilson(int(success.sum()), len(success))
    lines.append(f'| {name} | {success.mean():.3f} [{low:.3f}, {high:.3f}] |')
  steps = milestone_steps(played)
  return [*lines, '', *steps]


def milestone_steps(played: Mapping[str, Any]) -> list[str]:
  """The median step on which rl first achieves each task, where it does."""
  own = played['policies'].get('rl')
  if own is None:
    return []
  achieved, first = (
    np.concatenate(own[field]) for field in ('achieved', 'first')
  )
  found = milestones(achieved, first, played['tasks'])
  steps = [
    (f['median_step'], name)
    for name, f in found.items()
    if f['median_step'] is not None
  ]
  text = ', '.join(f'{name} {step:.0f}' for step, name in sorted(steps))
  return [f'Median step of the first of each, rl: {text}.']


def _over_runs(values: Sequence[np.ndarray], *, signed: bool = False) -> str:
  found = seeds.student_interval([float(np.mean(v)) for v in values])
  sign = '+' if signed else ''
  text = f'{found["mean"]:{sign}.2f}'
  if found['interval']:
    low, high = found['interval']
    text += f' [{low:{sign}.2f}, {high:{sign}.2f}]'
  return text


def plot_milestones(
  played: Mapping[str, Any],
  asked: Sequence[str],
  best: str,
  path: pathlib.Path,
) -> None:
  """Draws the share of episodes with each milestone, policy by policy.

  Args:
    played: as in `achievement_lines`.
    asked: tasks of the prompt.
    best: name of the best clone.
    path: of the picture.
  """
  policies = played['policies']
  shown = [n for n in dict.fromkeys(('random', 'bc', best, 'rl'))
           if n in policies]  # fmt: skip
  figure, axis = plt.subplots(figsize=(max(5, 0.6 * len(asked)), 3.4))
  width = 0.8 / len(shown)
  for k, name in enumerate(shown):
    shares = np.stack(
      [
        [a[:, played['tasks'].index(task)].mean() for task in asked]
        for a in policies[name]['achieved']
      ]
    )
    place = np.arange(len(asked)) + (k - (len(shown) - 1) / 2) * width
    axis.bar(place, shares.mean(axis=0), width, label=name)
    for run in shares:
      axis.plot(place, run, 'k.', markersize=2)
  axis.set_xticks(range(len(asked)), [n.replace('_', ' ') for n in asked],
                  rotation=45, ha='right')  # fmt: skip
  axis.set(ylabel='share of episodes', ylim=(0, 1))
  axis.legend(fontsize='small')
  figure.tight_layout()
  figure.savefig(path, dpi=100)
  plt.close(figure)


def _provenance(
  runs: Mapping[str, Mapping[str, Any]], command: str
) -> list[str]:
  """Hardware, versions, commits, seconds, and the command."""
  lines = ['## How this was made', '']
  lines += ['| run | seed | hardware | commit | hours |', '|---' * 5 + '|']
  for name, results in runs.items():
    hours = results['seconds'].get('total', 0) / 3600
    lines.append(
      f'| {name} | {results["seed"]} | {results.get("device", "-")} | '
      f'{results.get("commit") or "-"} | {hours:.1f} |'
    )
  first = next(iter(runs.values()))
  versions = ', '.join(f'{k} {v}' for k, v in first['versions'].items())
  return [*lines, '', f'{versions}.', '', f'This page: `{command}`.']
