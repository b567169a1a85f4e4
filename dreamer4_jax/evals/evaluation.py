"""What a trained run can do, in figures and pictures.

Held-out video, policies in the real environment, and dreams compared with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import json
import logging
import math
import pathlib
from typing import Any

import jax
import numpy as np

from dreamer4_jax import checkpoint
from dreamer4_jax.config import PHASES, Config, saved
from dreamer4_jax.data import EpisodeSource
from dreamer4_jax.data.held_out import (
  BATCH_SIZE,
  check_held_out,
  held_out_clips,
)
from dreamer4_jax.envs import Environment
from dreamer4_jax.envs.checks import needed_environment
from dreamer4_jax.evals import (
  drawing,
  files,
  policies,
  provenance,
  report,
  tiles,
  video,
)
from dreamer4_jax.evals.excerpts import (
  VIDEOS,
  dream_clips,
  episode_settings,
  with_episodes,
)
from dreamer4_jax.evals.reality import Dreams, Reality, dream_and_play
from dreamer4_jax.evals.recorded import recorded
from dreamer4_jax.models import Params, World
from dreamer4_jax.runtime.clock import Clock, seconds
from dreamer4_jax.types import Batch

_LOG = logging.getLogger(__name__)
FRAMES_A_CLIP = 8
"""Held-out frames for the tokenizer's figures, for each of `eval.clips`."""
MOST_KEPT, KEPT_BYTES = 64, 1 << 27
"""Episodes of a policy whose frames are kept, and about how many bytes."""
REALITY_EPISODES = 128
"""Episodes of a policy in which it dreams, at most."""
REALITY_STARTS = (4, 8, 12)
"""Frames of an episode at which its dreams begin, 0 being the first; those
beyond the time limit stand for the last frame before it."""


def evaluate(
  run_dir: str | pathlib.Path,
  *,
  config: Config | None = None,
  episodes: int | None = None,
  seed: int | None = None,
) -> dict[str, Any]:
  """Evaluates a run whose four phases are trained.

  Measures held-out reconstructions and dreams; clones and the imagined policy
  at all temperatures of its config, on the same episodes; dreams against
  reality. Writes `results.json`, `report.md`, plots and videos to `run_dir`.

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
  config = with_episodes(config or saved.load_run(run_dir), episodes, seed)
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
  # First, so that a plot or video that fails costs only itself.
  files.write_json(run_dir / 'results.json', results)
  np.savez_compressed(
    run_dir / 'episodes.npz',
    **policies.outcomes(env, {**found.recordings, **found.episodes}),
  )
  (run_dir / 'report.md').write_text(report.markdown(results, found.horizons))
  _draw(found, run_dir, results)
  return results


@dataclasses.dataclass(frozen=True)
class _Found:
  """All that an evaluation measures."""

  tokenizer: dict[str, Any]
  reconstructions: video.Reconstructions
  dynamics: dict[str, float | None]
  dreams: video.OpenLoop
  episodes: dict[str, policies.Episodes]
  recordings: dict[str, policies.Episodes]
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
      'recordings': policies.summaries(env, self.recordings),
      **policies.compare_with_clones(self.episodes),
      'rl_vs_clones': policies.compare_achievements(
        env, self.episodes, [config.tasks[k] for k, _ in config.stages()]
      ),
      'reality': self.reality
      and {k: agent.summary(config.tasks) for k, agent in self.reality.items()},
      'parameters': self.parameters,
      'device': provenance.device(),
      'versions': provenance.versions(config),
      'commit': checkpoint.code_version().get('commit', '')[:7],
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
  dreams = dream_clips(config, world, params, steps)
  horizons = tuple(sorted({1, *config.eval.horizons}))
  episodes = policies.play_policies(
    world,
    known,
    env,
    **episode_settings(config),
    temperatures=config.eval.temperatures,
    keep_frames=_kept_episodes(env, config.eval.episodes),
  )
  return _Found(
    tokenizer=tokenizer,
    reconstructions=seen,
    dynamics=_dream_figures(dreams, horizons, palette),
    dreams=dreams,
    episodes=episodes,
    recordings=recorded(config, env.spec.tasks),
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
  rl = found.episodes['rl']
  frames = np.asarray(rl.frames[:VIDEOS])
  drawings: dict[str, Callable[[pathlib.Path], None]] = {
    'training.png': lambda path: drawing.plot_training(run_dir, PHASES),
    'success.png': lambda path: drawing.plot_success(run_dir, results),
    'worst.png': lambda path: files.write_image(
      path, drawing.worst_sheet(found.reconstructions)
    ),
    'dreams.png': lambda path: files.write_image(
      path, drawing.dream_sheet(found.dreams)
    ),
    'dreams.mp4': lambda path: files.write_video(
      path, drawing.dream_video(found.dreams)
    ),
    'agent.mp4': lambda path: files.write_video(
      path, drawing.agent_video(frames)
    ),
    'extremes.mp4': lambda path: files.write_video(
      path, drawing.agent_video(_extremes(rl), columns=3)
    ),
    'phantoms.png': lambda path: _draw_phantoms(path, found.reality or {}),
  }
  for name, draw in drawings.items():
    with files.optional(run_dir / name) as path:
      draw(path)


def _kept_episodes(env: Environment, episodes: int) -> int:
  """How many episodes of a policy keep their frames."""
  spec = env.spec
  size = spec.max_steps * spec.height * spec.width * spec.channels
  return min(episodes, max(VIDEOS, min(MOST_KEPT, KEPT_BYTES // size)))


def _extremes(e: policies.Episodes) -> np.ndarray:
  """Frames of the best, the median and the worst episode that was kept."""
  count = len(e.frames)
  order = np.lexsort((e.returns[:count], e.achieved[:count].sum(axis=1)))
  chosen = [order[-1], order[count // 2], order[0]]
  return np.asarray(e.frames[chosen, : e.length[chosen].max() + 1])


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
  """Returns held-out clips, none twice except to fill a batch."""
  length = config.dynamics.context_length
  index = EpisodeSource(
    config.data.path, config.data.eval_split, cache_bytes=0
  ).index
  frames = min(FRAMES_A_CLIP * config.eval.clips, int(index.lengths.sum()))
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
  """Plays dreams in reality; None for an environment on the host."""
  e, phase = config.eval, config.phases.imagination
  # Short episodes have no late frames.
  last = env.spec.max_steps - 1
  return dream_and_play(
    world,
    {name: known[name].params for name in ('bc', 'rl')},
    env,
    jax.random.fold_in(jax.random.key(e.seed), config.seed),
    seeds=range(e.seed, e.seed + min(e.episodes, REALITY_EPISODES)),
    starts=sorted({min(start, last) for start in REALITY_STARTS}),
    dreams=Dreams(
      context=e.context_frames,
      horizon=phase.horizon,
      sampling_steps=phase.sampling_steps,
      stop_at_event=phase.stop_at_event,
    ),
  )


def _draw_phantoms(path: pathlib.Path, reality: Mapping[str, Reality]) -> None:
  """Draws phantoms if there are any; else removes those drawn earlier."""
  if any(len(agent.phantoms.task) for agent in reality.values()):
    files.write_image(path, drawing.phantom_sheet(reality))
  else:
    path.unlink(missing_ok=True)
