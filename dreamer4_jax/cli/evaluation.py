"""`dreamer4 evaluate`: what a trained run can do, in figures and pictures.

Held-out video, policies in the real environment, and dreams beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
from importlib import metadata
import json
import logging
import math
import os
import pathlib
import platform
from typing import Any

import jax
import numpy as np

from dreamer4_jax import checkpoint, evals
from dreamer4_jax.cli import checks, configs
from dreamer4_jax.cli.loaders import EVALUATION_BATCH, evaluation_loader
from dreamer4_jax.config import PHASES, Config
from dreamer4_jax.data import EpisodeSource
from dreamer4_jax.envs import Environment
from dreamer4_jax.evals import report
from dreamer4_jax.models import World
from dreamer4_jax.training import phases
from dreamer4_jax.training.clock import Clock, seconds
from dreamer4_jax.types import Batch

_LOG = logging.getLogger(__name__)
_PACKAGES = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'grain')
_ENGINES = {
  'navix': ('navix',),
  'craftax': ('craftax',),
  'gymnasium': ('gymnasium', 'ale-py'),
  'dm_control': ('dm-control', 'mujoco'),
}
"""Packages behind an adapter, whose versions are noted besides."""


def evaluate_run(
  run_dir: str | pathlib.Path,
  *,
  episodes: int | None = None,
  seed: int | None = None,
) -> dict[str, Any]:
  """Evaluates a run whose four phases are trained, as `quickstart` does.

  Args:
    run_dir: run directory.
    episodes: closed-loop episodes per policy; by default as its config says.
    seed: first seed of these episodes; likewise.

  Returns:
    What is written to `results.json` in the run directory.

  Raises:
    FileNotFoundError: there is no run, or no dataset.
    ValueError: something does not fit; nothing was written.
  """
  run_dir = pathlib.Path(run_dir)
  config = configs.load_run(run_dir)
  given = {'episodes': episodes, 'seed': seed}
  changes = {k: v for k, v in given.items() if v is not None}
  config = dataclasses.replace(
    config, eval=dataclasses.replace(config.eval, **changes)
  )
  for phase in PHASES:
    if not checkpoint.latest_step(run_dir, phase):
      raise FileNotFoundError(
        f'{run_dir}: the phase {phase} is not trained; train all four phases '
        'first, with `dreamer4 train`'
      )
  checkpoint.check_run(run_dir, config)
  return evaluate(config, run_dir, checks.check_evaluation(config))


def evaluate(
  config: Config, run_dir: pathlib.Path, env: Environment
) -> dict[str, Any]:
  """Evaluates the trained phases; writes results, report, plots and videos.

  The results are written first: a plot or video that fails costs itself only.

  Args:
    config: the run.
    run_dir: run directory.
    env: the environment.
  """
  with Clock(run_dir, 'evaluation', again=True):
    world = World.from_config(config)
    rooms, _ = phases.load_rooms(run_dir, 'imagination')
    rooms = jax.tree.map(jax.numpy.asarray, rooms)
    prior = rooms.pop('prior')
    cloned = {**rooms, 'policy': prior}
    if config.phases.imagination.world_rate:
      # The clone is that of finetuning, not what became of it since.
      saved, _ = phases.load_rooms(run_dir, 'finetune')
      cloned |= jax.tree.map(jax.numpy.asarray, saved)
    held_out = _held_out(config)
    palette = _palette(env, held_out)
    tokenizer, seen = _tokenizer(world, rooms, held_out, palette)
    del held_out
    dreams = _dynamics(config, world, rooms)
    episodes = _closed_loop(config, world, rooms, cloned, env)
    reality = _reality(config, world, rooms, cloned, env)
  horizons = tuple(sorted({1, *config.eval.horizons}))
  results: dict[str, Any] = {
    'tokenizer': tokenizer,
    'dynamics': _dream_figures(dreams, horizons, palette),
    'agents': _agents(config, env, episodes),
    **_comparisons(episodes),
  }
  results['reality'] = reality and {
    name: agent.summary(config.tasks) for name, agent in reality.items()
  }
  results['parameters'] = {
    name: sum(x.size for x in jax.tree.leaves(room))
    for name, room in rooms.items()
  }
  results['device'] = _device()
  results['versions'] = _versions(config)
  results['seed'] = config.seed
  results['config'] = json.loads(config.to_json())
  results['seconds'] = _seconds(run_dir)
  report.write_json(run_dir / 'results.json', results)
  text = report.markdown(results, horizons)
  (run_dir / 'report.md').write_text(text)
  frames = np.asarray(episodes['rl'].frames)
  for name, draw in {
    'training.png': lambda path: report.plot_training(run_dir, PHASES),
    'success.png': lambda path: report.plot_success(run_dir, results),
    'worst.png': lambda path: report.write_image(
      path, report.worst_sheet(seen)
    ),
    'dreams.png': lambda path: report.write_image(
      path, report.dream_sheet(dreams)
    ),
    'dreams.mp4': lambda path: report.write_video(
      path, report.dream_video(dreams)
    ),
    'agent.mp4': lambda path: report.write_video(
      path, report.agent_video(frames)
    ),
    'phantoms.png': lambda path: _draw_phantoms(path, reality or {}),
  }.items():
    with _optional(run_dir / name):
      draw(run_dir / name)
  return results


@contextlib.contextmanager
def _optional(path: pathlib.Path) -> Iterator[None]:
  """Goes on without what is for the eye only."""
  try:
    yield
  except Exception as error:
    reason = f'{type(error).__name__}: {error}'.splitlines()[0]
    _LOG.warning('%s is left out (%s)', path, reason)


def _seconds(run_dir: pathlib.Path) -> dict[str, float]:
  """Returns the seconds of each part in order, and their sum."""
  known = seconds(run_dir)
  parts = {
    part: known[part]
    for part in ('data', *PHASES, 'evaluation')
    if part in known
  }
  return {**parts, 'total': sum(parts.values())}


def _held_out(config: Config) -> list[Batch]:
  """Returns clips of `eval.frames` frames, none twice but to fill a batch."""
  length = config.dynamics.context_length
  index = EpisodeSource(
    config.data.path, config.data.eval_split, cache_bytes=0
  ).index
  frames = min(config.eval.frames, int(index.lengths.sum()))
  loader = evaluation_loader(config, 'tokenizer', length)
  count = math.ceil(frames / (EVALUATION_BATCH * length))
  return [next(loader) for _ in range(count)]


def _palette(env: Environment, batches: list[Batch]) -> evals.Palette | None:
  tiles = env.spec.tiles
  return tiles and evals.find_palette(tiles, [b.frames for b in batches])


def _tokenizer(
  world: World, rooms: Any, batches: list[Batch], palette: evals.Palette | None
) -> tuple[dict[str, Any], evals.Reconstructions]:
  seen = evals.reconstructions(
    world,
    rooms,
    batches,
    **({'side': palette.tiles.side, 'name': palette.read} if palette else {}),
  )
  figures: dict[str, Any] = evals.summary(seen.errors)
  if palette:
    figures |= evals.reconstruction_tiles(
      palette.tiles, seen.names, seen.names_decoded
    )
  errors = evals.vector_errors(world, rooms, batches)
  return figures | ({'vectors': errors} if errors else {}), seen


def _dynamics(config: Config, world: World, rooms: Any) -> evals.OpenLoop:
  e = config.eval
  length = e.context_frames + max(e.horizons)
  loader = evaluation_loader(config, 'dynamics', length)
  clips = evals.one_episode_clips(loader, e.clips)
  return evals.open_loop(
    world,
    rooms,
    clips,
    jax.random.key(e.seed),
    context_frames=e.context_frames,
    sampling_steps=config.phases.imagination.sampling_steps,
  )


def _dream_figures(
  dreams: evals.OpenLoop,
  horizons: tuple[int, ...],
  palette: evals.Palette | None,
) -> dict[str, float | None]:
  if palette is None:
    return evals.open_loop_psnr(dreams, horizons)
  return {
    **evals.open_loop_psnr(dreams, horizons, side=palette.tiles.side),
    **evals.dream_tiles(palette, dreams, horizons),
  }


def _closed_loop(
  config: Config, world: World, rooms: Any, cloned: Any, env: Environment
) -> dict[str, evals.Episodes]:
  """Plays all policies on the same episodes, clones before `rl`."""
  e = config.eval
  settings: dict[str, Any] = {
    'seeds': range(e.seed, e.seed + e.episodes),
    'key': jax.random.fold_in(jax.random.key(e.seed), config.seed),
    'keep_frames': 8,
  }
  random = evals.Evaluator(env, evals.random_agent(world))
  episodes = {'random': random.play({}, (), label='random', **settings)}
  agent, _ = evals.streaming_agent(world, e.episodes)
  trained = evals.Evaluator(env, agent)
  kinds: dict[str, tuple[Any, int | None]] = {'bc': (cloned, None)}
  for prompt, name in enumerate(config.baselines, config.agent.num_tasks):
    kinds[f'bc_{name}'] = cloned, prompt
  kinds['rl'] = rooms, None
  # All have rooms of the same names, so that one compiled turn serves them.
  for kind, (params, prompt) in kinds.items():
    for temperature in e.temperatures:
      name = _tempered(kind, temperature)
      memory = evals.streaming_memory(world, e.episodes, prompt, temperature)
      episodes[name] = trained.play(params, memory, label=name, **settings)
  return episodes


def _tempered(kind: str, temperature: float) -> str:
  """Names a policy: `rl` at temperature 1, `rl_0.5`, `rl_greedy` at 0."""
  if temperature == 1:
    return kind
  return f'{kind}_{temperature:g}' if temperature else f'{kind}_greedy'


def _agents(
  config: Config, env: Environment, episodes: Mapping[str, evals.Episodes]
) -> dict[str, Any]:
  """Summaries of all policies, with the share of episodes with each event."""
  agents: dict[str, Any] = {}
  for name, e in episodes.items():
    rates = {}
    if evals.has_events(env):
      rates = dict(
        zip(config.tasks, e.achieved.mean(axis=0).tolist(), strict=True)
      )
    agents[name] = {**e.summary(), 'events': rates}
  return agents


def _comparisons(episodes: Mapping[str, evals.Episodes]) -> dict[str, Any]:
  """Compares `rl` at temperature 1 with its clone and with the best clone.

  The best clone is chosen on these very episodes, which favours it.
  """
  clones = {k: e for k, e in episodes.items() if k.startswith('bc')}
  name = evals.best_policy(clones)
  rl, bc, best = episodes['rl'], episodes['bc'], episodes[name]
  return {
    'best_clone': name,
    'rl_vs_bc': evals.compare_policies(
      rl.success, bc.success, rl.returns, bc.returns
    ),
    'rl_vs_best_clone': evals.compare_policies(
      rl.success, best.success, rl.returns, best.returns
    ),
    'rl_vs_best_clone_steps': evals.compare_steps(
      rl.success, best.success, rl.length, best.length
    ),
  }


def _reality(
  config: Config, world: World, rooms: Any, cloned: Any, env: Environment
) -> dict[str, evals.Reality] | None:
  """Dreams as imagination does; None if it is off, or on the host."""
  e, phase = config.eval, config.phases.imagination
  if not e.reality_episodes:
    return None
  # Short episodes have no late frames.
  last = env.spec.max_steps - 1
  return evals.dream_and_play(
    world,
    {'bc': cloned, 'rl': rooms},
    env,
    jax.random.fold_in(jax.random.key(e.seed), config.seed),
    seeds=range(e.seed, e.seed + e.reality_episodes),
    starts=sorted({min(start, last) for start in e.reality_starts}),
    context=e.context_frames,
    horizon=phase.horizon,
    sampling_steps=phase.sampling_steps,
    stop_at_event=phase.stop_at_event,
  )


def _draw_phantoms(
  path: pathlib.Path, reality: dict[str, evals.Reality]
) -> None:
  """Draws them if there are any; else those of an earlier time go."""
  if any(len(agent.phantoms.task) for agent in reality.values()):
    report.write_image(path, report.phantom_sheet(reality))
  else:
    path.unlink(missing_ok=True)


def _device() -> str:
  kind = jax.devices()[0].device_kind
  return f'{jax.device_count()} x {kind}, {os.cpu_count()} CPU cores'


def _versions(config: Config) -> dict[str, str]:
  """Versions of what the run used; an engine that is not there says so."""
  versions = {'python': platform.python_version()}
  engine = _ENGINES.get(config.env.name.partition(':')[0], ())
  for name in (*_PACKAGES, *engine):
    try:
      versions[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      versions[name] = 'not installed'
  return versions
