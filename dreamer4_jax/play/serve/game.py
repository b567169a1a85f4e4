"""What is played: a world with all that a page needs, from a run or a package.

A package is a directory of a few megabytes that needs neither the run nor its
dataset: float16 weights and the config (`checkpoint.exported`), `starts.npz`
with the clips that dreams begin with, `game.json`, and a model card.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax import checkpoint
from dreamer4_jax.checkpoint import exported
from dreamer4_jax.config import Config, require, saved
from dreamer4_jax.data import EpisodeSource, read_clips
from dreamer4_jax.envs import make_env
from dreamer4_jax.models import World, no_action
from dreamer4_jax.play.dream import Dream
from dreamer4_jax.play.loading import LoadedDream, Starts, encode, load_dream
from dreamer4_jax.play.serve.card import write_card
from dreamer4_jax.play.serve.challenges import (
  Challenges,
  load_packaged,
  read_challenges,
  save_packaged,
)
from dreamer4_jax.play.serve.controls import make_panels
from dreamer4_jax.play.serve.reality import Reality
from dreamer4_jax.play.serve.rules import Rules
from dreamer4_jax.types import Batch

MOST_BYTES = 8_000_000
"""Size of a package at most: it may lie in a repository."""
PRETRAINED = pathlib.Path(__file__).parent / 'pretrained'
NAMES = ('doorkey', 'craftax')
"""Worlds that may ship with the package."""
STARTS = 24
RATE = 10.0
"""Frames per second of a world that knows no time."""
_STARTS, _GAME = 'starts.npz', 'game.json'
_NEVER = 1 << 30
_KEPT = ('frames', 'prev_action_mask', 'task', 'segment_ids')


@dataclasses.dataclass(frozen=True)
class Game:
  """A world to play in.

  Attributes:
    loaded: its dream, which never ends by itself, parameters, and where dreams
      begin.
    title: for people.
    labels: names of classes, bits or dimensions by action component.
    rate: frames per second.
    challenges: what to try, if anything; their clips are the last of those that
      dreams begin with.
  """

  loaded: LoadedDream
  title: str
  labels: Mapping[str, list[str]]
  rate: float
  challenges: Challenges | None = None

  def rules(self, budget: int = 32 << 20, real: bool = False) -> Rules:
    """Returns what sessions may choose from; see `Rules`."""
    dream, params, contexts = self.loaded
    c = dream.world.config
    own = dream.sampling_steps
    powers = [1 << i for i in range(4) if 1 << i <= c.dynamics.max_steps]
    tasks = c.tasks if dream.heads and not c.agent.task_vector_size else ()
    held = np.minimum(np.asarray(contexts.task)[:, -1], max(0, len(tasks) - 1))
    return Rules(
      panels=make_panels(c.actions, self.labels),
      steps=(own, *[k for k in powers if k != own]),
      levels=c.dynamics.max_steps,
      level=c.dynamics.context_index,
      tasks=tasks,
      policy=dream.heads and 'policy' in params,
      rate=self.rate,
      starts=tuple(held.tolist()),
      challenges=self.challenges.all if self.challenges else (),
      budget=budget,
      real=real,
    )

  def reality(self) -> Reality:
    """Makes the real game; slow the first time.

    Raises:
      ImportError: its package is not installed.
      ValueError: it does not fit the run.
    """
    world = self.loaded.dream.world
    frames = self.loaded.contexts.cont.shape[1]
    return Reality(make_env(world.config.env), world, frames)


def load_game(
  where: str | pathlib.Path,
  *,
  phase: str | None = None,
  starts: int = STARTS,
  steps: int | None = None,
  challenges: str | pathlib.Path | None = None,
) -> Game:
  """Loads a world to play in.

  Args:
    where: directory of a run, or of a package.
    phase: of a run, whose world model and heads; by default the latest. Where
      no agent is trained, the world is played without rewards.
    starts: how many clips of the held-out split dreams can begin with; a
      package has its own.
    steps: denoising steps K; by default those of `phases.imagination`.
    challenges: JSON file of them, see `challenges.Challenge`; a package has its
      own.

  Raises:
    FileNotFoundError: there is neither, or a run lacks its dataset.
    ImportError: challenges need the package of the run's environment, which is
      not installed.
    ValueError: something does not fit; the message names it.
  """
  where = pathlib.Path(where)
  if (where / exported.WEIGHTS).exists():
    require(
      challenges is None,
      'challenges',
      challenges,
      f'{where} has its own, and keeps to them',
    )
    return _read(where, steps)
  config = saved.load_run(where)
  trained = ('finetune', 'imagination')
  heads = phase in trained or (
    phase is None and any(checkpoint.latest_step(where, p) for p in trained)
  )
  settings: dict[str, Any] = {'sampling_steps': steps} if steps else {}
  if heads:
    settings['stop_at_event'] = False
  loaded = load_dream(
    where,
    phase=phase,
    starts=Starts(count=starts),
    heads=heads,
    termination='never',
    **{'horizon': _NEVER, **settings},
  )
  own = EpisodeSource(
    config.data.path, config.data.eval_split, cache_bytes=0
  ).description
  title = config.env.name.partition(':')[2] or where.resolve().name
  game = Game(loaded, title, own.labels, own.frame_rate or RATE)
  return _challenged(game, pathlib.Path(challenges)) if challenges else game


def _challenged(game: Game, path: pathlib.Path) -> Game:
  """Adds the challenges of a file, and the clips that they begin with."""
  dream, params, contexts = game.loaded
  config = dream.world.config
  spec = make_env(config.env).spec
  tiles = spec.legend or spec.tiles
  if tiles is None or tiles.pictures is None:
    raise ValueError(
      f'env.name = {config.env.name!r}: has no tiles by name, which challenges '
      'are checked by'
    )
  found = read_challenges(path, tiles)
  missing = [own.name for own in found.all if own.clip is None]
  require(not missing, 'clip', None, f'missing in {path}: {missing}')
  clips = read_clips(
    config,
    config.data.eval_split,
    [own.clip for own in found.all],
    contexts.cont.shape[1],
  )
  first = len(contexts.cont)
  contexts = jax.tree.map(
    lambda *x: jnp.concatenate(x),
    contexts,
    encode(dream.world, params, clips),
  )
  own = [dataclasses.replace(c, start=first + i)
         for i, c in enumerate(found.all)]  # fmt: skip
  return dataclasses.replace(
    game,
    loaded=LoadedDream(dream, params, contexts),
    challenges=dataclasses.replace(found, all=tuple(own)),
  )


def find_pretrained(name: str, root: pathlib.Path = PRETRAINED) -> pathlib.Path:
  """Returns the directory of a world that ships with the package.

  Args:
    name: one of `NAMES`.
    root: where they lie.

  Raises:
    ValueError: there is no world of this name.
    FileNotFoundError: its weights are not in this version.
  """
  require(name in NAMES, '--pretrained', name, f'must be {" or ".join(NAMES)}')
  if not (root / name / exported.WEIGHTS).exists():
    raise FileNotFoundError(
      f'--pretrained = {name!r}: no weights of it ship with this version; play '
      'a run of your own instead, for example `dreamer4 play runs/quickstart`'
    )
  return root / name


def save_game(
  run_dir: str | pathlib.Path,
  out: str | pathlib.Path,
  *,
  phase: str | None = None,
  starts: int = STARTS,
  challenges: str | pathlib.Path | None = None,
  overwrite: bool = False,
) -> pathlib.Path:
  """Writes a package of a run, to be played without the run and its data.

  Args:
    run_dir: directory of the run.
    out: directory to write.
    phase: see `load_game`.
    starts: how many clips dreams can begin with, besides those of challenges.
    challenges: see `load_game`.
    overwrite: replace a package that is there.

  Returns:
    The directory.

  Raises:
    FileNotFoundError, ImportError: see `load_game`.
    FileExistsError: there is a package, and `overwrite` is false.
    ValueError: the package would be larger than `MOST_BYTES`, or a weight does
      not fit float16.
  """
  run_dir, out = pathlib.Path(run_dir), pathlib.Path(out)
  game = load_game(run_dir, phase=phase, starts=starts, challenges=challenges)
  dream, params, contexts = game.loaded
  weights = {k: _halved(k, v) for k, v in params.items()}
  arrays = {name: np.asarray(getattr(contexts, name)) for name in _KEPT}
  arrays['frames'] = arrays['frames'].astype(np.float16)
  for name, x in contexts.prev_action.items():
    arrays[f'prev_action.{name}'] = np.asarray(x)
  parts = (*jax.tree.leaves(weights), *arrays.values())
  size = sum(x.nbytes for x in parts)
  require(
    size <= MOST_BYTES,
    'export --play',
    f'{size:,} bytes',
    f'must be at most {MOST_BYTES:,}; take fewer --starts, or a smaller world',
  )
  config = dream.world.config
  exported.save(out, weights, config, overwrite=overwrite)
  np.savez_compressed(out / _STARTS, **arrays)
  said = {
    'title': game.title,
    'labels': dict(game.labels),
    'rate': game.rate,
    'heads': dream.heads,
    'steps': dream.sampling_steps,
  }
  (out / _GAME).write_text(json.dumps(said, indent=2) + '\n')
  if game.challenges:
    save_packaged(out, game.challenges)
  write_card(out, run_dir, config, game.title, size)
  return out


def _halved(name: str, module: Any) -> Any:
  def half(x):
    small = np.asarray(x, np.float16)
    require(
      bool(np.isfinite(small).all()),
      f'weights of {name}',
      float(np.abs(np.asarray(x)).max()),
      'must be at most 65,504, which float16 holds',
    )
    return small

  return jax.tree.map(half, module)


def _read(where: pathlib.Path, steps: int | None) -> Game:
  for name in (_STARTS, _GAME):
    if not (where / name).exists():
      raise FileNotFoundError(
        f'{where / name}: no such file; write a package to be played with '
        '`dreamer4 export RUN --play --out DIR`'
      )
  weights, config = exported.load(where)
  said = json.loads((where / _GAME).read_text())
  world = World.from_config(config)
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), weights)
  dream = Dream(
    world=world,
    horizon=_NEVER,
    sampling_steps=steps or said['steps'],
    heads=said['heads'],
    termination='never',
  )
  loaded = LoadedDream(
    dream, jax.jit(world.for_inference)(params), _contexts(where, config)
  )
  return Game(
    loaded, said['title'], said['labels'], said['rate'], load_packaged(where)
  )


def _contexts(where: pathlib.Path, config: Config) -> Batch:
  with np.load(where / _STARTS) as file:
    arrays = {name: file[name] for name in file.files}
  lead = arrays['segment_ids'].shape
  given = {name: jnp.asarray(arrays[name]) for name in _KEPT}
  frames = given.pop('frames')
  prev = {
    part.name: jnp.asarray(arrays[f'prev_action.{part.name}'])
    for part in config.actions
  }
  return Batch.of(
    frames, no_action(config.actions, lead), prev_action=prev, **given
  )
