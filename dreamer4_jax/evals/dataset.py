"""What is in a dataset, in words and in pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import json
import pathlib
from typing import Any

from einops import rearrange
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dreamer4_jax.config import ActionComponent
from dreamer4_jax.data import EpisodeSource
from dreamer4_jax.data import format as fmt
from dreamer4_jax.data.sources import (
  Request,
  Stretch,
  open_builder,
  read_description,
)
from dreamer4_jax.evals.files import write_image, write_video

_LINE = 12
"""Height of a line of text in pixels."""


def summary(path: str | pathlib.Path) -> dict[str, Any]:
  """Counts what is in a dataset, from its index alone.

  Args:
    path: directory of the dataset.

  Returns:
    Plain data: the description, and by split episodes, frames, hours (if there
    is a frame rate), share of steps with known actions, lengths, returns, share
    of terminal episodes, events by task, attributes, bytes on disk.

  Raises:
    FileNotFoundError: there is no dataset.
    ValueError: it is damaged.
  """
  builder = open_builder(path)
  metadata = dict(builder.info.metadata or {})
  description = read_description(path, metadata)
  splits = {}
  for name, info in builder.info.splits.items():
    entry = metadata['splits'][name]
    splits[name] = _split(description, entry, info.num_bytes)
  plain = description.to_metadata()
  plain.pop('splits')
  return {'path': str(path), **plain, 'splits': splits}


def _split(
  description: fmt.Description, entry: Mapping[str, Any], num_bytes: int
) -> dict[str, Any]:
  lengths = np.asarray(entry['lengths'])
  frames = int(lengths.sum())
  found: dict[str, Any] = {
    'episodes': len(lengths),
    'frames': frames,
    'bytes': num_bytes,
    'length': _spread(lengths),
    'actions_known': sum(entry['known']) / frames,
    'return': _spread(np.asarray(entry['returns'])),
    'terminal': float(np.mean(entry['terminal'])),
  }
  if description.frame_rate:
    found['hours'] = frames / description.frame_rate / 3600
  events = {}
  for task, name in enumerate(description.tasks):
    counts = [sum(t == task for _, t in e) for e in entry['events']]
    events[name] = {
      'count': sum(counts),
      'episodes': float(np.mean([c > 0 for c in counts])),
    }
  if description.tasks != fmt.REWARD_ONLY:
    found['events'] = events
  found['attributes'] = _attributes(entry['attributes'])
  return found


def _spread(x: np.ndarray) -> dict[str, float]:
  return {
    'min': float(x.min()),
    'mean': float(x.mean()),
    'max': float(x.max()),
  }


def _attributes(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Counts the values of each attribute; a range if there are many numbers."""
  table: dict[str, Any] = {}
  for name in sorted({k for a in found for k in a}):
    values = [a[name] for a in found if name in a]
    counts: dict[str, int] = {}
    for value in values:
      counts[str(value)] = counts.get(str(value), 0) + 1
    if len(counts) <= 12:
      table[name] = counts
    elif all(isinstance(v, int | float) for v in values):
      table[name] = _spread(np.asarray(values, float))
    else:
      table[name] = f'{len(counts)} values, for example {next(iter(counts))}'
  return table


def to_text(found: Mapping[str, Any]) -> str:
  """Formats a `summary` as text."""
  kind = f'frames {"x".join(map(str, found["frame_shape"]))}'
  if found['tokenizer']:
    shape = 'x'.join(map(str, found['latent_shape']))
    kind = f'latents {shape} of tokenizer {found["tokenizer"]}, of {kind}'
  lines = [found['path'], f'  {kind}, chunks of {found["chunk_length"]}']
  if found['frame_rate']:
    lines[-1] += f', {found["frame_rate"]:g} frames/s'
  actions = [
    f'{c["name"]} ({c["kind"]}, {c["size"]})' for c in found['actions']
  ]
  lines.append(f'  actions: {", ".join(actions) or "none"}')
  lines.append(f'  tasks: {", ".join(found["tasks"]) or "none"}')
  if found['vectors']:
    lines.append(f'  vectors: {json.dumps(found["vectors"])}')
  for name, split in found['splits'].items():
    hours = f', {split["hours"]:.2f} h' if 'hours' in split else ''
    lines += [
      '',
      f'{name}: {split["episodes"]:,} episodes, {split["frames"]:,} frames'
      f'{hours}, {split["bytes"] / 1e6:,.1f} MB',
      f'  length: {_range(split["length"])}',
      f'  return: {_range(split["return"])}',
      f'  actions known: {split["actions_known"]:.1%} of the steps',
      f'  ended for good: {split["terminal"]:.1%} of the episodes',
    ]
    for task, e in split.get('events', {}).items():
      share = f'{e["episodes"]:.1%} of the episodes'
      lines.append(f'  event {task}: {e["count"]:,}, in {share}')
    for attribute, values in split['attributes'].items():
      if isinstance(values, str):
        text = values
      elif set(values) == {'min', 'mean', 'max'}:
        text = _range(values)
      else:
        text = ', '.join(f'{v} ({n:,})' for v, n in values.items())
      lines.append(f'  {attribute}: {text}')
  return '\n'.join(lines)


def _range(x: Mapping[str, float]) -> str:
  return f'{x["min"]:g} to {x["max"]:g}, mean {x["mean"]:.4g}'


def show(
  path: str | pathlib.Path,
  out: pathlib.Path,
  *,
  split: str = 'train',
  episodes: int = 4,
  frames: int = 200,
) -> list[pathlib.Path]:
  """Draws episodes with their actions: a contact sheet and a video.

  Args:
    path: directory of a dataset of frames.
    out: directory for `SPLIT.png` and `SPLIT.mp4`, created if needed.
    split: name of the split.
    episodes: how many, evenly spread over the split.
    frames: at most this many of each episode are in the video.

  Returns:
    The files.

  Raises:
    FileNotFoundError: there is no dataset.
    ValueError: it is damaged, has no such split, or holds latents.
  """
  source = EpisodeSource(path, split, cache_bytes=0)
  if source.description.tokenizer:
    raise ValueError(
      f'{path}: holds latents, which nobody can see; show the dataset they '
      'were made from'
    )
  chosen = np.unique(np.linspace(0, len(source) - 1, episodes).astype(int))
  drawn = [_draw_episode(source, int(e), frames) for e in chosen]
  out.mkdir(parents=True, exist_ok=True)
  sheet, video = out / f'{split}.png', out / f'{split}.mp4'
  columns = 12
  rows = []
  for clip in drawn:
    picked = np.linspace(0, len(clip) - 1, columns).astype(int)
    rows.append(rearrange(clip[picked], 't h w c -> h (t w) c'))
  write_image(sheet, np.concatenate(rows))
  longest = max(map(len, drawn))
  padded = [
    np.pad(c, [(0, longest - len(c)), (0, 0), (0, 0), (0, 0)], mode='edge')
    for c in drawn
  ]
  rate = round(source.description.frame_rate) or 8
  write_video(video, np.concatenate(padded, axis=2), fps=rate)
  return [sheet, video]


def _draw_episode(
  source: EpisodeSource, episode: int, frames: int
) -> np.ndarray:
  """Returns `[T, H', W', 3]` uint8 pictures of an episode's beginning."""
  count = min(frames, int(source.index.lengths[episode]))
  arrays = source.allocate((1, count))
  source.read([Request(Stretch(episode, 0, count), arrays)])
  steps = {k: v[0] for k, v in arrays.items()}
  images = steps['observation']
  if images.shape[-1] != 3:
    images = images[..., :1].repeat(3, axis=-1)
  factor = max(1, 128 // images.shape[2])
  images = images.repeat(factor, axis=1).repeat(factor, axis=2)
  captions = [
    [f'episode {episode}, step {t}', *_caption(source.description, steps, t)]
    for t in range(count)
  ]
  lines = 2 + len(source.description.actions) + 1
  return np.stack(
    [
      _annotate(image, text, lines)
      for image, text in zip(images, captions, strict=True)
    ]
  )


def _caption(
  description: fmt.Description, steps: Mapping[str, np.ndarray], t: int
) -> Iterator[str]:
  """Yields lines on the action of step t and what it earned."""
  for part in description.actions:
    value = steps[f'action/{part.name}'][t]
    text = spell(part, value, description.labels.get(part.name))
    yield f'{part.name}: {text if steps["action_known"][t] else "?"}'
  earned = [f'reward {steps["reward"][t]:g}'] if steps['reward'][t] else []
  if 'events' in steps:
    events = np.flatnonzero(steps['events'][t])
    earned += [description.tasks[i] for i in events]
  if steps['is_last'][t]:
    earned.append('end' if steps['is_terminal'][t] else 'cut')
  yield ', '.join(earned)


def spell(
  part: ActionComponent, value: np.ndarray, labels: Sequence[str] | None
) -> str:
  """Formats one component of an action as text."""
  if part.kind == 'categorical':
    return labels[int(value)] if labels else str(int(value))
  if part.kind == 'binary':
    on = np.flatnonzero(value)
    return ' '.join(labels[i] if labels else str(i) for i in on) or '-'
  return ' '.join(f'{x:+.2f}' for x in value)


def _annotate(
  image: np.ndarray, text: Sequence[str], lines: int, border: int = 2
) -> np.ndarray:
  """Puts an image on a white card with text beneath."""
  height, width = image.shape[:2]
  card = Image.new(
    'RGB', (width + 2 * border, height + 2 * border + lines * _LINE), 'white'
  )
  card.paste(Image.fromarray(image), (border, border))
  draw, font = ImageDraw.Draw(card), ImageFont.load_default(_LINE - 2)
  for i, line in enumerate(text):
    draw.text((border, height + border + i * _LINE), line, 'black', font)
  return np.asarray(card)
