"""Converts RLDS datasets, such as those of Open X-Embodiment and SOAR.

python -m data_pipelines.rlds --dataset DIR --out DIR \
  --image observation/image_0 --actions action=action --size 256 256 \
  --vectors state=observation/state

`DIR` is a TFDS directory with `dataset_info.json`, `features.json` and shards
in tfrecord or array_record; TensorFlow is not needed. A mapping says which
fields of a step are the image and the action components.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import itertools
import pathlib
from typing import Any, Literal

import numpy as np
import tensorflow_datasets as tfds

from data_pipelines import convert, values, writer
from data_pipelines.rlds_records import get, parse, read_records
from dreamer4_jax.config import ActionComponent, VectorComponent, require
from dreamer4_jax.data import format as fmt

LOST_REWARD = (
  'rewards on last steps left out, since their actions lead nowhere; if they '
  'stand on the frame they were reached with, say --reward-at arrival'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RldsConfig(convert.Output):
  """Which dataset, and what its fields mean."""

  dataset: str
  """TFDS directory, with the version's number at the end of its path."""
  image: str = 'observation/image'
  """Field of a step that holds the image."""
  actions: tuple[str, ...] = ('action=action',)
  """Components, each NAME=FIELD or NAME=FIELD:CLASSES. Floats are continuous;
  integers need their number of classes, booleans do not."""
  vectors: tuple[str, ...] = ()
  """What is seen beside the image, each NAME=FIELD, in its own units."""
  reward: str = 'reward'
  """Field of the reward; empty for none."""
  reward_at: Literal['action', 'arrival'] = 'action'
  """Whether a step holds the reward of its action, as in RLDS, or the one
  earned on reaching its frame."""
  instruction: str = ''
  """Field of a text to keep as the attribute `instruction`, for example
  language_instruction."""
  size: tuple[int, int] | None = None
  """Height and width of frames; none keeps their size."""
  frame_rate: float = 0.0
  """Frames per second, if known."""
  splits: tuple[str, ...] = ()
  """Splits to convert, as NAME or NAME=NEW; all if empty. Training reads
  'train', evaluation 'test'."""

  def __post_init__(self):
    super().__post_init__()
    require(
      len(self.actions) > 0 and all('=' in a for a in self.actions),
      'actions',
      self.actions,
      'needs at least one, each NAME=FIELD',
    )
    convert.check_names('actions', self.actions, 'NAME=FIELD')
    require(
      all('=' in v for v in self.vectors),
      'vectors',
      self.vectors,
      'must be NAME=FIELD each',
    )
    convert.check_names('vectors', self.vectors, 'NAME=FIELD')
    require(
      self.frame_rate >= 0,
      'frame_rate',
      self.frame_rate,
      'must not be negative',
    )


@dataclasses.dataclass(frozen=True)
class Fields:
  """What the fields of a step mean; see `RldsConfig`.

  Attributes:
    image: field of the image.
    actions: field of each action component, by name.
    low: least value of each continuous component, `[n]`.
    high: greatest value; values are stretched to [-1, 1].
    size: height and width of frames.
    reward: field of the reward.
    reward_at: 'action' or 'arrival'.
    instruction: field of the text.
    parts: the action space.
    vectors: field of each vector, by name.
  """

  image: str
  actions: Mapping[str, str]
  low: Mapping[str, list[float]]
  high: Mapping[str, list[float]]
  size: tuple[int, int]
  reward: str
  reward_at: str
  instruction: str
  parts: tuple[ActionComponent, ...]
  vectors: Mapping[str, str] = dataclasses.field(default_factory=dict)


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
  stacked = lambda field: _stack(field, [get(s, field) for s in steps])
  frames = [
    values.resized(values.rgb(fields.image, get(s, fields.image)), fields.size)
    for s in steps
  ]
  actions = {}
  for part in fields.parts:
    value = stacked(fields.actions[part.name])
    value = value.reshape(count, -1) if part.kind != 'categorical' else value
    if part.kind == 'continuous':
      value = values.scaled(
        value, fields.low[part.name], fields.high[part.name]
      )
    actions[part.name] = value
  # In RLDS, the action of the last step is meaningless.
  known = np.arange(count) < count - 1
  actions = {k: np.where(_over(known, v), v, 0) for k, v in actions.items()}
  reward = np.zeros(count, np.float32)
  if fields.reward:
    found = np.asarray(stacked(fields.reward), np.float32).reshape(count)
    if fields.reward_at == 'arrival':
      reward[:-1] = found[1:]
    else:
      reward[:-1] = found[:-1]
  attributes = {'file': convert.printable(name)}
  if fields.instruction:
    text = get(steps[0], fields.instruction)
    if isinstance(text, bytes):
      text = text.decode('utf-8', 'backslashreplace')
    attributes['instruction'] = str(text)
  terminal = steps[-1].get('is_terminal', False)
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
    terminal=bool(terminal),
    attributes=attributes,
  )


def _stack(field: str, values: list[Any]) -> np.ndarray:
  try:
    return np.stack([np.asarray(v) for v in values])
  except ValueError as error:
    raise writer.EpisodeError(f'{field}: {error}') from error


def _over(mask: np.ndarray, like: np.ndarray) -> np.ndarray:
  return mask.reshape(-1, *(1,) * (like.ndim - 1))


def convert_file(
  item: convert.Input, shard: writer.Shard, *, fields: Fields, root: str
) -> dict[str, int]:
  """Writes all episodes of a file; bad ones are counted by their reason."""
  notes: dict[str, int] = {}
  before = len(shard.index.lengths)
  features = features_of(root)
  records = read_records(item.what)
  for number in itertools.count():
    try:
      record = next(records, None)
      if record is None:
        break
      steps = parse(record, features)
      shard.add(to_episode(steps, fields, f'{item.name}#{number}'))
      if fields.reward and fields.reward_at == 'action':
        lost = np.any(get(steps[-1], fields.reward))
        notes[LOST_REWARD] = notes.get(LOST_REWARD, 0) + int(lost)
    except convert.SkipError as error:
      notes[f'{error}: episodes before the damage are kept'] = 1
      break
    except writer.EpisodeError as error:
      reason = f'episode skipped: {error}'
      notes[reason] = notes.get(reason, 0) + 1
  if len(shard.index.lengths) == before and notes:
    raise convert.SkipError(next(iter(notes)))
  return notes


@functools.cache
def features_of(root: str) -> Any:
  """Returns the features of a TFDS directory."""
  return tfds.builder_from_directory(root).info.features


def convert_rlds(
  config: RldsConfig, *, progress: bool = True
) -> dict[str, Any]:
  """Converts all splits; returns the report of `convert.run`.

  Raises:
    FileNotFoundError: there is no dataset.
    FileExistsError: there is something at `config.out`.
    ValueError: it is not an RLDS dataset, or nothing in it could be read.
  """
  root = pathlib.Path(config.dataset).expanduser()
  if not (root / 'dataset_info.json').exists():
    raise FileNotFoundError(
      f'dataset = {config.dataset!r}: no dataset_info.json there; name the '
      'directory with the version, such as soar_dataset/train/1.0.0'
    )
  try:
    builder = tfds.builder_from_directory(root)
  except Exception as error:
    raise ValueError(
      f'dataset = {config.dataset!r}: cannot be read ({values.reason(error)})'
    ) from error
  if 'steps' not in builder.info.features:
    raise ValueError(
      f'dataset = {config.dataset!r}: has no field `steps`, so it is no RLDS '
      f'dataset; it has {sorted(builder.info.features)}'
    )
  inputs = _inputs(builder, config)
  fields, vectors, notes = _look(config, str(root), inputs)
  report = convert.run(
    config,
    fmt.Description(
      actions=fields.parts,
      tasks=fmt.REWARD_ONLY,
      frame_shape=(*fields.size, 3),
      chunk_length=config.chunk_length,
      frame_rate=config.frame_rate,
      vectors=vectors,
      source={'converter': 'rlds', **notes},
    ),
    inputs,
    functools.partial(convert_file, fields=fields, root=str(root)),
    settings=fields,
    progress=progress,
  )
  return report


def _inputs(builder: Any, config: RldsConfig) -> list[convert.Input]:
  available = list(builder.info.splits)
  wanted = dict(
    (s.partition('=')[0], s.partition('=')[2] or s.partition('=')[0])
    for s in config.splits or available
  )
  for name in wanted:
    if name not in available:
      raise ValueError(
        f'splits = {config.splits}: no split {name!r}; there are {available}'
      )
  return [
    convert.Input(name=pathlib.Path(path).name, split=new, what=str(path))
    for old, new in wanted.items()
    for path in builder.info.splits[old].filepaths
  ]


def _all_records(inputs: Sequence[convert.Input]) -> Iterator[bytes]:
  """Yields the records of every file, up to any damage."""
  for item in inputs:
    try:
      yield from read_records(item.what)
    except convert.SkipError:
      continue


def _look(
  config: RldsConfig, root: str, inputs: Sequence[convert.Input]
) -> tuple[Fields, tuple[VectorComponent, ...], dict[str, Any]]:
  """Reads all actions once, for their kinds and bounds, and vectors' sizes."""
  beside = dict(text.split('=', 1) for text in config.vectors)
  named = {}
  for text in config.actions:
    name, _, field = text.partition('=')
    field, _, classes = field.partition(':')
    named[name] = (field, classes)
  features = features_of(root)
  size = config.size
  bounds: dict[str, tuple[np.ndarray, np.ndarray]] = {}
  kinds: dict[str, np.dtype] = {}
  sizes: dict[str, int] = {}
  problem = 'there is no episode'
  for record in _all_records(inputs):
    try:
      steps = parse(record, features, skip=[config.image])
      for name, (field, _) in named.items():
        value = _stack(field, [get(s, field) for s in steps[:-1]])
        flat = value.reshape(len(value), -1)
        if len(flat) and np.isfinite(flat.astype(np.float64)).all():
          kinds.setdefault(name, value.dtype)
          low, high = bounds.get(name, (flat.min(0), flat.max(0)))
          bounds[name] = (
            np.minimum(low, flat.min(0)), np.maximum(high, flat.max(0))
          )  # fmt: skip
      for name, field in beside.items():
        sizes.setdefault(name, np.asarray(get(steps[0], field)).size)
      if size is None:
        first = parse(record, features)[0]
        size = np.asarray(get(first, config.image)).shape[:2]
    except (writer.EpisodeError, TypeError, ValueError) as error:
      problem = str(error)
  if size is None or set(bounds) != set(named) or set(sizes) != set(beside):
    wanted = [*(f for f, _ in named.values()), *beside.values()]
    raise ValueError(
      f'dataset = {config.dataset!r}: no episode has the fields {config.image} '
      f'and {wanted} ({problem})'
    )
  parts, low, high = [], {}, {}
  for name, (_, classes) in named.items():
    dims = len(bounds[name][0])
    if kinds[name].kind == 'f':
      parts.append(ActionComponent(name=name, kind='continuous', size=dims))
      low[name], high[name] = (b.astype(float).tolist() for b in bounds[name])
    elif kinds[name].kind == 'b':
      parts.append(ActionComponent(name=name, kind='binary', size=dims))
    elif classes:
      parts.append(
        ActionComponent(name=name, kind='categorical', size=int(classes))
      )
    else:
      raise ValueError(
        f'actions = {config.actions}: {name} holds whole numbers; write '
        f'{name}=FIELD:CLASSES with their number of classes'
      )
  found = Fields(
    image=config.image,
    actions={name: field for name, (field, _) in named.items()},
    low=low,
    high=high,
    size=tuple(size),
    reward=config.reward,
    reward_at=config.reward_at,
    instruction=config.instruction,
    parts=tuple(parts),
    vectors=beside,
  )
  vectors = tuple(VectorComponent(name=n, size=s) for n, s in sizes.items())
  return found, vectors, {'action_low': low, 'action_high': high}


if __name__ == '__main__':
  convert.main_of(RldsConfig, convert_rlds)
