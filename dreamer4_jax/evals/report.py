"""What an evaluation found, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def markdown(results: Mapping[str, Any], horizons: tuple[int, ...]) -> str:
  """Returns the report as Markdown."""
  dynamics = results['dynamics']
  lines = [
    f'# {results["config"]["env"]["name"]}, seed {results["seed"]}',
    '',
    *_tokenizer_lines(results['tokenizer']),
    *(
      f'Vector {name}: off by {error:.2f} standard deviations.'
      for name, error in results['tokenizer'].get('vectors', {}).items()
    ),
    '',
    '![the worst frames, original above decoded](worst.png)',
    '',
    *_dream_lines(dynamics, horizons),
    '',
    '![real above dreamed](dreams.png)',
    '',
    *_policies(results),
    '',
    *_comparisons(results),
    *_achievements(results),
    *_recordings(results),
    '',
    '![success](success.png)',
    '',
    *_reality(results),
    '',
    '![training](training.png)',
    '',
    '| part | seconds |',
    '|---|---|',
  ]
  for part, seconds in results['seconds'].items():
    lines.append(f'| {part} | {seconds:.0f} |')
  versions = ', '.join(f'{k} {v}' for k, v in results['versions'].items())
  lines += ['', f'{results["device"]}; {versions}', '']
  lines += ['Videos: `dreams.mp4` (real above dreamed), `agent.mp4`.', '']
  return '\n'.join(lines)


def _tokenizer_lines(figures: Mapping[str, Any]) -> list[str]:
  """What is known of held-out reconstructions."""
  lines = [
    f'Tokenizer: {_decibel(figures["psnr"])} on held-out episodes; '
    f'{_decibel(figures["psnr_worst_1pct"])} on the worst hundredth of the '
    f'frames, {_decibel(figures["psnr_changed"])} where pixels changed, '
    f'{_decibel(figures["psnr_worst_regions"])} in the worst region of each '
    'frame.'
  ]
  if 'exact' in figures:
    lines.append(
      f'Tile by tile: {_number(figures["exact"])} of the frames are exact, '
      f'{_number(figures["tiles"])} of the tiles are right, of rare ones '
      f'{_number(figures["rare_tiles"])}.'
    )
  if figures.get('player'):
    lines += ['', '| player | its tile is right | frames |', '|---|---|---|']
    lines += [
      f'| {place} | {_number(found["right"])} | {found["frames"]} |'
      for place, found in figures['player'].items()
    ]
    lines.append('')
  return lines


def _dream_lines(
  figures: Mapping[str, Any], horizons: tuple[int, ...]
) -> list[str]:
  """Tables of dreams beside their baselines, by frames ahead."""
  baselines = '| dynamics | repeat last | shuffled actions |'
  ends = ('', '_repeat_last', '_shuffled_actions')
  lines = [
    f'| frames ahead {baselines} worst 1 % | changed pixels |',
    '|---|---|---|---|---|---|',
  ]
  for h in horizons:
    names = [f'psnr_{h}{end}' for end in ends]
    names += [f'psnr_worst_1pct_{h}', f'psnr_changed_{h}']
    cells = ' | '.join(_decibel(figures[name]) for name in names)
    lines.append(f'| {h} | {cells} |')
  if f'exact_{horizons[0]}' not in figures:
    return lines
  lines += [
    '',
    'Frames that are exact, and tiles that changed and are right:',
    '',
    f'| frames ahead {baselines} changed tiles |',
    '|---|---|---|---|---|',
  ]
  for h in horizons:
    names = [*(f'exact_{h}{end}' for end in ends), f'changed_{h}']
    cells = ' | '.join(_number(figures[name]) for name in names)
    lines.append(f'| {h} | {cells} |')
  return lines


def _decibel(value: float | None) -> str:
  return '-' if value is None else f'{value:.1f} dB'


def _table(agents: Mapping[str, Any]) -> list[str]:
  """The table of policies."""
  events = next(iter(agents.values()))['events']
  many = ('achievements',) * (len(events) > 3)
  head = ('policy', 'success', 'steps', 'return', *many, *events)
  lines = [f'| {" | ".join(head)} |', '|' + '---|' * len(head)]
  for name, a in agents.items():
    cells = [
      name,
      _number(a['success']),
      f'{a["mean_length"]:.1f}',
      f'{a["mean_return"]:.3f}',
      *(f'{a[name]:.2f}' for name in many),
      *(f'{a["events"][event]:.3f}' for event in events),
    ]
    lines.append(f'| {" | ".join(cells)} |')
  return lines


def played(results: Mapping[str, Any]) -> str:
  """Returns what `excerpts.play` found as Markdown."""
  lines = _table(results['agents'])
  for pair, compare in results['comparisons'].items():
    lines += [
      '',
      f'{pair}, {compare["measure"]} = {_difference(compare)} '
      f'({compare["test"]}, same episodes).',
    ]
    if steps := compare['steps']:
      lines.append(
        f'Steps, in the {steps["episodes"]} episodes in which both succeed: '
        f'{_difference(steps)}.'
      )
  return '\n'.join(lines)


def _policies(results: Mapping[str, Any]) -> list[str]:
  """The table of all policies, and what their names mean."""
  agents = results['agents']
  meaning = 'bc is cloned behaviour'
  if 'bc_all' in agents:
    meaning += (
      ', bc_all that of all recordings without a task, bc_best that of the '
      'better half of them'
    )
  return [
    *_table(agents),
    '',
    f'The same {agents["rl"]["episodes"]} episodes for all. A number is the '
    f'temperature, which is 1 without; {meaning}. '
    f'Best clone on these episodes: {results["best_clone"]}.',
  ]


def _achievements(results: Mapping[str, Any]) -> list[str]:
  """The table of what episodes achieve, where there are many tasks."""
  pairs = results.get('rl_vs_clones') or {}
  if len(next(iter(results['agents'].values()))['events']) < 4 or not pairs:
    return []
  lines = [
    '',
    'Different tasks achieved in an episode, of all tasks and of those asked '
    'for:',
    '',
    '| policies | achievements | milestones |',
    '|---|---|---|',
  ]
  for pair, found in pairs.items():
    cells = (_difference(found[k]) for k in ('achievements', 'milestones'))
    lines.append(f'| {pair} | {" | ".join(cells)} |')
  return lines


def _recordings(results: Mapping[str, Any]) -> list[str]:
  """What held-out recordings contain, where results say so."""
  found = results.get('recordings')
  if not found:
    return []
  counts = ', '.join(f'{a["episodes"]} of {name}' for name, a in found.items())
  return [
    '',
    'Held-out recordings, by the noise of their player, measured alike. They '
    'are of other worlds, and as long as the recorder let them be:',
    '',
    *_table(found),
    '',
    f'Episodes: {counts}.',
  ]


def _comparisons(results: Mapping[str, Any]) -> list[str]:
  """A sentence for each comparison of `rl`."""
  best = f'{results["best_clone"]} (best clone)'
  lines = []
  for other, key in (('bc', 'rl_vs_bc'), (best, 'rl_vs_best_clone')):
    compare = results[key]
    lines += [
      f'rl - {other}, {compare["measure"]} = {_difference(compare)} '
      f'({compare["test"]}, same episodes).',
      '',
    ]
  steps = results['rl_vs_best_clone_steps']
  if steps is None:
    return lines[:-1]
  return [
    *lines,
    f'rl - {best}, steps = {_difference(steps)} (paired sign-flip permutation '
    f'test, the {steps["episodes"]} episodes in which both succeed).',
  ]


def _difference(compare: Mapping[str, Any]) -> str:
  interval = 'no interval'
  if compare['ci95'] is not None:
    low, high = compare['ci95']
    interval = f'95 % interval [{low:+.3f}, {high:+.3f}]'
  return (
    f'{compare["difference"]:+.3f}, {interval}, p = {compare["p_value"]:.2g}'
  )


def _reality(results: Mapping[str, Any]) -> list[str]:
  """Table of dream against reality, or why there is none."""
  agents, title = results['reality'], 'Dream against reality'
  if agents is None:
    return [
      f'{title}: not measured, since no state of an environment that runs on '
      'the host can be kept.'
    ]
  columns = ('dreamed', 'real', 'missed', 'phantom')
  columns += ('return_dreamed', 'return_real')
  horizon = results['config']['phases']['imagination']['horizon']
  lines = [
    f'{title}: the event of the task held, within {horizon} frames of a state '
    "of the agent's own episodes, in its dream and by the same actions in the "
    'real environment.',
    '',
    f'| policy | task | states | {" | ".join(columns).replace("_", " ")} |',
    '|---' * (3 + len(columns)) + '|',
  ]
  for name, agent in agents.items():
    for task, row in {'all': agent, **agent['tasks']}.items():
      numbers = ' | '.join(_number(row[column]) for column in columns)
      lines.append(f'| {name} | {task} | {row["states"]} | {numbers} |')
  rows = [
    f'{name}, {p["task"]} at frame {p["start"]}: {p["promise"]:.2f}'
    for name, agent in agents.items()
    for p in agent['phantoms']
  ]
  lines += [
    '',
    'Missed: where the event is real, 1 - the probability dreamed. Phantom: '
    'the probability dreamed where it is not.',
  ]
  if rows:
    lines += [
      '',
      '![promises not kept, real above dreamed](phantoms.png)',
      '',
      f'Promises not kept, dream above reality: {"; ".join(rows)}.',
    ]
  return lines


def _number(value: float | None) -> str:
  return '-' if value is None else f'{value:.3f}'
