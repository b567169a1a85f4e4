"""Pictures, videos and plots of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
import json
import pathlib
from typing import Any

from einops import rearrange
import jax
import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np

from dreamer4_jax.evals.reality import Phantoms, Reality
from dreamer4_jax.evals.video import OpenLoop, Reconstructions


def _enlarge(frames: np.ndarray, factor: int) -> np.ndarray:
  return frames.repeat(factor, axis=-3).repeat(factor, axis=-2)


def _mosaic(frames: np.ndarray, columns: int, border: int = 2) -> np.ndarray:
  """Tiles `[N, T, H, W, C]` into `[T, rows H, columns W, C]`, rest white."""
  rest = -len(frames) % columns
  frames = np.pad(frames, [(0, rest), *[(0, 0)] * 4], constant_values=255)
  pad = [(0, 0), (0, 0), (border, border), (border, border), (0, 0)]
  frames = np.pad(frames, pad, constant_values=255)
  return rearrange(frames, '(r s) t h w c -> t (r h) (s w) c', s=columns)


def dream_video(result: OpenLoop, clips: int = 8) -> np.ndarray:
  """Real frames above dreamed ones, `[T, ...]` uint8, clips side by side."""
  clips = min(clips, len(result.frames))
  pairs = np.concatenate([result.frames[:clips], result.dreamed[:clips]])
  return _enlarge(_mosaic(pairs, columns=clips), 3)


def dream_sheet(result: OpenLoop | Phantoms, clips: int = 4) -> np.ndarray:
  """Contact sheet: for each clip a row of real and a row of dreamed frames."""
  rows = []
  for i in range(min(clips, len(result.frames))):
    for frames in (result.frames[i], result.dreamed[i]):
      padded = np.pad(
        frames, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=255
      )
      rows.append(rearrange(padded, 't h w c -> h (t w) c'))
    rows.append(np.full((6, *rows[-1].shape[1:]), 255, np.uint8))
  return _enlarge(np.concatenate(rows), 2)


def worst_sheet(seen: Reconstructions, columns: int = 8) -> np.ndarray:
  """Contact sheet of the worst frames, original above decoded."""
  line = np.full_like(seen.worst[:, :1], 255)
  pairs = np.concatenate([seen.worst, line, seen.worst_decoded], axis=1)
  pairs = pairs[:, None]
  factor = max(1, 96 // pairs.shape[3])
  columns = min(columns, len(pairs))
  return _enlarge(_mosaic(pairs, columns), factor)[0]


def phantom_sheet(agents: Mapping[str, Reality]) -> np.ndarray:
  """Contact sheet of promises not kept, real above dreamed, agent by agent."""
  parts = [agent.phantoms for agent in agents.values()]
  every = jax.tree.map(lambda *x: np.concatenate(x), *parts)
  return dream_sheet(every, clips=len(every.task))


def agent_video(frames: np.ndarray, columns: int = 4) -> np.ndarray:
  """Episodes side by side, `[N, T, H, W, C]` to `[T, ...]`."""
  return _enlarge(_mosaic(frames, columns), 3)


def plot_training(run_dir: pathlib.Path, phases: tuple[str, ...]) -> None:
  """Plots the main curves of every phase to `training.png`.

  Returns in the real environment have an axis of their own, at the right, where
  they were measured while the run trained (`play_along`).
  """
  curves = {
    'tokenizer': ('tokenizer/psnr',),
    'dynamics': ('dynamics/flow', 'dynamics/bootstrap'),
    'finetune': ('finetune/policy_nll_now', 'finetune/flow'),
    'imagination': (
      'imagination/reward_per_rollout',
      'imagination/entropy',
      'imagination/kl',
    ),
  }
  figure, axes = plt.subplots(1, len(phases), figsize=(4 * len(phases), 3))
  for axis, phase in zip(np.atleast_1d(axes), phases, strict=True):
    lines = (run_dir / phase / 'metrics.jsonl').read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for name in curves[phase]:
      points = [(r['step'], r[name]) for r in rows if name in r]
      axis.plot(*zip(*points, strict=True), label=name.split('/')[1])
    if phase in ('dynamics', 'finetune'):
      axis.set_yscale('log')
    axis.set(title=phase, xlabel='step')
    real = [(r['step'], r['real/return']) for r in rows if 'real/return' in r]
    if real:
      beside = axis.twinx()
      beside.plot(*zip(*real, strict=True), 'k.-', label='real return')
      beside.legend(loc='lower right')
    axis.legend()
  figure.tight_layout()
  figure.savefig(run_dir / 'training.png', dpi=100)
  plt.close(figure)


def plot_success(run_dir: pathlib.Path, results: Mapping[str, Any]) -> None:
  """Plots what the policies were compared by to `success.png`.

  This is success or, where that says nothing, the mean return, with 95 %
  intervals. Of the clones, the best and the plain one are shown.
  """
  names = [*dict.fromkeys(['random', 'bc', results['best_clone'], 'rl'])]
  agents = [results['agents'][name] for name in names]
  n = np.array([a['episodes'] for a in agents])
  figure, axis = plt.subplots(figsize=(4, 3))
  if results['rl_vs_bc']['measure'] == 'success':
    mean = np.array([a['success'] for a in agents])
    spread = np.sqrt(mean * (1 - mean))
    axis.set(ylabel='success', ylim=(0, 1))
  else:
    mean = np.array([a['mean_return'] for a in agents])
    spread = np.array([a['std_return'] for a in agents])
    axis.set(ylabel='mean return')
  axis.bar(names, mean, yerr=1.96 * spread / np.sqrt(n), capsize=5)
  axis.set(title='real environment')
  figure.tight_layout()
  figure.savefig(run_dir / 'success.png', dpi=100)
  plt.close(figure)
