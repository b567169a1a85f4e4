"""`dreamer4 doctor`: where a chain of four trainings is weak, on one page.

Each phase has a few figures, what is usual, and a verdict. All but the last
part need nothing but held-out recordings; that part plays in the environment,
where it is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import json
import logging
import pathlib
from typing import Any

import jax
import numpy as np

from dreamer4_jax import checkpoint
from dreamer4_jax.config import PHASES, Config, saved
from dreamer4_jax.envs import Environment
from dreamer4_jax.envs.checks import check_environment
from dreamer4_jax.evals import files, tiles
from dreamer4_jax.evals.doctor import dreams, frames, heads, played
from dreamer4_jax.evals.doctor.clips import Held, held_out
from dreamer4_jax.evals.findings import (
  Finding,
  Scale,
  as_json,
  judge,
  note,
  page,
)
from dreamer4_jax.evals.reality import Dreams, Reality, dream_and_play
from dreamer4_jax.models import Params, World

__all__ = ['Finding', 'Held', 'Scale', 'examine', 'held_out', 'judge', 'page']

_LOG = logging.getLogger(__name__)
CLIPS = 192
"""Held-out clips of each kind."""
EPISODES = 64
"""Episodes that an agent plays."""
STEPS = 400
"""Steps of these, at most."""


def examine(
  run_dir: str | pathlib.Path,
  *,
  config: Config | None = None,
  play: bool = True,
  clips: int = CLIPS,
  episodes: int = EPISODES,
) -> list[Finding]:
  """Examines what is trained of a run; writes `doctor.md` and `doctor.json`.

  Args:
    run_dir: run directory; at least the tokenizer must be trained.
    config: by default the one saved there.
    play: also play in the environment, if it is installed and functional.
    clips: held-out clips of each kind.
    episodes: that an agent plays.

  Raises:
    FileNotFoundError: there is no run, no dataset, or nothing is trained.
    ValueError: something does not fit.
  """
  run_dir = pathlib.Path(run_dir)
  config = config or saved.load_run(run_dir)
  trained = [p for p in PHASES if checkpoint.latest_step(run_dir, p)]
  if not trained:
    raise FileNotFoundError(
      f'{run_dir}: no phase is trained; begin with `dreamer4 train`'
    )
  env = _environment(config) if play else None
  found = [_progress(config, run_dir, phase) for phase in trained]
  found += _world(config, run_dir, trained, env, clips, episodes)
  if 'finetune' in trained:
    found += _agent(config, run_dir, trained, env, clips, episodes)
  text = page(found, f'Examination of {run_dir}')
  (run_dir / 'doctor.md').write_text(text)
  files.write_json(run_dir / 'doctor.json', as_json(found))
  return found


def _environment(config: Config) -> Environment | None:
  if not config.env.name:
    return None
  try:
    env = check_environment(config)
  except ImportError as error:
    _LOG.warning('nothing is played: %s', error)
    return None
  if env.spec.on_host:
    _LOG.warning('nothing is played: %s runs on the host', config.env.name)
    return None
  return env


def _progress(config: Config, run_dir: pathlib.Path, phase: str) -> Finding:
  """Is the phase finished?"""
  step = checkpoint.latest_step(run_dir, phase)
  whole = getattr(config.phases, phase).steps
  return Finding(
    phase=phase, name='steps', value=float(step), text=f'{step} of {whole}',
    usual='all of them', verdict='fine' if step >= whole else 'wrong',
    advice='The training was stopped early; the same command goes on.',
  )  # fmt: skip


def _load(run_dir: pathlib.Path, phase: str) -> Params:
  return jax.tree.map(
    jax.numpy.asarray, checkpoint.load_params(run_dir, phase)[0]
  )


def _world(
  config: Config,
  run_dir: pathlib.Path,
  trained: list[str],
  env: Environment | None,
  clips: int,
  episodes: int,
) -> list[Finding]:
  """Examines data, tokenizer and dynamics."""
  model, e = World.from_config(config), config.eval
  length = e.context_frames + max(*e.horizons, 8)
  held = held_out(config, length, clips)
  # A finetuned dynamics is what agents use.
  last = next(p for p in ('finetune', 'dynamics', 'tokenizer') if p in trained)
  params = _load(run_dir, last)
  spec = env and env.spec.tiles
  palette = spec and tiles.find_palette(spec, [held.batch.frames])
  found = [frames.recorded(held, config.actions)]
  found += frames.tokenizer(model, params, held, palette)
  if env and env.spec.facts:
    seeds = range(e.seed, e.seed + episodes)
    found += frames.readable(model, params, env, seeds)
  found += [
    dreams.memory(phase, checkpoint.load_params(run_dir, phase)[1], config)
    for phase in ('tokenizer', 'dynamics', 'finetune')
    if phase in trained
  ]
  if last == 'tokenizer':
    return found
  steps = config.phases.imagination.sampling_steps
  return found + dreams.dynamics(model, params, held, sampling_steps=steps)


def _agent(
  config: Config,
  run_dir: pathlib.Path,
  trained: list[str],
  env: Environment | None,
  clips: int,
  episodes: int,
) -> list[Finding]:
  """Examines heads and policies."""
  model = World.from_config(config)
  cloned = _load(run_dir, 'finetune')
  length = min(config.phases.finetune.clip_length, 24)
  held = held_out(config, length, clips, relevant=True)
  found = heads.finetuned(model, cloned, held)
  agents: dict[str, Params] = {'bc': {**cloned, 'prior': cloned['policy']}}
  if 'imagination' in trained:
    agents['rl'] = _load(run_dir, 'imagination')
    found += _curves(config, run_dir)
  if env is None:
    return found
  seeds = range(config.eval.seed, config.eval.seed + episodes)
  for params in agents.values():
    seen = played.watch(model, params, env, seeds, STEPS)
    found += played.judge_episodes(model, seen)
  reality = _reality(model, agents, env, seeds)
  for name, own in (reality or {}).items():
    found += _dreams(name, own, config)
  return found


def _curves(config: Config, run_dir: pathlib.Path) -> list[Finding]:
  """Reads the last tenth of the imagination's metrics."""
  lines = (run_dir / 'imagination/metrics.jsonl').read_text().splitlines()
  rows = [row for row in map(json.loads, lines) if 'imagination/kl' in row]
  rows = rows[-max(1, len(rows) // 10) :]
  mean = lambda key: float(np.mean([r[f'imagination/{key}'] for r in rows]))
  reward = mean('reward_per_rollout')
  return [
    judge('imagination', 'KL to the clone, relative to random actions',
          mean('kl') / heads.random_surprise(config),
          Scale(fine=1.0, wrong=2.0),
          'The policy runs away from the recordings; raise beta.'),
    judge('imagination', 'share of advantages above 0', mean('positive_share'),
          Scale(fine=0.1, wrong=0.02),
          'Hardly anything pays in dreams: begin them nearer to events '
          '(relevant_share), or lengthen the horizon.'),
    note('imagination', 'reward of a dream', f'{reward:.2f}', reward),
  ]  # fmt: skip


def _reality(
  model: World,
  agents: Mapping[str, Params],
  env: Environment,
  seeds: range,
) -> dict[str, Reality] | None:
  phase, last = model.config.phases.imagination, env.spec.max_steps - 1
  starts = sorted({min(t, last) for t in (4, 16, 64)})
  return dream_and_play(
    model, agents, env, jax.random.key(0), seeds=seeds, starts=starts,
    dreams=Dreams(
      context=model.config.eval.context_frames,
      horizon=phase.horizon,
      sampling_steps=phase.sampling_steps,
      stop_at_event=phase.stop_at_event,
    ),
  )  # fmt: skip


def _dreams(name: str, own: Reality, config: Config) -> list[Finding]:
  """Compares an agent's dreams with what came of them."""
  phase = 'finetune' if name == 'bc' else 'imagination'
  summary: dict[str, Any] = own.summary(config.tasks)
  found = []
  if summary['phantom'] is not None:
    found.append(
      judge(phase, 'events dreamed where the game has none',
            summary['phantom'], Scale(fine=0.1, wrong=0.2),
            'Phantoms: dreams pay for what does not happen. Train the '
            'dynamics longer, or sample dreams with more steps.')
    )  # fmt: skip
  if summary['hit'] is not None and summary['events'] >= 5:
    found.append(
      judge(phase, 'events of the game that its dreams have too',
            summary['hit'], Scale(fine=0.6, wrong=0.3),
            'Dreams miss what happens; nothing can be learned from it.')
    )  # fmt: skip
  dreamed, real = own.return_dreamed, own.return_real
  if len(real) >= 20 and np.std(real) > 0 and np.std(dreamed) > 0:
    together = float(np.corrcoef(dreamed, real)[0, 1])
    slope = float(np.cov(dreamed, real)[0, 1] / np.var(dreamed, ddof=1))
    found += [
      judge(phase, 'returns dreamed and real, correlation', together,
            Scale(fine=0.5, wrong=0.2),
            'What is good in dreams is not good in the game.'),
      note(phase, 'and slope', f'{slope:.2f}', slope),
    ]  # fmt: skip
  text = f'{np.mean(dreamed):.2f}, {np.mean(real):.2f}'
  found.append(note(phase, 'mean return dreamed, and real', text))
  return [dataclasses.replace(f, name=f'{f.name} ({name})') for f in found]
