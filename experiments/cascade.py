"""The paper's table 2, row by row: what each design choice is worth.

python -m experiments.cascade --base experiments/craftax_diamond.py \
  --tokenizer runs/craftax --data DATASET --latents LATENTS --out runs/cascade

Every row is the one before with one change. The same command goes on where it
was interrupted, and writes the page of results when it is done.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np

from dreamer4_jax.config import Config, experiments
from dreamer4_jax.models import World
from dreamer4_jax.objectives import finest_step_index, prediction_losses
from dreamer4_jax.training import dynamics_step
from dreamer4_jax.training.optimizer import make_optimizer
from dreamer4_jax.training.update import make_step

from . import _sweep


class VelocityWorld(World):
  """The network predicts the velocity v = x - noise instead of x."""

  def denoise(self, params, z, levels, *args, **kwargs):
    """Returns the clean tokens that a predicted velocity leads to."""
    output = super().denoise(params, z, levels, *args, **kwargs)
    left = 1 - levels.signal_level[..., None, None]
    return output.replace(prediction=z + left * output.prediction)


class DiffusionWorld(VelocityWorld):
  """Knows no step sizes: it is always told the finest."""

  def denoise(self, params, z, levels, *args, **kwargs):
    """Returns the clean tokens; takes every step for one of the finest."""
    finest = finest_step_index(levels.max_steps)
    levels = levels.replace(
      step_index=jnp.full_like(jnp.asarray(levels.step_index), finest)
    )
    return super().denoise(params, z, levels, *args, **kwargs)


def velocity_step(world: World):
  """The train step whose loss is taken of velocities: x over (1 - tau)^2."""
  objective = dynamics_step.dynamics_objective(world)

  def terms(params, state, data):
    del state
    prediction = dynamics_step.denoise(world, params, data).prediction
    losses = prediction_losses(prediction, data, 1.0)
    scale = 1 / jnp.square(1 - data.levels.signal_level)
    losses = losses.replace(
      flow=losses.flow * scale, bootstrap=losses.bootstrap * scale
    )
    loss, parts = dynamics_step.frame_means(losses, data.trains)
    return {'dynamics': loss}, parts

  return make_step(
    dataclasses.replace(objective, terms=terms),
    make_optimizer(world.config, 'dynamics'),
    world.config,
  )


@dataclasses.dataclass(frozen=True)
class Row:
  """One row: its name, and what it changes.

  Attributes:
    name: of the row.
    world: class of the modules.
    step: makes the train step.
    steps: K while sampling.
    edit: fields of the config that differ from the row before.
  """

  name: str
  world: type[World] = World
  step: Any = dynamics_step.make_dynamics_step
  steps: int = 4
  edit: dict[str, Any] = dataclasses.field(default_factory=dict)


def rows(base: Config) -> list[Row]:
  """The rows, in the paper's order."""
  dynamics, heads = base.dynamics, base.dynamics.num_heads
  short = base.phases.dynamics.clip_length
  never = {'phases.dynamics.bootstrap_start': base.phases.dynamics.steps}
  plain = {
    'forcing.low_weight': 1.0,
    'dynamics.time_every': 2,
    'dynamics.num_kv_heads': heads,
    'dynamics.num_registers': 0,
    'phases.dynamics.clip_lengths': (base.phases.dynamics.longest_clip,),
  }
  velocity = functools.partial(Row, step=velocity_step)
  return [
    velocity('diffusion forcing, v-prediction, K = 64', DiffusionWorld,
             steps=64, edit={**plain, **never}),
    velocity('K = 4', DiffusionWorld),
    velocity('shortcut', VelocityWorld, edit={
      'phases.dynamics.bootstrap_start':
        base.phases.dynamics.bootstrap_start}),
    velocity('x-prediction'),
    Row('x-loss'),
    Row('ramp', edit={'forcing.low_weight': 0.1}),
    Row('alternating lengths', edit={
      'phases.dynamics.clip_lengths':
        (short, base.phases.dynamics.longest_clip)}),
    Row('time layers every 4th', edit={'dynamics.time_every': 4}),
    Row('grouped queries', edit={
      'dynamics.num_kv_heads': dynamics.num_kv_heads}),
    Row('registers', edit={'dynamics.num_registers': 4}),
    Row('more tokens', edit={
      'dynamics.num_spatial_tokens': 3 * dynamics.num_spatial_tokens}),
  ]  # fmt: skip


def small(base: Config, steps: int) -> Config:
  """Returns the base with a world model for two CPU cores."""
  return base.edit(
    {
      'dynamics.width': 96,
      'dynamics.num_heads': 2,
      'dynamics.num_kv_heads': 1,
      'dynamics.depth': 4,
      'dynamics.num_registers': 0,
      'phases.dynamics.steps': steps,
      'phases.dynamics.bootstrap_start': steps // 4,
      'phases.dynamics.learning_rate': 8e-3,
      'forcing.clear_share': 0.0,
      'forcing.end_share': 0.0,
      'saving.checkpoint_every': 500,
    }
  )


def run(args: argparse.Namespace) -> None:
  """Trains and measures every row and seed that is not done yet."""
  base = experiments.load(args.base).edit(
    {'data.sources.0.path': args.data, 'data.sources.0.latents': args.latents}
  )
  base = small(base, args.steps)
  results = args.out / 'results.jsonl'
  done = {(r['row'], r['seed'], r['steps']) for r in _sweep.load(results)}
  for seed in args.seeds:
    edit: dict[str, Any] = {'seed': seed}
    before = None
    for number, row in enumerate(rows(base)):
      edit |= row.edit
      directory = args.out / f'{number:02d}-seed{seed}'
      if not row.edit and (row.world, row.step) == before:
        directory = args.out / f'{number - 1:02d}-seed{seed}'
      before = row.world, row.step
      sweep = {row.steps} | ({1, 2, 4, 8, 16, 64} if row.name in args.sweep
                             else set())  # fmt: skip
      sweep = {k for k in sweep if (row.name, seed, k) not in done}
      if not sweep or (args.rows and row.name not in args.rows):
        continue
      config = base.edit(edit)
      world = row.world.from_config(config)
      init = dynamics_step.init_dynamics_state
      params = _sweep.train(
        config, directory, args.tokenizer, world, (init, row.step)
      )
      clips = _sweep.clips_of(config, args.clips)
      for k in sorted(sweep):
        found = _sweep.measure(world, params, clips, k)
        found |= {'step_seconds': _sweep.step_seconds(directory)}
        _sweep.save(
          results, {'row': row.name, 'seed': seed, 'steps': k, **found}, config
        )
        print(row.name, seed, k, f'{found["psnr"]:.2f} dB', flush=True)


def page(args: argparse.Namespace) -> str:
  """Returns the page of results as Markdown, and draws the sweep over K."""
  found = _sweep.load(args.out / 'results.jsonl')
  base = small(experiments.load(args.base), args.steps)
  lines = [
    '# The cascade of design choices',
    '',
    'Each row is the one before with one change, as in table 2 of the paper. '
    f'{CAPTION}',
    '',
    '| row | K | seeds | train step, s | frames/s | PSNR, dB | SSIM | latent '
    'Fréchet |',
    '|---' * 8 + '|',
  ]
  for row in rows(base):
    own = [r for r in found if r['row'] == row.name and r['steps'] == row.steps]
    if own:
      column = lambda key, digits=2, own=own: _sweep.interval(
        [r[key] for r in own], digits
      )
      speed = np.median([1 / r['seconds_a_frame'] for r in own])
      step = np.median([r['step_seconds'] for r in own])
      lines.append(
        f'| {row.name} | {row.steps} | {len(own)} | {step:.2f} | {speed:.0f} | '
        f'{column("psnr")} | {column("ssim", 3)} | {column("frechet")} |'
      )
  picture = args.page.with_name(f'{args.page.stem}-steps.png')
  plot(found, picture)
  return '\n'.join(
    [*lines, '', f'![PSNR by sampling steps]({picture.name})', '',
     _sweep.origin(found, f'python -m experiments.cascade --out {args.out}')]
  ) + '\n'  # fmt: skip


PAGE = pathlib.Path('docs/results/cascade.md')
CAPTION = (
  'Sixteen frames after sixteen real ones, held-out clips of Craftax with '
  "their own actions; means over training seeds with Student's 95 % intervals. "
  'The Fréchet distance is of latents, not FVD: it is lower if dreams are '
  'spread as recordings are.'
)


def plot(found: list[dict[str, Any]], path: pathlib.Path) -> None:
  """Draws PSNR and Fréchet distance over the number of sampling steps."""
  figure, axes = plt.subplots(1, 2, figsize=(8, 3))
  for name in dict.fromkeys(r['row'] for r in found):
    own = [r for r in found if r['row'] == name]
    steps = sorted({r['steps'] for r in own})
    if len(steps) > 2:
      for axis, key in zip(axes, ('psnr', 'frechet'), strict=True):
        mean = [np.mean([r[key] for r in own if r['steps'] == k])
                for k in steps]  # fmt: skip
        axis.plot(steps, mean, 'o-', label=name)
  for axis, key in zip(axes, ('PSNR, dB', 'latent Fréchet'), strict=True):
    axis.set(xscale='log', xlabel='sampling steps K', ylabel=key)
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
  parser.add_argument('--out', type=pathlib.Path, default='runs/cascade')
  parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
  parser.add_argument('--steps', type=int, default=2000)
  parser.add_argument('--clips', type=int, default=128)
  parser.add_argument('--rows', nargs='+', default=[])
  parser.add_argument('--sweep', nargs='*', default=['K = 4', 'x-loss'])
  parser.add_argument('--page', type=pathlib.Path, default=PAGE)
  args = parser.parse_args()
  jax.config.update('jax_compilation_cache_dir', str(args.out / 'cache'))
  run(args)
  args.page.parent.mkdir(parents=True, exist_ok=True)
  args.page.write_text(page(args))


if __name__ == '__main__':
  main()
