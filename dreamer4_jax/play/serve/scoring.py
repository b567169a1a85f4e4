"""Plays the keys of challenges, and says which of them are done."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import pathlib
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from dreamer4_jax.config import require
from dreamer4_jax.play.serve.challenges import Challenge
from dreamer4_jax.play.serve.controls import Hands
from dreamer4_jax.play.serve.game import Game
from dreamer4_jax.play.serve.programs import Programs
from dreamer4_jax.play.serve.timeline import Ask

SEEDS = 10
"""Seeds that keys are played with again, besides the one they were found
with."""
_SHOWN = 5
"""Frames of a challenge that are drawn."""
_SIDE = 126
"""Least side of a frame that is drawn."""


class Attempt(NamedTuple):
  """What came of playing the keys of a challenge.

  Attributes:
    frames: `[1 + keys, H, W, C]` uint8, from the one the dream begins with.
    stages: how many were passed on each.
    done: number of the frame that passes the last one; None if it is not done.
  """

  frames: np.ndarray
  stages: list[int]
  done: int | None


@dataclasses.dataclass(frozen=True)
class Score:
  """A challenge, tried.

  Attributes:
    challenge: what was tried.
    attempt: with its own seed.
    again: with how many of the other seeds the same keys do it.
    seeds: how many those are.
  """

  challenge: Challenge
  attempt: Attempt
  again: int
  seeds: int


class Scorer:
  """Plays keys in a world."""

  def __init__(self, game: Game):
    """Compiles a frame.

    Raises:
      ValueError: the world has no challenges.
    """
    if game.challenges is None:
      raise ValueError(
        f'{game.title}: has no challenges to score; give some with --challenges'
      )
    self._rules, self._challenges = game.rules(), game.challenges
    self._programs = Programs(*game.loaded, 1)
    self._programs.compile(self._rules.steps[0])

  def play(self, index: int, seed: int) -> Attempt:
    """Plays the keys of a challenge.

    Args:
      index: of the challenge.
      seed: of the dream.

    Raises:
      ValueError: a key is not among the controls, nothing is held where the
        world has no action for that, or a stage is passed before anybody acts.
    """
    own = self._challenges.all[index]
    state, shown = self._programs.begin(own.start, seed)
    frames, stages = [shown.frame[0]], [0]
    require(
      not self._challenges.shows(frames[0], own.stages[0]),
      f'{own.name}: stages',
      own.stages[0],
      'is seen before anybody acts',
    )
    steps, level = self._rules.steps[0], self._rules.level
    for number, labels in enumerate(own.held, start=1):
      action, human = self._hold(own, labels), self._everything
      ask = Ask(action, human, steps, level, self._rules.starts[own.start])
      ((state, shown),) = self._programs.step(
        steps, 1, [(state, ask, seed, number)]
      )
      frames.append(shown.frame[0])
      stages.append(self._challenges.advance(index, stages[-1], frames[-1]))
    whole = len(own.stages)
    done = stages.index(whole) if whole in stages else None
    return Attempt(np.stack(frames), stages, done)

  def score(self, seeds: int = SEEDS) -> list[Score]:
    """Plays all challenges, with their own seed and with others."""
    scores = []
    for index, own in enumerate(self._challenges.all):
      others = [own.seed + 1 + i for i in range(seeds)]
      again = [self.play(index, seed).done is not None for seed in others]
      attempt = self.play(index, own.seed)
      scores.append(Score(own, attempt, sum(again), seeds))
    return scores

  @property
  def _everything(self) -> dict[str, bool]:
    return {panel.part.name: True for panel in self._rules.panels}

  def _hold(self, own: Challenge, labels: Sequence[str]):
    """The action of what is held for a frame."""
    hands = Hands(self._rules.panels)
    known = {c.label: c.id for c in hands.controls.values()}
    for label in labels:
      name = label.replace('_', ' ')
      require(
        name in known, f'{own.name}: keys', label, f'must be of {[*known]}'
      )
      hands.press(known[name])
    require(
      not hands.waits(),
      f'{own.name}: keys',
      '+'.join(labels),
      'this world has no action for it',
    )
    return hands.action()[0]


def table(scores: Sequence[Score]) -> list[str]:
  """Returns the lines of a Markdown table."""
  lines = [
    '| | what to do | done | of other seeds | seen at the end |',
    '|---|---|---|---|---|',
  ]
  for number, score in enumerate(scores, start=1):
    own, done = score.challenge, score.attempt.done
    said = 'not done' if done is None else f'frame {done}'
    stages = '; then '.join(_say(stage) for stage in own.stages)
    lines.append(
      f'| {number} | {own.name} | {said} | {score.again} of {score.seeds} | '
      f'{stages} |'
    )
  return lines


def _say(stage) -> str:
  places = {'any': 'somewhere', 'none': 'nowhere'}
  return ', '.join(
    f'{places.get(where, where)} `{what.replace("|", "` or `")}`'
    for where, what in stage.items()
  )


def write_page(
  path: pathlib.Path, title: str, command: str, scores: Sequence[Score]
) -> None:
  """Writes a page with the table, and a picture beside it.

  Args:
    path: Markdown file; the picture has its name and ends in `.png`.
    title: of the page.
    command: that makes it.
    scores: what it is about.
  """
  done = sum(score.attempt.done is not None for score in scores)
  again = sum(score.again for score in scores)
  tries = sum(score.seeds for score in scores)
  lines = [
    f'# {title}',
    '',
    f'{done} of {len(scores)} are done with the seed that the keys were found '
    f'with. The same keys, without looking, do it in {again} of {tries} dreams '
    'with other seeds.',
    '',
    *table(scores),
    '',
    'Places are row and column of a tile, from 0; a name with a star is any '
    'that begins so. Everything of a stage has to be seen in one picture.',
    '',
    f'![Frames of each, from the first to the last]({path.stem}.png)',
    '',
    f'Made by `{command}`.',
  ]
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text('\n'.join(lines) + '\n')
  draw(scores).save(path.with_suffix('.png'), optimize=True)


def draw(scores: Sequence[Score]) -> Image.Image:
  """Returns frames of each challenge in a row, named."""
  height, width = scores[0].attempt.frames.shape[1:3]
  scale = max(1, -(-_SIDE // min(height, width)))
  high, wide, text, gap = height * scale, width * scale, 16, 6
  sheet = Image.new(
    'RGB',
    (_SHOWN * (wide + gap) - gap, len(scores) * (high + text + gap)),
    'white',
  )
  pen = ImageDraw.Draw(sheet)
  for row, score in enumerate(scores):
    top = row * (high + text + gap)
    last = score.attempt.done
    said = 'not done' if last is None else f'done on frame {last}'
    pen.text(
      (0, top + 2), f'{row + 1}. {score.challenge.name}: {said}', fill='black'
    )
    last = len(score.attempt.frames) - 1 if last is None else last
    shown = np.unique(np.linspace(0, last, _SHOWN).round().astype(int))
    for column, frame in enumerate(score.attempt.frames[shown]):
      big = np.broadcast_to(frame, (*frame.shape[:2], 3))
      big = big.repeat(scale, axis=0).repeat(scale, axis=1)
      sheet.paste(Image.fromarray(big), (column * (wide + gap), top + text))
  return sheet
