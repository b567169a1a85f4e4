"""What a trained run can do, in figures and pictures.

Held-out video, policies in the real environment, and dreams beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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

from dreamer4_jax import checkpoint
from dreamer4_jax.config import PHASES, Config, require, saved
from dreamer4_jax.data import EpisodeSource
from dreamer4_jax.data.held_out import (
  BATCH_SIZE,
  DREAMS,
  check_held_out,
  held_out_clips,
)
from dreamer4_jax.envs import Environment
from dreamer4_jax.envs.checks import needed_environment
from dreamer4_jax.evals import policies, report, tiles, video
from dreamer4_jax.evals.reality import Reality, dream_and_play
from dreamer4_jax.models import Params, World
from dreamer4_jax.runtime.clock import Clock, seconds
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
VIDEOS = 8
"""Episodes in a video."""


def evaluate(
  run_dir: str | pathlib.Path,
  *,
  config: Config | None = None,
  episodes: int | None = None,
  seed: int | None = None,
) -> dict[str, Any]:
  """Evaluates a run whose four phases are trained.

  Held-out reconstructions and dreams; clones and the imagined policy at all
  temperatures of its config, on the same episodes; dreams against reality.
  Writes `results.json`, `report.md`, plots and videos into the run directory.

  Args:
    run_dir: run directory.
    config: by default the one saved there.
    episodes: closed-loop episodes per policy; by default as the config says.
    seed: first seed of these episodes; likewise.

  Returns:
    What is written to `results.json`.

  Raises:
    FileNotFoundError: there is no run, or no dataset.
    ValueError: something does not fit; nothing was written.
  """
  run_dir = pathlib.Path(run_dir)
  config = _with_episodes(config or saved.load_run(run_dir), episodes, seed)
  for phase in PHASES:
    if not checkpoint.latest_step(run_dir, phase):
      raise FileNotFoundError(
        f'{run_dir}: the phase {phase} is not trained; train all four phases '
        'first, with `dreamer4 train`'
      )
  checkpoint.check_run(run_dir, config)
  env = needed_environment(config)
  check_held_out(config)
  with Clock(run_dir, 'evaluation', again=True):
    found = _measure(config, run_dir, env)
  results = found.results(config, env, run_dir)
  # First: a plot or video that fails costs itself only.
  report.write_json(run_dir / 'results.json', results)
  (run_dir / 'report.md').write_text(report.markdown(results, found.horizons))
  _draw(found, run_dir, results)
  return results


def play(
  run_dir: str | pathlib.Path,
  out: str | pathlib.Path | None = None,
  *,
  env: str = '',
  agents: Sequence[str] = (),
  temperatures: Sequence[float] = (1.0,),
  episodes: int | None = None,
  seed: int | None = None,
  videos: int = VIDEOS,
) -> dict[str, Any]:
  """Plays some policies of a run, in any environment with the same interface.

  Args:
    run_dir: run directory; finetuning must be done, for `rl` imagination too.
    out: directory for `episodes.json` and a video of each policy; by default
      `episodes` in the run directory.
    env: name of the environment, by default that of the run. Frames, actions
      and tasks must be those of the run.
    agents: names, as `policies.load_policies` gives them, the first of which
      is compared with all others; by default all, `rl` first. Random actions
      are always played.
    temperatures: of trained policies; 0 is greedy.
    episodes: of each policy; by default as the config says.
    seed: first seed of the episodes; likewise.
    videos: episodes in each video; 0 for no videos.

  Returns:
    What is written to `episodes.json`: `agents` with their figures, and
    `comparisons`, paired on the same episodes.

  Raises:
    FileNotFoundError: there is no run.
    ValueError: something does not fit; nothing was written.
  """
  run_dir = pathlib.Path(run_dir)
  out = pathlib.Path(out or run_dir / 'episodes')
  config = _with_episodes(saved.load_run(run_dir), episodes, seed)
  require(
    len(temperatures) > 0 and min(temperatures) >= 0,
    'temperatures',
    tuple(temperatures),
    'needs at least one, none below 0; 0 is greedy',
  )
  require(videos >= 0, 'videos', videos, 'must be at least 0')
  if env:
    config = dataclasses.replace(
      config, env=dataclasses.replace(config.env, name=env)
    )
  game = needed_environment(config)
  known = policies.load_policies(run_dir, config)
  names = agents or [*sorted(known, key=lambda name: name != 'rl')]
  played = policies.play_policies(
    World.from_config(config),
    policies.choose(known, names),
    game,
    **_episode_settings(config),
    temperatures=temperatures,
    keep_frames=min(videos, config.eval.episodes),
  )
  results = {
    'run': str(run_dir),
    'env': config.env.name,
    'first_seed': config.eval.seed,
    'agents': policies.summaries(game, played),
    'comparisons': policies.against_first(played),
    'device': _device(),
    'versions': _versions(config),
  }
  out.mkdir(parents=True, exist_ok=True)
  report.write_json(out / 'episodes.json', results)
  for name, e in played.items() if videos else ():
    with _optional(out / f'{name}.mp4') as path:
      report.write_video(path, report.agent_video(np.asarray(e.frames)))
  return results


def dream(
  run_dir: str | pathlib.Path,
  out: str | pathlib.Path | None = None,
  *,
  clips: int = 8,
  context_frames: int | None = None,
  horizon: int | None = None,
  sampling_steps: int | None = None,
  seed: int | None = None,
) -> dict[str, Any]:
  """Continues held-out clips with their own actions: real above dreamed.

  Args:
    run_dir: run directory; the dynamics must be trained. The latest phase with
      a world model is taken.
    out: directory for `dream.png`, `dream.mp4` and `dream.json`; by default
      `dream` in the run directory.
    clips: how many.
    context_frames: real frames before each dream; by default as the config's
      `eval` says.
    horizon: frames dreamed; by default the longest of `eval.horizons`.
    sampling_steps: K; by default that of imagination.
    seed: which clips are drawn; by default `eval.seed`.

  Returns:
    What is written to `dream.json`: PSNR in dB at each frame ahead, beside
    those of the last frame repeated and of actions of other clips.

  Raises:
    FileNotFoundError: there is no run, or no dataset.
    ValueError: something does not fit; nothing was written.
  """
  run_dir = pathlib.Path(run_dir)
  out = pathlib.Path(out or run_dir / 'dream')
  config = saved.load_run(run_dir)
  e = config.eval
  given = {
    'clips': clips,
    'context_frames': context_frames or e.context_frames,
    'horizons': (horizon or max(e.horizons),),
    'seed': e.seed if seed is None else seed,
  }
  config = dataclasses.replace(config, eval=dataclasses.replace(e, **given))
  steps = sampling_steps or config.phases.imagination.sampling_steps
  trained = [p for p in PHASES[1:] if checkpoint.latest_step(run_dir, p)]
  if not trained:
    raise FileNotFoundError(
      f'{run_dir}: the phase dynamics is not trained; train it first, with '
      '`dreamer4 train`'
    )
  check_held_out(config)
  params, _ = checkpoint.load_params(run_dir, trained[-1])
  params = jax.tree.map(jax.numpy.asarray, params)
  dreams = _dream(config, World.from_config(config), params, steps)
  horizons = tuple(range(1, max(config.eval.horizons) + 1))
  results = {
    'run': str(run_dir),
    'phase': trained[-1],
    'sampling_steps': steps,
    **given,
    **video.open_loop_psnr(dreams, horizons),
  }
  out.mkdir(parents=True, exist_ok=True)
  report.write_json(out / 'dream.json', results)
  with _optional(out / 'dream.png') as path:
    report.write_image(path, report.dream_sheet(dreams, clips))
  with _optional(out / 'dream.mp4') as path:
    report.write_video(path, report.dream_video(dreams, clips))
  return results


@dataclasses.dataclass(frozen=True)
class _Found:
  """All that an evaluation measures."""

  tokenizer: dict[str, Any]
  reconstructions: video.Reconstructions
  dynamics: dict[str, float | None]
  dreams: video.OpenLoop
  episodes: dict[str, policies.Episodes]
  reality: dict[str, Reality] | None
  parameters: dict[str, int]
  horizons: tuple[int, ...]

  def results(
    self, config: Config, env: Environment, run_dir: pathlib.Path
  ) -> dict[str, Any]:
    """Returns what is written to `results.json`."""
    return {
      'tokenizer': self.tokenizer,
      'dynamics': self.dynamics,
      'agents': policies.summaries(env, self.episodes),
      **policies.compare_with_clones(self.episodes),
      'reality': self.reality
      and {k: agent.summary(config.tasks) for k, agent in self.reality.items()},
      'parameters': self.parameters,
      'device': _device(),
      'versions': _versions(config),
      'seed': config.seed,
      'config': json.loads(config.to_json()),
      'seconds': _seconds(run_dir),
    }


def _measure(config: Config, run_dir: pathlib.Path, env: Environment) -> _Found:
  world = World.from_config(config)
  known = policies.load_policies(run_dir, config)
  params = known['rl'].params
  held_out = _held_out(config)
  palette = _palette(env, held_out)
  tokenizer, seen = _tokenizer(world, params, held_out, palette)
  del held_out
  steps = config.phases.imagination.sampling_steps
  dreams = _dream(config, world, params, steps)
  horizons = tuple(sorted({1, *config.eval.horizons}))
  episodes = policies.play_policies(
    world,
    known,
    env,
    **_episode_settings(config),
    temperatures=config.eval.temperatures,
    keep_frames=VIDEOS,
  )
  return _Found(
    tokenizer=tokenizer,
    reconstructions=seen,
    dynamics=_dream_figures(dreams, horizons, palette),
    dreams=dreams,
    episodes=episodes,
    reality=_reality(config, world, known, env),
    parameters={
      name: sum(x.size for x in jax.tree.leaves(own))
      for name, own in params.items()
    },
    horizons=horizons,
  )


def _draw(
  found: _Found, run_dir: pathlib.Path, results: Mapping[str, Any]
) -> None:
  frames = np.asarray(found.episodes['rl'].frames)
  drawings: dict[str, Callable[[pathlib.Path], None]] = {
    'training.png': lambda path: report.plot_training(run_dir, PHASES),
    'success.png': lambda path: report.plot_success(run_dir, results),
    'worst.png': lambda path: report.write_image(
      path, report.worst_sheet(found.reconstructions)
    ),
    'dreams.png': lambda path: report.write_image(
      path, report.dream_sheet(found.dreams)
    ),
    'dreams.mp4': lambda path: report.write_video(
      path, report.dream_video(found.dreams)
    ),
    'agent.mp4': lambda path: report.write_video(
      path, report.agent_video(frames)
    ),
    'phantoms.png': lambda path: _draw_phantoms(path, found.reality or {}),
  }
  for name, draw in drawings.items():
    with _optional(run_dir / name) as path:
      draw(path)


@contextlib.contextmanager
def _optional(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Goes on without what is for the eye only."""
  try:
    yield path
  except Exception as error:
    reason = f'{type(error).__name__}: {error}'.splitlines()[0]
    _LOG.warning('%s is left out (%s)', path, reason)


def _with_episodes(
  config: Config, episodes: int | None, seed: int | None
) -> Config:
  given = {'episodes': episodes, 'seed': seed}
  changes = {k: v for k, v in given.items() if v is not None}
  return dataclasses.replace(
    config, eval=dataclasses.replace(config.eval, **changes)
  )


def _episode_settings(config: Config) -> dict[str, Any]:
  e = config.eval
  return {
    'seeds': range(e.seed, e.seed + e.episodes),
    'key': jax.random.fold_in(jax.random.key(e.seed), config.seed),
  }


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
  clips = held_out_clips(config, length)
  count = math.ceil(frames / (BATCH_SIZE * length))
  return [next(clips) for _ in range(count)]


def _palette(env: Environment, batches: list[Batch]) -> tiles.Palette | None:
  known = env.spec.tiles
  return known and tiles.find_palette(known, [b.frames for b in batches])


def _tokenizer(
  world: World,
  params: Params,
  batches: list[Batch],
  palette: tiles.Palette | None,
) -> tuple[dict[str, Any], video.Reconstructions]:
  seen = video.reconstructions(
    world,
    params,
    batches,
    **({'side': palette.tiles.side, 'name': palette.read} if palette else {}),
  )
  figures: dict[str, Any] = video.summary(seen.errors)
  if palette:
    figures |= tiles.reconstruction_tiles(
      palette.tiles, seen.names, seen.names_decoded
    )
  errors = video.vector_errors(world, params, batches)
  return figures | ({'vectors': errors} if errors else {}), seen


def _dream(
  config: Config, world: World, params: Params, sampling_steps: int
) -> video.OpenLoop:
  e = config.eval
  length = e.context_frames + max(e.horizons)
  clips = held_out_clips(config, length, DREAMS)
  return video.open_loop(
    world,
    params,
    video.one_episode_clips(clips, e.clips),
    jax.random.key(e.seed),
    context_frames=e.context_frames,
    sampling_steps=sampling_steps,
  )


def _dream_figures(
  dreams: video.OpenLoop,
  horizons: tuple[int, ...],
  palette: tiles.Palette | None,
) -> dict[str, float | None]:
  if palette is None:
    return video.open_loop_psnr(dreams, horizons)
  return {
    **video.open_loop_psnr(dreams, horizons, side=palette.tiles.side),
    **tiles.dream_tiles(palette, dreams, horizons),
  }


def _reality(
  config: Config,
  world: World,
  known: Mapping[str, policies.Policy],
  env: Environment,
) -> dict[str, Reality] | None:
  """Dreams as imagination does; None if it is off, or on the host."""
  e, phase = config.eval, config.phases.imagination
  if not e.reality_episodes:
    return None
  # Short episodes have no late frames.
  last = env.spec.max_steps - 1
  return dream_and_play(
    world,
    {name: known[name].params for name in ('bc', 'rl')},
    env,
    jax.random.fold_in(jax.random.key(e.seed), config.seed),
    seeds=range(e.seed, e.seed + e.reality_episodes),
    starts=sorted({min(start, last) for start in e.reality_starts}),
    context=e.context_frames,
    horizon=phase.horizon,
    sampling_steps=phase.sampling_steps,
    stop_at_event=phase.stop_at_event,
  )


def _draw_phantoms(path: pathlib.Path, reality: Mapping[str, Reality]) -> None:
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
