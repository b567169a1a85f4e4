"""The model card of a package: what it is, and where it comes from."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from dreamer4_jax.checkpoint import latest_step, trained_by
from dreamer4_jax.config import PHASES, Config
from dreamer4_jax.data import EpisodeSource

CARD = 'README.md'


def write_card(
  out: pathlib.Path,
  run_dir: pathlib.Path,
  config: Config,
  title: str,
  size: int,
) -> None:
  """Writes the card of a package.

  Args:
    out: directory of the package.
    run_dir: of the run; figures come from its `results.json`, if it has one.
    config: of the run.
    title: of the world.
    size: bytes of weights and clips.
  """
  done = [p for p in PHASES if latest_step(run_dir, p)]
  version = trained_by(run_dir, done[-1])
  code = ', '.join(f'{k} {v}' for k, v in version.items()) or 'not known'
  steps = ', '.join(f'{p} {getattr(config.phases, p).steps:,}' for p in PHASES)
  lines = [
    f'# {title}',
    '',
    'A world model to play in: `dreamer4 play DIR`, with this directory.',
    '',
    f'- **Weights**: float16, {size:,} bytes with the clips that dreams begin '
    'with, which are of the held-out split.',
    f'- **Steps of training**: {steps}.',
    f'- **Trained by**: {code}; seed {config.seed}.',
    f'- **Data**: {_data(config)}',
    f'- **Made by**: `dreamer4 export {run_dir} --play --out DIR`; '
    '`config.json` is the configuration of the run.',
    '',
    '## Figures',
    '',
    *_figures(run_dir),
  ]
  (out / CARD).write_text('\n'.join(lines) + '\n')


def _data(config: Config) -> str:
  """What the dataset says about itself."""
  own = EpisodeSource(
    config.data.path, config.data.eval_split, cache_bytes=0
  ).description
  made = json.dumps(own.source, sort_keys=True) if own.source else 'not said'
  shape = 'x'.join(map(str, own.frame_shape))
  names = ', '.join(config.tasks) or 'none'
  return f'frames of {shape}; tasks {names}; made by {made}.'


def _figures(run_dir: pathlib.Path) -> list[str]:
  """The table of agents, from the evaluation of the run."""
  path = run_dir / 'results.json'
  if not path.exists():
    return ['The run has not been evaluated.']
  results: dict[str, Any] = json.loads(path.read_text())
  agents = results.get('agents', {})
  dreams = [f'{k} {v:.3g}' for k, v in results.get('dynamics', {}).items()
            if k.startswith(('psnr_', 'exact_')) and k.count('_') == 1
            and v is not None]  # fmt: skip
  said = f'Dreams of held-out clips, by frames ahead: {", ".join(dreams)}.'
  rows = [said, ''] if dreams else []
  rows += ['| agent | episodes | success |', '|---|---|---|']
  for name, own in agents.items():
    success = own.get('success')
    said = 'not known' if success is None else f'{success:.1%}'
    rows.append(f'| {name} | {own.get("episodes", "")} | {said} |')
  return rows if agents else ['The evaluation of the run has no agents.']
