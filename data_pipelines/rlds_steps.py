"""Steps of RLDS datasets, as episodes of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from data_pipelines import convert, geometry, values, writer
from data_pipelines.rlds_records import get
from dreamer4_jax.config import ActionComponent

LOST_REWARD = (
  'rewards on last steps left out, since their actions lead nowhere; if they '
  'stand on the frame they were reached with, say --reward-at arrival'
)
DISCOUNTED = (
  'episodes without is_terminal that end for good, since their last discount '
  'is 0'
)
UNSURE = 'episodes whose last discount is 0 although is_terminal is false'
WORDLESS = 'episodes whose instruction is empty'
WORDINGS = 'episodes whose instruction changes; the first is kept'


@dataclasses.dataclass(frozen=True)
class Fields:
  """What the fields of a step mean; see `rlds.RldsConfig`.

  Attributes:
    image: field of the image.
    actions: field of each action component, by name.
    low: least value of each continuous component, `[n]`.
    high: greatest value; values are stretched to [-1, 1].
    size: height and width of frames.
    fit: how they are brought to it.
    reward: field of the reward.
    reward_at: 'action' or 'arrival'.
    instruction: field of the text.
    parts: the action space.
    vectors: field of each vector, by name.
    names: texts by number, where the instruction is the number of a class.
  """

  image: str
  actions: Mapping[str, str]
  low: Mapping[str, list[float]]
  high: Mapping[str, list[float]]
  size: tuple[int, int]
  fit: str
  reward: str
  reward_at: str
  instruction: str
  parts: tuple[ActionComponent, ...]
  vectors: Mapping[str, str] = dataclasses.field(default_factory=dict)
  names: tuple[str, ...] | None = None


def to_episode(
  steps: Sequence[Mapping[str, Any]], fields: Fields, name: str
) -> writer.Episode:
  """Turns the steps of an RLDS episode into ours.

  Raises:
    EpisodeError: a field is missing or invalid.
  """
  if not steps:
    raise writer.EpisodeError('steps: found none')
  count = len(steps)
  stacked = lambda field: stack(field, [get(s, field) for s in steps])
  frames = [
    geometry.fitted(picture(s, fields.image), fields.size, fields.fit)
    for s in steps
  ]
  actions = {}
  for part in fields.parts:
    value = stacked(fields.actions[part.name])
    value = value.reshape(count, -1) if part.kind != 'categorical' else value
    if part.kind == 'continuous':
      low, high = fields.low[part.name], fields.high[part.name]
      value[-1] = low  # In RLDS, the last action is meaningless.
      value = values.scaled(fields.actions[part.name], value, low, high)
    if part.kind == 'categorical':
      value[-1] = 0
      value = values.whole(fields.actions[part.name], value)
    value[-1] = 0
    actions[part.name] = value
  known = np.arange(count) < count - 1
  reward = np.zeros(count, np.float32)
  if fields.reward:
    found = np.asarray(stacked(fields.reward), np.float32)
    if found.size != count:
      raise writer.EpisodeError(
        f'{fields.reward}: found shape {found.shape}, expected one number for '
        "each step; --reward '' goes without"
      )
    found = found.reshape(count)
    if fields.reward_at == 'arrival':
      reward[:-1] = found[1:]
    else:
      reward[:-1] = found[:-1]
  attributes = {'file': convert.printable(name)}
  if fields.instruction:
    attributes['instruction'] = _wordings(steps, fields)[0]
  return writer.Episode(
    steps={
      'observation': np.stack(frames),
      'vector': {
        name: stacked(field).reshape(count, -1)
        for name, field in fields.vectors.items()
      },
      'action': actions,
      'action_known': known,
      'reward': reward,
      'events': np.zeros((count, 1), np.uint8),
    },
    terminal=_is_terminal(steps[-1]),
    attributes=attributes,
  )


def stack(field: str, values: list[Any]) -> np.ndarray:
  """Stacks a field's values in every step; raises `EpisodeError`."""
  try:
    return np.stack([np.asarray(v) for v in values])
  except ValueError as error:
    raise writer.EpisodeError(f'{field}: {error}') from error


def _wordings(steps: Sequence[Mapping[str, Any]], fields: Fields) -> list[str]:
  """Returns the different instructions of an episode; at least one, or ''."""
  found = []
  for step in steps:
    value = get(step, fields.instruction)
    if fields.names is not None:
      # TFDS numbers what has no class with -1.
      known = 0 <= int(value) < len(fields.names)
      value = fields.names[int(value)] if known else ''
    found.append(values.text(fields.instruction, value))
  return [text for text in dict.fromkeys(found) if text] or ['']


def _is_terminal(last: Mapping[str, Any]) -> bool:
  """Returns whether an episode ended for good, by its last step."""
  if 'is_terminal' in last or 'discount' not in last:
    return bool(last.get('is_terminal', False))
  return not np.any(last['discount'])


def picture(step: Mapping[str, Any], field: str) -> np.ndarray:
  """Returns the picture of a step `[H, W, 3]` uint8; raises `EpisodeError`."""
  value = get(step, field)
  if isinstance(value, bytes):
    return geometry.decoded(field, value)
  return values.rgb(field, value)


def notes_on(
  steps: Sequence[Mapping[str, Any]], fields: Fields
) -> Iterator[str]:
  """Yields what a reader of the report should know about an episode."""
  last = steps[-1]
  if fields.reward and fields.reward_at == 'action':
    if np.any(get(last, fields.reward)):
      yield LOST_REWARD
  if 'discount' in last and not np.any(last['discount']):
    if 'is_terminal' not in last:
      yield DISCOUNTED
    elif not last['is_terminal']:
      yield UNSURE
  if fields.instruction:
    wordings = _wordings(steps, fields)
    if len(wordings) > 1:
      yield WORDINGS
    if wordings == ['']:
      yield WORDLESS
