"""How few actions ground a world model: figure 7 of the paper, and its text.

python -m experiments.action_labels --tokenizer runs/craftax \
  --data DATASET --latents LATENTS --out runs/labels

All of the video, with the actions of the first 0, 1, 3, 10, 30 and 100 % of the
episodes; and all of it with the actions of the day alone, tested by night. The
same command goes on where it was interrupted, and writes the page of results
when it is done.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
import dataclasses
import pathlib
from typing import Any

import jax
import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np

from data_pipelines import writer
from data_pipelines.episodes import Episode
from dreamer4_jax.config import Config, experiments
from dreamer4_jax.data import EpisodeSource
from dreamer4_jax.models import World

from . import _sweep

PAGE = pathlib.Path('docs/results/action_labels.md')
SHARES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
DAY = 60.0
"""Mean brightness of the map by day is above this, of 255."""
_MAP_ROWS = 49
PAPER = (
  'The paper, of 2,541 hours of video: actions for 10 hours (0.4 %) give 53 % '
  'of the PSNR and 75 % of the SSIM that all actions give, 100 hours (3.9 %) '
  '85 % and 100 %; actions of the overworld alone 76 % and 80 % in the other '
  'dimensions.'
)


def is_day(frames: np.ndarray) -> np.ndarray:
  """Says of frames `[..., H, W, C]` whether it is day, by their brightness."""
  world = frames[..., :_MAP_ROWS, :, :].astype(np.float32)
  return world.mean(axis=(-3, -2, -1)) > DAY


def label_days(data: str, latents: str, out: pathlib.Path) -> pathlib.Path:
  """Writes latents in which only the actions of the day are known.

  Args:
    data: dataset of frames.
    latents: its latents.
    out: where to write; what is there is kept.
  """
  if out.exists():
    return out
  sources = {
    split: [EpisodeSource(path, split, cache_bytes=0)
            for path in (data, latents)]
    for split in ('train', 'test')
  }  # fmt: skip
  description = sources['train'][1].description

  def episodes(
    frames: EpisodeSource, coded: EpisodeSource
  ) -> Iterator[Episode]:
    index = coded.index
    for i in range(len(coded)):
      steps = dict(coded[i])
      day = is_day(frames[i]['observation'])
      steps['action_known'] = steps['action_known'] & day
      for name in ('is_first', 'is_last', 'is_terminal', 'start'):
        steps.pop(name, None)
      yield Episode(
        steps=steps,
        terminal=bool(index.terminal[i]),
        attributes=index.attributes[i],
      )

  return writer.write_dataset(
    out,
    description=dataclasses.replace(
      description, source={**description.source, 'actions': 'by day'}
    ),
    splits={name: episodes(*pair) for name, pair in sources.items()},
  )


def small(base: Config, args: argparse.Namespace) -> Config:
  """Returns the base with a world model for two CPU cores."""
  return base.edit(
    {
      'data.sources.0.path': args.data,
      'data.sources.0.latents': args.latents,
      'dynamics.width': 96,
      'dynamics.num_heads': 2,
      'dynamics.num_kv_heads': 1,
      'dynamics.depth': 4,
      'dynamics.context_length': 16,
      'phases.dynamics.steps': args.steps,
      'phases.dynamics.bootstrap_start': args.steps * 3 // 4,
      'phases.dynamics.learning_rate': 8e-3,
      'phases.dynamics.clip_lengths': (16,),
      'saving.checkpoint_every': 500,
    }
  )


def run(args: argparse.Namespace) -> None:
  """Trains and measures every share and seed that is not done yet."""
  base = small(experiments.load(args.base), args)
  results = args.out / 'results.jsonl'
  done = {(r['labels'], r['seed']) for r in _sweep.load(results)}
  episodes = len(EpisodeSource(args.data, 'train', cache_bytes=0))
  cases: dict[str, dict[str, Any]] = {}
  for share in args.shares:
    first = (f'episode<{round(share * episodes)}',)
    cases[f'{share:g}'] = {'data.sources.0.labeled_where': first}
    if not share:
      cases['0'] = {'data.sources.0.labeled_share': 0.0}
  if not args.no_days:
    cases['day'] = {
      'data.sources.0.latents': str(
        label_days(args.data, args.latents, args.out / 'latents-by-day')
      )
    }
  anywhere = _sweep.clips_of(base, args.clips)
  night = _sweep.clips_of(
    base, args.clips // 2, lambda frames: ~is_day(frames).any(axis=1)
  )
  for seed in args.seeds:
    for name, edit in cases.items():
      if (name, seed) in done:
        continue
      config = base.edit({**edit, 'seed': seed})
      directory = args.out / f'labels-{name}-seed{seed}'
      params = _sweep.train(config, directory, args.tokenizer)
      world = World.from_config(config)
      found = {
        where: _sweep.measure(world, params, clips, known=name != '0')
        for where, clips in (('all', anywhere), ('night', night))
      }
      _sweep.save(results, {'labels': name, 'seed': seed, **found}, config)
      print(name, seed, f'{found["all"]["psnr"]:.2f} dB', flush=True)


def gained(
  found: list[dict[str, Any]], where: str, key: str
) -> dict[str, list[float]]:
  """Share of the way from no actions to all actions, by labels and seed."""
  by_seed: dict[int, dict[str, float]] = {}
  for row in found:
    by_seed.setdefault(row['seed'], {})[row['labels']] = row[where][key]
  shares: dict[str, list[float]] = {}
  for own in by_seed.values():
    if {'0', '1'} <= own.keys():
      for name, value in own.items():
        way = (value - own['0']) / (own['1'] - own['0'])
        shares.setdefault(name, []).append(way)
  return shares


def page(args: argparse.Namespace) -> str:
  """Returns the page of results as Markdown, and draws the figure."""
  found = _sweep.load(args.out / 'results.jsonl')
  ways = {
    (where, key): gained(found, where, key)
    for where in ('all', 'night')
    for key in ('psnr', 'ssim')
  }
  lines = [
    '# How few actions ground a world model',
    '',
    'Craftax-Classic: all of the video, and the actions of the first episodes '
    'only. Sixteen frames after sixteen real ones, held-out clips with their '
    'own actions. *Gain* is the way from no actions (0) to all of them (1); '
    "means over training seeds with Student's 95 % intervals.",
    '',
    '| actions for | seeds | PSNR, dB | SSIM | gain, PSNR | gain, SSIM |',
    '|---' * 6 + '|',
  ]
  names = [f'{share:g}' for share in SHARES]
  for name in names:
    own = [r['all'] for r in found if r['labels'] == name]
    if own:
      cells = [_sweep.interval([r[key] for r in own], digits)
               for key, digits in (('psnr', 2), ('ssim', 4))]  # fmt: skip
      cells += [
        _sweep.interval(ways['all', key].get(name, [float('nan')]))
        for key in ('psnr', 'ssim')
      ]
      share = float(name) * 100
      lines.append(f'| {share:g} % | {len(own)} | {" | ".join(cells)} |')
  lines += [
    '',
    'Actions of the day alone, in clips that are all night, where none was '
    'ever labeled:',
    '',
    '| actions | seeds | PSNR, dB | gain, PSNR | gain, SSIM |',
    '|---' * 5 + '|',
  ]
  for name, text in (('0', 'none'), ('day', 'by day'), ('1', 'all')):
    own = [r['night'] for r in found if r['labels'] == name]
    if own:
      cells = [_sweep.interval([r['psnr'] for r in own])]
      cells += [
        _sweep.interval(ways['night', key].get(name, [float('nan')]))
        for key in ('psnr', 'ssim')
      ]
      lines.append(f'| {text} | {len(own)} | {" | ".join(cells)} |')
  picture = args.page.with_suffix('.png')
  plot(ways, picture)
  lines += ['', f'![gain by share of the actions]({picture.name})', '', PAPER]
  command = f'python -m experiments.action_labels --out {args.out}'
  return '\n'.join([*lines, '', _sweep.origin(found, command)]) + '\n'


def plot(
  ways: dict[tuple[str, str], dict[str, list[float]]], path: pathlib.Path
) -> None:
  """Draws the gain over the share of episodes with actions."""
  figure, axis = plt.subplots(figsize=(4.5, 3.2))
  for key in ('psnr', 'ssim'):
    own = {float(k): v for k, v in ways['all', key].items()
           if k != 'day' and float(k) > 0}  # fmt: skip
    shares = sorted(own)
    means = [np.mean(own[s]) for s in shares]
    axis.plot(shares, means, 'o-', label=f'{key.upper()}, here')
    for share in shares:
      axis.plot([share] * len(own[share]), own[share], 'k.', markersize=2)
  for key, values in (('PSNR', (0.53, 0.85)), ('SSIM', (0.75, 1.0))):
    axis.plot((0.0039, 0.039), values, 'x', label=f'{key}, the paper')
  axis.set(xscale='log', xlabel='share of the video with actions',
           ylabel='gain', ylim=(0, 1.1))  # fmt: skip
  axis.legend(fontsize='small')
  figure.tight_layout()
  figure.savefig(path, dpi=100)
  plt.close(figure)


def main() -> None:
  """Parses the command line, trains, and writes the page."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--base', default='craftax_diamond')
  parser.add_argument('--tokenizer', type=pathlib.Path, required=True)
  parser.add_argument('--data', required=True)
  parser.add_argument('--latents', required=True)
  parser.add_argument('--out', type=pathlib.Path, default='runs/labels')
  parser.add_argument('--shares', type=float, nargs='+', default=SHARES)
  parser.add_argument('--no-days', action='store_true')
  parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
  parser.add_argument('--steps', type=int, default=2000)
  parser.add_argument('--clips', type=int, default=256)
  parser.add_argument('--page', type=pathlib.Path, default=PAGE)
  args = parser.parse_args()
  jax.config.update('jax_compilation_cache_dir', str(args.out / 'cache'))
  run(args)
  args.page.parent.mkdir(parents=True, exist_ok=True)
  args.page.write_text(page(args))


if __name__ == '__main__':
  main()
