"""What the sweeps share: many world models on one tokenizer and its latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import itertools
import json
import pathlib
import shutil
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax import checkpoint, evals
from dreamer4_jax.config import Config
from dreamer4_jax.data import held_out
from dreamer4_jax.evals import provenance, similarity
from dreamer4_jax.models import Params, World
from dreamer4_jax.rollout import Replay, imagine
from dreamer4_jax.training.clips import training_loader
from dreamer4_jax.training.phases import STEPS, Steps, train_phases

CONTEXT, HORIZON = 16, 16
"""Real frames that a dream begins with, and frames dreamed, as in figure 7."""


def train(
  config: Config,
  run_dir: pathlib.Path,
  tokenizer: pathlib.Path,
  world: World | None = None,
  dynamics: Steps | None = None,
) -> Params:
  """Trains the dynamics of a run on the tokenizer of another; resumes.

  Args:
    config: the run.
    run_dir: its directory.
    tokenizer: run directory whose tokenizer is trained.
    world: modules, by default those of the config.
    dynamics: how the phase begins, and its train step.

  Returns:
    The trained parameters, by module.
  """
  if not (run_dir / 'tokenizer').exists():
    run_dir.mkdir(parents=True, exist_ok=True)
    # Written under another name first: half a copy would be taken for whole.
    shutil.copytree(tokenizer / 'tokenizer', run_dir / 'copy',
                    dirs_exist_ok=True)  # fmt: skip
    (run_dir / 'copy').rename(run_dir / 'tokenizer')
  train_phases(
    config, run_dir, ('dynamics',), loaders=training_loader, world=world,
    steps={**STEPS, 'dynamics': dynamics or STEPS['dynamics']},
  )  # fmt: skip
  params, _ = checkpoint.load_params(run_dir, 'dynamics')
  return jax.tree.map(jnp.asarray, params)


def clips_of(
  config: Config,
  count: int,
  keep: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Any:
  """Returns held-out clips of one episode each, of context and horizon.

  Args:
    config: the run.
    count: how many.
    keep: of frames `[B, T, H, W, C]`, the clips `[B]` bool that are wanted.
  """
  batches = held_out.held_out_clips(config, CONTEXT + HORIZON, held_out.DREAMS)

  def wanted() -> Iterator[Any]:
    for batch in batches:
      rows = np.ones(len(batch.task), bool)
      if keep is not None:
        rows = keep(batch.frames)
      if rows.any():
        yield jax.tree.map(lambda x, r=rows: x[r], batch)

  return evals.one_episode_clips(wanted(), count, limit=2000)


def measure(
  world: World,
  params: Params,
  clips: Any,
  sampling_steps: int = 4,
  *,
  known: bool = True,
) -> dict[str, Any]:
  """Measures dreams of held-out clips with their own actions.

  Args:
    world: modules.
    params: of tokenizer and dynamics.
    clips: `[B, 32, ...]`.
    sampling_steps: K.
    known: tell the model the actions; one that was never told any has not
      learned what to make of them.

  Returns:
    `psnr` and `ssim`, means over the frames dreamed; `psnr_by_frame`; `frechet`
    of latents, see `similarity.latent_features`; `seconds_a_frame` of one clip
    in the batch, contexts and pictures included.
  """

  @jax.jit
  def dream(params: Params, part: Any):
    cut = lambda x, at: x[:, at] if x.ndim > 1 else x
    context = jax.tree.map(lambda x: cut(x, slice(0, CONTEXT)), part)
    later = jax.tree.map(
      lambda x: x[:, CONTEXT:], (part.prev_action, part.prev_action_mask)
    )
    told = later[1] & known
    context = context.replace(prev_action_mask=context.prev_action_mask & known)
    rollout = imagine(
      world, params, context, jax.random.key(0),
      policy=Replay(later[0], told),
      horizon=HORIZON, sampling_steps=sampling_steps,
    )  # fmt: skip
    past = world.encode_clips(params, context)
    images, _ = world.decode(params, jnp.concatenate([past, rollout.z], axis=1))
    true = world.encode_clips(params, part)[:, CONTEXT:]
    return jnp.clip(images[:, CONTEXT:], 0, 1), rollout.z, true

  found: list[Any] = []
  seconds = []
  size = min(32, len(clips.task))
  for begin in range(0, len(clips.task) - size + 1, size):
    part = jax.tree.map(lambda x, b=begin: x[b : b + size], clips)
    start = time.perf_counter()
    images, z, true = jax.block_until_ready(dream(params, part))
    seconds.append((time.perf_counter() - start) / size / HORIZON)
    frames = jnp.asarray(part.frames[:, CONTEXT:], jnp.float32) / 255
    error = jnp.square(images - frames).mean(axis=(2, 3, 4))
    found.append(jax.device_get((error, evals.ssim(images, frames), z, true)))
  error, alike, z, true = (np.concatenate(x) for x in zip(*found, strict=True))
  features = similarity.latent_features
  return {
    'psnr': float(evals.psnr(error.mean())),
    'psnr_by_frame': [evals.psnr(x) for x in error.mean(axis=0)],
    'ssim': float(alike.mean()),
    'frechet': evals.frechet_distance(features(z), features(true)),
    'seconds_a_frame': float(np.median(seconds[1:] or seconds)),
    'clips': len(error),
  }


def step_seconds(run_dir: pathlib.Path) -> float:
  """Median seconds of a train step, from the metrics of the dynamics."""
  text = (run_dir / 'dynamics/metrics.jsonl').read_text()
  rows = [json.loads(line) for line in text.splitlines()]
  pairs = itertools.pairwise(rows)
  return float(
    np.median(
      [(b['time'] - a['time']) / (b['step'] - a['step']) for a, b in pairs]
    )
  )


def load(path: pathlib.Path) -> list[dict[str, Any]]:
  """Reads the results so far."""
  if not path.exists():
    return []
  return [json.loads(line) for line in path.read_text().splitlines()]


def save(path: pathlib.Path, row: Mapping[str, Any], config: Config) -> None:
  """Adds a result, with what it was measured with."""
  row = {
    **row,
    'device': provenance.device(),
    'versions': provenance.versions(config),
    'commit': checkpoint.code_version().get('commit', '')[:7],
    'date': time.strftime('%d %B %Y'),
  }
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open('a') as file:
    file.write(json.dumps(row) + '\n')


def interval(values: Sequence[float], digits: int = 2) -> str:
  """Mean and, for several values, Student's 95 % interval, as text."""
  found = evals.student_interval(values)
  text = f'{found["mean"]:.{digits}f}'
  if found['interval']:
    low, high = found['interval']
    text += f' [{low:.{digits}f}, {high:.{digits}f}]'
  return text


def origin(rows: Sequence[Mapping[str, Any]], command: str) -> str:
  """Hardware, versions, commits and dates of results, and the command."""
  every = lambda key: ', '.join(sorted({str(r[key]) for r in rows}))
  versions = ', '.join(f'{k} {v}' for k, v in rows[-1]['versions'].items())
  return (
    f'{every("device")}; {versions}; commit {every("commit")}; '
    f'{every("date")}. `{command}`'
  )
