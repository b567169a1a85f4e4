"""`dreamer4 quickstart`: from nothing to an agent that learned in its dreams.

Records a dataset, trains the four phases, evaluates and reports. Each part
leaves a file when it is done, so an interrupted run goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import dataclasses
from importlib import metadata
import json
import logging
import os
import pathlib
import platform
import time
from typing import Any

import jax
import numpy as np

from dreamer4_jax import evals
from dreamer4_jax.cli.loaders import evaluation_loader, training_loader
from dreamer4_jax.config import PHASES, Config
from dreamer4_jax.envs import make_env
from dreamer4_jax.evals import report
from dreamer4_jax.models import World
from dreamer4_jax.training import phases

_LOG = logging.getLogger(__name__)
_PACKAGES = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'navix')


class Stopwatch:
  """Seconds per part, kept on disk and summed over interruptions."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    self.seconds: dict[str, float] = {}
    if path.exists():
      self.seconds = json.loads(path.read_text())

  @contextlib.contextmanager
  def __call__(self, part: str):
    """Adds the time spent inside to `part`, also if it is interrupted."""
    start = time.monotonic()
    try:
      yield
    finally:
      spent = self.seconds.get(part, 0.0) + time.monotonic() - start
      self.seconds[part] = spent
      report.write_json(self._path, self.seconds)


def quickstart(
  config: Config,
  run_dir: pathlib.Path,
  record: Callable[[str], Any],
  pretokenise: Callable[[str, str, str], Any],
) -> dict[str, Any]:
  """Runs all parts and returns what is written to `results.json`.

  Args:
    config: the run; `config.data.path` is where the dataset is, or will be.
    run_dir: where everything else goes.
    record: records the dataset at a path; called if it is not there yet.
    pretokenise: takes the run, a dataset and a path, and writes the dataset's
      latents there, with the run's trained tokenizer; called likewise.
  """
  run_dir.mkdir(parents=True, exist_ok=True)
  watch = Stopwatch(run_dir / 'seconds.json')
  with watch('data'):
    if not pathlib.Path(config.data.path).exists():
      _LOG.info('data: recording %s', config.data.path)
      record(config.data.path)
  latents = run_dir / 'latents'
  config = dataclasses.replace(
    config, data=dataclasses.replace(config.data, latents=str(latents))
  )
  for phase in PHASES:
    with watch(phase):
      phases.train(config, run_dir, (phase,), loaders=training_loader)
    if phase == 'tokenizer' and not latents.exists():
      with watch('data'):
        pretokenise(str(run_dir), config.data.path, str(latents))
  with watch('evaluation'):
    results = evaluate(config, run_dir)
  results['seconds'] = {**watch.seconds, 'total': sum(watch.seconds.values())}
  report.write_json(run_dir / 'results.json', results)
  text = report.markdown(results, config.eval.horizons)
  (run_dir / 'report.md').write_text(text)
  return results


def evaluate(config: Config, run_dir: pathlib.Path) -> dict[str, Any]:
  """Evaluates the trained phases; writes plots and videos."""
  world = World.from_config(config)
  rooms, _ = phases.load_rooms(run_dir, 'imagination')
  rooms = jax.tree.map(jax.numpy.asarray, rooms)
  results: dict[str, Any] = {
    'tokenizer': {'psnr': _tokenizer(config, world, rooms)},
    'dynamics': _dynamics(config, world, rooms, run_dir),
  }
  episodes = _closed_loop(config, world, rooms, run_dir)
  results['agents'] = {name: e.summary() for name, e in episodes.items()}
  for name, e in episodes.items():
    rates = zip(config.tasks, e.achieved.mean(axis=0).tolist(), strict=True)
    results['agents'][name]['events'] = dict(rates)
  results['rl_vs_bc'] = evals.paired_comparison(
    episodes['rl'].success, episodes['bc'].success
  )
  report.plot_training(run_dir, PHASES)
  report.plot_success(run_dir, results)
  rooms.pop('prior')
  results['parameters'] = {
    name: sum(x.size for x in jax.tree.leaves(room))
    for name, room in rooms.items()
  }
  results['device'] = _device()
  results['versions'] = _versions()
  results['seed'] = config.seed
  results['config'] = json.loads(config.to_json())
  return results


def _tokenizer(config: Config, world: World, rooms: Any) -> float:
  loader = evaluation_loader(
    config, 'tokenizer', config.dynamics.context_length
  )
  batches = [next(loader) for _ in range(max(1, config.eval.clips // 16))]
  return evals.tokenizer_psnr(world, rooms, batches)


def _dynamics(
  config: Config, world: World, rooms: Any, run_dir: pathlib.Path
) -> dict[str, float]:
  e = config.eval
  length = e.context_frames + max(e.horizons)
  loader = evaluation_loader(config, 'dynamics', length)
  clips = evals.one_episode_clips(loader, e.clips)
  result = evals.open_loop(
    world,
    rooms,
    clips,
    jax.random.key(e.seed),
    context_frames=e.context_frames,
    sampling_steps=config.phases.imagination.sampling_steps,
  )
  report.write_video(run_dir / 'dreams.mp4', report.dream_video(result))
  report.write_image(run_dir / 'dreams.png', report.dream_sheet(result))
  return evals.open_loop_psnr(result, e.horizons)


def _closed_loop(
  config: Config, world: World, rooms: Any, run_dir: pathlib.Path
) -> dict[str, evals.Episodes]:
  e = config.eval
  env = make_env(config.env)
  agent, memory = evals.streaming_agent(world, e.episodes)
  # Same keys in both, so that the compiled step serves both.
  prior = rooms['prior']
  rooms = {name: room for name, room in rooms.items() if name != 'prior'}
  cloned = {**rooms, 'policy': prior}
  players: dict[str, tuple[Callable, Any, Any]] = {
    'random': (evals.random_agent(world), {}, ()),
    'bc': (agent, cloned, memory),
    'rl': (agent, rooms, memory),
  }
  episodes = {}
  for name, (player, params, start) in players.items():
    episodes[name] = evals.run_episodes(
      env,
      player,
      params,
      start,
      seeds=range(e.seed, e.seed + e.episodes),
      key=jax.random.fold_in(jax.random.key(e.seed), config.seed),
      keep_frames=8,
      label=name,
    )
    _LOG.info('%s: %s', name, episodes[name].summary())
  frames = np.asarray(episodes['rl'].frames)
  report.write_video(run_dir / 'agent.mp4', report.agent_video(frames))
  return episodes


def _device() -> str:
  kind = jax.devices()[0].device_kind
  return f'{jax.device_count()} x {kind}, {os.cpu_count()} CPU cores'


def _versions() -> dict[str, str]:
  versions = {name: metadata.version(name) for name in _PACKAGES}
  return {'python': platform.python_version(), **versions}
