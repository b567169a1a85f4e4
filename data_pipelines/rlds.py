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
import tqdm

from data_pipelines import convert, geometry, values, writer
from data_pipelines.rlds_records import (
  get,
  leaves,
  parse,
  read_records,
  undecoded,
)
from data_pipelines.rlds_steps import (
  Fields,
  notes_on,
  picture,
  stack,
  to_episode,
)
from dreamer4_jax.config import ActionComponent, VectorComponent, require
from dreamer4_jax.data import format as fmt


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
  fit: geometry.Fit = 'stretch'
  """How frames are brought to size: crop, pad or stretch."""
  frame_rate: float = 0.0
  """Frames per second, if known."""
  splits: tuple[str, ...] = ()
  """Splits to convert, as NAME or NAME=NEW; all if empty. Training reads
  'train', evaluation 'test'."""

  def __post_init__(self):
    super().__post_init__()
    geometry.check_fit(self.fit)
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
      steps = parse(record, features, undecoded(features, fields.image))
      shard.add(to_episode(steps, fields, f'{item.name}#{number}'))
      for note in notes_on(steps, fields):
        notes[note] = notes.get(note, 0) + 1
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
  _check_fields(config, features_of(str(root)))
  fields, vectors, notes = _look(config, str(root), inputs, progress)
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
    convert.Input(
      name=pathlib.Path(path).name,
      split=new,
      what=str(path),
      files=(str(path),),
    )
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


def _check_fields(config: RldsConfig, features: Any) -> None:
  """Raises `ValueError` if a step lacks a field that an option names."""
  there = sorted(leaves(features['steps']))
  of_part = lambda text: text.partition('=')[2].partition(':')[0]
  wanted = [
    ('image', config.image, ''),
    *(('actions', of_part(text), '') for text in config.actions),
    *(('vectors', text.partition('=')[2], '') for text in config.vectors),
    ('reward', config.reward, "; --reward '' goes without"),
    ('instruction', config.instruction, "; --instruction '' goes without"),
  ]
  for option, field, remedy in wanted:
    if field not in there and (field or option == 'image'):
      raise ValueError(
        f'{option} = {field!r}: a step has no such field; it has {there}'
        f'{remedy}'
      )


@dataclasses.dataclass
class _Survey:
  """What is learned from reading all episodes once, by component or vector."""

  bounds: dict[str, tuple[np.ndarray, np.ndarray]]
  kinds: dict[str, np.dtype]
  sizes: dict[str, int]
  frame: tuple[int, int] | None
  problem: str = 'there is no episode'

  def add(self, name: str, field: str, value: np.ndarray) -> None:
    """Takes an episode's actions `[T, ...]`; raises `EpisodeError`."""
    flat = value.reshape(len(value), -1)
    if not len(flat):
      return
    wrong = np.argwhere(~np.isfinite(flat.astype(np.float64)))
    if len(wrong):
      raise writer.EpisodeError(
        f'{field}: found {flat[tuple(wrong[0])]} in step {wrong[0][0]}, '
        'expected a finite number'
      )
    self.kinds.setdefault(name, value.dtype)
    low, high = self.bounds.get(name, (flat.min(0), flat.max(0)))
    self.bounds[name] = (
      np.minimum(low, flat.min(0)),
      np.maximum(high, flat.max(0)),
    )


def _survey(
  config: RldsConfig,
  root: str,
  inputs: Sequence[convert.Input],
  fields: Mapping[str, str],
  beside: Mapping[str, str],
  progress: bool,
) -> _Survey:
  """Reads all actions once, for their kinds and bounds, and vectors' sizes."""
  features = features_of(root)
  found = _Survey({}, {}, {}, config.size)
  for number, record in enumerate(
    tqdm.tqdm(
      _all_records(inputs),
      desc='look',
      unit=' episodes',
      disable=not progress,
    )
  ):
    try:
      steps = parse(record, features, skip=[config.image])
      for name, field in fields.items():
        found.add(
          name, field, stack(field, [get(s, field) for s in steps[:-1]])
        )
      for name, field in beside.items():
        found.sizes.setdefault(name, np.asarray(get(steps[0], field)).size)
      if found.frame is None:
        first = parse(record, features, undecoded(features, config.image))[0]
        found.frame = picture(first, config.image).shape[:2]
    except (writer.EpisodeError, TypeError, ValueError, IndexError) as error:
      found.problem = f'episode {number}: {error}'
  return found


def _look(
  config: RldsConfig,
  root: str,
  inputs: Sequence[convert.Input],
  progress: bool,
) -> tuple[Fields, tuple[VectorComponent, ...], dict[str, Any]]:
  """Returns what the fields mean, the vectors, and the actions' bounds."""
  beside = dict(text.split('=', 1) for text in config.vectors)
  named = {}
  for text in config.actions:
    name, _, field = text.partition('=')
    field, _, classes = field.partition(':')
    named[name] = (field, classes)
  fields = {name: field for name, (field, _) in named.items()}
  survey = _survey(config, root, inputs, fields, beside, progress)
  bounds, sizes = survey.bounds, survey.sizes
  if (
    survey.frame is None
    or set(bounds) != set(named)
    or set(sizes) != set(beside)
  ):
    wanted = [*(f for f, _ in named.values()), *beside.values()]
    raise ValueError(
      f'dataset = {config.dataset!r}: no episode has good values in '
      f'{config.image} and {wanted} ({survey.problem})'
    )
  parts, low, high = [], {}, {}
  for name, (_, classes) in named.items():
    part = _component(
      config, name, classes, survey.kinds[name].kind, len(bounds[name][0])
    )
    parts.append(part)
    if part.kind == 'continuous':
      low[name], high[name] = (b.astype(float).tolist() for b in bounds[name])
  instruction = leaves(features_of(root)['steps']).get(config.instruction)
  found = Fields(
    image=config.image,
    actions=fields,
    low=low,
    high=high,
    size=tuple(survey.frame),
    fit=config.fit,
    reward=config.reward,
    reward_at=config.reward_at,
    instruction=config.instruction,
    parts=tuple(parts),
    vectors=beside,
    names=tuple(getattr(instruction, 'names', None) or ()) or None,
  )
  vectors = tuple(VectorComponent(name=n, size=s) for n, s in sizes.items())
  return found, vectors, {'action_low': low, 'action_high': high}


def _component(
  config: RldsConfig, name: str, classes: str, kind: str, size: int
) -> ActionComponent:
  """Describes an action component by the dtype of its values.

  Args:
    config: of the conversion.
    name: of the component.
    classes: what the user says of their number, or ''.
    kind: of the dtype, as numpy has it.
    size: values in each step.

  Raises:
    ValueError: the number of classes is missing or none.
  """
  if classes:
    if not classes.isdecimal() or size != 1:
      raise ValueError(
        f'actions = {config.actions}: {name}: found {size} values a step and '
        f'{classes!r} classes, expected one value and a number of classes'
      )
    return ActionComponent(name=name, kind='categorical', size=int(classes))
  if kind == 'f':
    return ActionComponent(name=name, kind='continuous', size=size)
  if kind == 'b':
    return ActionComponent(name=name, kind='binary', size=size)
  raise ValueError(
    f'actions = {config.actions}: {name} holds whole numbers; write '
    f'{name}=FIELD:CLASSES with their number of classes'
  )


if __name__ == '__main__':
  convert.main_of(RldsConfig, convert_rlds)
