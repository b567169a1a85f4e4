"""How many frames a second of a Minecraft recording are converted on one core.

python -m benchmarks.convert            # needs the extra video

Makes a recording of 5 minutes, 640x360, h264, in the recorder's format, and
converts it with `data_pipelines.vpt` in one process. Prints one JSON object.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import platform
import statistics
import tempfile
import time
from typing import Any

import av
import numpy as np
import tyro

from data_pipelines import vpt
from dreamer4_jax.runtime.memory import keep_freed_memory

NAME = '6.13/player-session-20220101-101010'


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertBenchmark:
  """What to measure."""

  frames: int = 6_000
  """Frames of the recording, 20 a second."""
  size: tuple[int, int] = (360, 640)
  """Height and width of the dataset's frames."""
  repeats: int = 3
  """Conversions."""


def main(config: ConvertBenchmark) -> dict[str, Any]:
  """Measures, and returns what is printed."""
  keep_freed_memory()  # As the converters do.
  if hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  rates = []
  with tempfile.TemporaryDirectory() as directory:
    root = pathlib.Path(directory)
    index = _make_recording(root, config.frames)
    for _ in range(config.repeats):
      settings = vpt.VptConfig(
        index=(str(index),), root=str(root), out=str(root / 'out'),
        size=config.size, workers=1, eval_share=0.0, overwrite=True,
      )  # fmt: skip
      begin = time.perf_counter()
      report = vpt.convert_vpt(settings, progress=False)
      rates.append(config.frames / (time.perf_counter() - begin))
  return {
    'frames_per_second': statistics.median(rates),
    'range': [min(rates), max(rates)],
    'report': report,
    'config': dataclasses.asdict(config),
    'cores': 1,
    'python': platform.python_version(),
    'av': av.__version__,
  }


def _make_recording(root: pathlib.Path, frames: int) -> pathlib.Path:
  """Writes a video, its actions and an index; returns the index's path."""
  rng = np.random.default_rng(0)
  world = rng.integers(0, 256, (90, 160, 3), np.uint8)
  world = world.repeat(8, axis=0).repeat(8, axis=1)
  video = root / f'{NAME}.mp4'
  video.parent.mkdir()
  with av.open(str(video), 'w') as file:
    stream = file.add_stream('libx264', rate=20)
    stream.width, stream.height, stream.pix_fmt = 640, 360, 'yuv420p'
    for t in range(frames):
      x, y = int(300 + 300 * np.sin(t / 90)), int(150 + 150 * np.cos(t / 70))
      image = np.ascontiguousarray(world[y : y + 360, x : x + 640])
      frame = av.VideoFrame.from_ndarray(image, format='rgb24')
      file.mux(stream.encode(frame))
    file.mux(stream.encode())
  with open(video.with_suffix('.jsonl'), 'w') as file:
    for t in range(frames):
      file.write(json.dumps(_line(t, rng)) + '\n')
  index = root / 'index.json'
  names = [f'{NAME}.mp4']
  index.write_text(json.dumps({'basedir': '/data', 'relpaths': names}))
  return index


def _line(t: int, rng: np.random.Generator) -> dict[str, Any]:
  """One step: some keys, a turning camera, and a GUI on every tenth frame."""
  keys = [f'key.keyboard.{k}' for k in 'wad' if rng.random() < 0.3]
  return {
    'mouse': {
      'x': 640.0, 'y': 360.0, 'dx': float(rng.integers(-60, 61)),
      'dy': float(rng.integers(-60, 61)), 'scaledX': 0.0, 'scaledY': 0.0,
      'dwheel': 0.0, 'buttons': [], 'newButtons': [],
    },
    'keyboard': {'keys': keys, 'newKeys': [], 'chars': ''},
    'isGuiOpen': t % 10 == 0, 'isGuiInventory': False, 'hotbar': 0,
    'yaw': 0.0, 'pitch': 0.0, 'xpos': 0.0, 'ypos': 64.0, 'zpos': 0.0,
    'tick': t, 'milli': 50.0 * t, 'inventory': [],
    'stats': {'minecraft.mine_block:minecraft.oak_log': t // 100},
  }  # fmt: skip


if __name__ == '__main__':
  print(json.dumps(main(tyro.cli(ConvertBenchmark)), indent=2))
