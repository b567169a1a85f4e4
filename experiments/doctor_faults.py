"""Breaks a healthy run in six ways, and asks the doctor what is wrong.

dreamer4 quickstart doorkey_mixture
python -m experiments.doctor_faults runs/doorkey_mixture --out runs/faults

Each broken run keeps what the fault leaves alone, and is trained again from
there. The same command goes on where it was interrupted, and writes the page of
results when it is done.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
import dataclasses
import pathlib
import shutil
from typing import Any

import jax
import numpy as np

from data_pipelines import writer
from data_pipelines.collect import record_env
from data_pipelines.episodes import Episode
from dreamer4_jax import checkpoint
from dreamer4_jax.config import Config, saved
from dreamer4_jax.data import EpisodeSource, novelty
from dreamer4_jax.evals import doctor, findings
from dreamer4_jax.training.run import train

from . import _sweep

PAGE = pathlib.Path('docs/results/doctor.md')
_LATENTS, _PATH = 'data.sources.0.latents', 'data.sources.0.path'


@dataclasses.dataclass(frozen=True)
class Fault:
  """A way to break a run.

  Attributes:
    text: what is wrong, for the page.
    make: breaks it, `(healthy run, its config, broken run)`.
    named_by: the figures that must be wrong, any of them.
  """

  text: str
  make: Callable[[pathlib.Path, Config, pathlib.Path], None]
  named_by: tuple[str, ...]


def late(steps: Mapping[str, Any]) -> dict[str, Any]:
  """Moves the actions of an episode to the row after their own."""
  moved = lambda x: np.concatenate([x[:1], x[:-1]])
  return {**steps, 'action': jax.tree.map(moved, dict(steps['action']))}


def early(steps: Mapping[str, Any]) -> dict[str, Any]:
  """Moves the events of an episode to the row before their own.

  Those of the first row stay there, lest an event be lost.
  """
  moved = {}
  for name in ('reward', 'events'):
    x = np.asarray(steps[name])
    moved[name] = np.concatenate([x[1:], 0 * x[:1]])
    moved[name][0] = np.maximum(moved[name][0], x[0])
  return {**steps, **moved}


def rewrite(
  data: str, out: pathlib.Path, change: Callable[[Any], dict[str, Any]]
) -> str:
  """Writes a dataset with changed steps; what is there is kept."""
  if out.exists():
    return str(out)
  sources = {
    split: EpisodeSource(data, split, cache_bytes=0)
    for split in ('train', 'test')
  }

  def episodes(source: EpisodeSource) -> Iterator[Episode]:
    for i in range(len(source)):
      steps = change(source[i])
      for name in ('is_first', 'is_last', 'is_terminal', 'start'):
        steps.pop(name, None)
      yield Episode(
        steps=steps,
        terminal=bool(source.index.terminal[i]),
        attributes=source.index.attributes[i],
      )

  writer.write_dataset(
    out,
    description=sources['train'].description,
    splits={split: episodes(source) for split, source in sources.items()},
  )
  novelty.measure_dataset(out, 'train')
  return str(out)


def keep(
  healthy: pathlib.Path, out: pathlib.Path, phases: tuple[str, ...]
) -> None:
  """Copies phases of a run; those that are there are kept."""
  for phase in phases:
    if not (out / phase).exists():
      out.mkdir(parents=True, exist_ok=True)
      shutil.copytree(healthy / phase, out / 'copy', dirs_exist_ok=True)
      (out / 'copy').rename(out / phase)


def _late_actions(healthy, config, out):
  keep(healthy, out, ('tokenizer',))
  data = rewrite(config.data.path, out.with_name('data-late'), late)
  config = config.edit({_PATH: data})
  train(config, out, ('dynamics', 'finetune'))


def _blind_reward(healthy, config, out):
  keep(healthy, out, ('tokenizer', 'dynamics'))
  data = rewrite(config.data.path, out.with_name('data-early'), early)
  train(config.edit({_PATH: data}), out, ('finetune',))


def _early_tokenizer(healthy, config, out):
  del healthy
  steps = max(1, config.phases.tokenizer.steps // 20)
  config = config.edit({'phases.tokenizer.steps': steps})
  train(config, out, ('tokenizer',))


def _deaf_dynamics(healthy, config, out):
  keep(healthy, out, ('tokenizer',))
  state, _ = checkpoint.load_state_dict(healthy, 'dynamics')
  for name in ('params', 'ema'):
    own = state[name]['dynamics']
    own['action'] = jax.tree.map(np.zeros_like, own['action'])
  with checkpoint.Checkpoints(out / 'dynamics') as checkpoints:
    checkpoints.save(config.phases.dynamics.steps, state, {}, config)
  saved.save(config, out)


def _long_context(healthy, config, out):
  keep(healthy, out, ('tokenizer', 'dynamics', 'finetune'))
  saved.save(config.edit({'dynamics.context_length': 32}), out)


def _cloned_noise(healthy, config, out):
  keep(healthy, out, ('tokenizer', 'dynamics'))
  data = out.with_name('data-random')
  config = config.edit({_PATH: str(data)})
  if not data.exists():
    record_env(
      config, policy='random', episodes=3000, test_episodes=200, max_steps=80,
      workers=1,
    )  # fmt: skip
  train(config, out, ('finetune',))


_BLIND = (
  'reward by the step of the event',
  'reward on the frame of an event',
  'reward dreamed for the action of an event',
  'and for another action, relative to it',
)
FAULTS = {
  'late-actions': Fault(
    'actions stand one row late', _late_actions,
    ('what a frame tells of the action at k', 'gain by the step of the action'),
  ),
  'blind-reward': Fault(
    'rewards stand one row early, before the action is known', _blind_reward,
    _BLIND,
  ),
  'early-tokenizer': Fault(
    'the tokenizer had a twentieth of its steps', _early_tokenizer,
    ('PSNR', 'of the worst frame in a hundred', 'of the pixels that change',
     'of the worst region of each frame', 'frames with every tile right',
     'rare tiles right', 'player right'),
  ),
  'deaf-dynamics': Fault(
    'the dynamics ignores its actions', _deaf_dynamics,
    ('a frame is better for its action',),
  ),
  'long-context': Fault(
    'the context is longer than any clip of training', _long_context,
    ('context of the dynamics',),
  ),
  'cloned-noise': Fault(
    'the policy is cloned from random play', _cloned_noise,
    ('information of the policy about actions',),
  ),
}  # fmt: skip


def run(args: argparse.Namespace, config: Config) -> None:
  """Breaks and examines all that is not done yet."""
  results = args.out / 'results.jsonl'
  done = {r['run'] for r in _sweep.load(results)}
  plain = config.edit({_LATENTS: ''})
  for name in ('healthy', *FAULTS):
    if name not in done:
      run_dir = args.healthy
      if name != 'healthy':
        run_dir = args.out / name
        FAULTS[name].make(args.healthy, plain, run_dir)
      found = doctor.examine(run_dir, clips=args.clips, episodes=args.episodes)
      row = {'run': name, 'findings': findings.as_json(found)}
      _sweep.save(results, row, config)


def named(found: list[Mapping[str, Any]], fault: Fault) -> bool:
  """Whether one of the figures that stand for a fault is wrong."""
  wrong = [f['name'] for f in found if f['verdict'] == 'wrong']
  return any(name.startswith(fault.named_by) for name in wrong)


def page(args: argparse.Namespace, config: Config) -> str:
  """Returns the page of results as Markdown."""
  rows = _sweep.load(args.out / 'results.jsonl')
  found = {r['run']: r['findings'] for r in rows}
  lines = [
    '# What the doctor finds',
    '',
    f'A healthy run of {config.env.name}, and six copies that were each broken '
    'on purpose and trained again from there. *Named*: a figure that stands '
    'for the fault is wrong.',
    '',
    '| run | named | wrong | worth a look |',
    '|---|---|---|---|',
  ]
  cell = lambda run, verdict: '; '.join(
    f'{f["name"]}: {f["text"]}' for f in found[run] if f['verdict'] == verdict
  )
  lines.append(
    f'| healthy | - | {cell("healthy", "wrong")} | {cell("healthy", "look")} |'
  )
  for name, fault in FAULTS.items():
    lines.append(
      f'| {fault.text} | {"yes" if named(found[name], fault) else "**no**"} | '
      f'{cell(name, "wrong")} | {cell(name, "look")} |'
    )
  command = f'python -m experiments.doctor_faults {args.healthy}'
  return '\n'.join([*lines, '', _sweep.origin(rows, command)]) + '\n'


def main() -> None:
  """Parses the command line, breaks, examines, and writes the page."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('healthy', type=pathlib.Path, metavar='RUN')
  parser.add_argument('--out', type=pathlib.Path, default='runs/faults')
  parser.add_argument('--clips', type=int, default=192)
  parser.add_argument('--episodes', type=int, default=64)
  parser.add_argument('--page', type=pathlib.Path, default=PAGE)
  args = parser.parse_args()
  config = saved.load_run(args.healthy)
  jax.config.update('jax_compilation_cache_dir', str(args.out / 'cache'))
  run(args, config)
  args.page.parent.mkdir(parents=True, exist_ok=True)
  args.page.write_text(page(args, config))


if __name__ == '__main__':
  main()
