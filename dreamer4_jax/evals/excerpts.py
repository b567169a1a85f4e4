"""Parts of an evaluation on their own: episodes, and dreams beside reality."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from dreamer4_jax import checkpoint
from dreamer4_jax.config import PHASES, Config, require, saved
from dreamer4_jax.data.held_out import DREAMS, check_held_out, held_out_clips
from dreamer4_jax.envs.checks import needed_environment
from dreamer4_jax.evals import (
  drawing,
  files,
  policies,
  provenance,
  video,
)
from dreamer4_jax.models import Params, World

VIDEOS = 8
"""Episodes in a video."""


def play(
  run_dir: str | pathlib.Path,
  out: str | pathlib.Path | None = None,
  *,
  config: Config | None = None,
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
    config: by default the one saved there; it may name another environment,
      with the same frames, actions and tasks, or another prompt.
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
  config = with_episodes(config or saved.load_run(run_dir), episodes, seed)
  require(
    len(temperatures) > 0 and min(temperatures) >= 0,
    'temperatures',
    tuple(temperatures),
    'needs at least one, none below 0; 0 is greedy',
  )
  require(videos >= 0, 'videos', videos, 'must be at least 0')
  game = needed_environment(config)
  known = policies.load_policies(run_dir, config)
  names = agents or [*sorted(known, key=lambda name: name != 'rl')]
  played = policies.play_policies(
    World.from_config(config),
    policies.choose(known, names),
    game,
    **episode_settings(config),
    temperatures=temperatures,
    keep_frames=min(videos, config.eval.episodes),
  )
  results = {
    'run': str(run_dir),
    'env': config.env.name,
    'prompt': prompt_text(config),
    'first_seed': config.eval.seed,
    'agents': policies.summaries(game, played),
    'comparisons': policies.against_first(played),
    'device': provenance.device(),
    'versions': provenance.versions(config),
  }
  out.mkdir(parents=True, exist_ok=True)
  files.write_json(out / 'episodes.json', results)
  np.savez_compressed(out / 'episodes.npz', **policies.outcomes(game, played))
  for name, e in played.items() if videos else ():
    with files.optional(out / f'{name}.mp4') as path:
      files.write_video(path, drawing.agent_video(np.asarray(e.frames)))
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
      a world model is used.
    out: directory for `dream.png`, `dream.mp4` and `dream.json`; by default
      `dream` in the run directory.
    clips: how many.
    context_frames: real frames before each dream; by default as the config's
      `eval` says.
    horizon: frames dreamed; by default the longest of `eval.horizons`.
    sampling_steps: K; by default that of imagination.
    seed: which clips are drawn; by default `eval.seed`.

  Returns:
    What is written to `dream.json`: PSNR in dB at each frame ahead, along with
    those of repeating the last frame and of actions of other clips.

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
  dreams = dream_clips(config, World.from_config(config), params, steps)
  horizons = tuple(range(1, max(config.eval.horizons) + 1))
  results = {
    'run': str(run_dir),
    'phase': trained[-1],
    'sampling_steps': steps,
    **given,
    **video.open_loop_psnr(dreams, horizons),
  }
  out.mkdir(parents=True, exist_ok=True)
  files.write_json(out / 'dream.json', results)
  with files.optional(out / 'dream.png') as path:
    files.write_image(path, drawing.dream_sheet(dreams, clips))
  with files.optional(out / 'dream.mp4') as path:
    files.write_video(path, drawing.dream_video(dreams, clips))
  return results


def prompt_text(config: Config) -> list[str]:
  """Returns the prompt as on the command line, TASK or TASK:COUNT."""
  return [
    config.tasks[task] + (f':{count}' if count > 1 else '')
    for task, count in config.stages()
  ]


def with_episodes(
  config: Config, episodes: int | None, seed: int | None
) -> Config:
  """Returns the config with these closed-loop episodes; None keeps its own."""
  given = {'episodes': episodes, 'seed': seed}
  changes = {k: v for k, v in given.items() if v is not None}
  return dataclasses.replace(
    config, eval=dataclasses.replace(config.eval, **changes)
  )


def episode_settings(config: Config) -> dict[str, Any]:
  """Returns seeds and key of the episodes, the same for all policies."""
  e = config.eval
  return {
    'seeds': range(e.seed, e.seed + e.episodes),
    'key': jax.random.fold_in(jax.random.key(e.seed), config.seed),
  }


def dream_clips(
  config: Config, world: World, params: Params, sampling_steps: int
) -> video.OpenLoop:
  """Continues held-out clips in dreams, as `config.eval` says."""
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
