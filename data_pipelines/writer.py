"""Writes episodes to disk in the format of `dreamer4_jax.data.format`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import contextlib
import io
import pathlib
import shutil
import tempfile
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from dreamer4_jax.data import format as fmt

DATASET_NAME = 'episodes'
_INFO = 'dataset_info.json'


class _Builder(tfds.core.GeneratorBasedBuilder):
  """Streams episodes into array_record files, in the given order."""

  VERSION = tfds.core.Version('1.0.0')
  name = DATASET_NAME
  pkg_dir_path = None
  # Nothing is downloaded; the default looks for a file of checksums.
  url_infos: ClassVar[dict] = {}

  def __init__(
    self,
    *,
    description: fmt.Description,
    splits: Mapping[str, Iterable[dict[str, Any]]],
    data_dir: str,
  ):
    self._description = description
    self._episodes = splits
    self._metadata = tfds.core.MetadataDict(description.to_metadata())
    super().__init__(data_dir=data_dir, file_format='array_record')

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description='Episodes for dreamer4_jax, one record each.',
      features=fmt.features(self._description),
      metadata=self._metadata,
      # The index in the metadata counts episodes in the order of writing.
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    return {name: self._generate_examples(name) for name in self._episodes}

  def _generate_examples(self, split: str):
    lengths, events = [], []
    for i, episode in enumerate(self._episodes[split]):
      length, found = fmt.index_entry(episode)
      lengths.append(length)
      events.append(found)
      yield i, episode
    self._metadata['splits'][split] = {'lengths': lengths, 'events': events}


def check_output(out: str | pathlib.Path, *, overwrite: bool) -> pathlib.Path:
  """Checks, before any work, that a dataset may be written to `out`.

  Args:
    out: directory of the dataset to be.
    overwrite: whether a finished dataset there may be replaced.

  Returns:
    `out` as an absolute path.

  Raises:
    FileExistsError: there is a dataset and `overwrite` is false, or there is
      something that is not a dataset, which is never replaced.
  """
  out = pathlib.Path(out).expanduser().absolute()
  if (out / _INFO).exists():
    if not overwrite:
      raise FileExistsError(
        f'{out}: there is a finished dataset; pass overwrite=True '
        '(--overwrite) to replace it, or choose another directory'
      )
  elif out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise FileExistsError(
      f'{out}: exists and is not a dataset; choose another directory'
    )
  return out


def write_dataset(
  out: str | pathlib.Path,
  *,
  description: fmt.Description,
  splits: Mapping[str, Iterable[dict[str, Any]]],
  overwrite: bool = False,
) -> pathlib.Path:
  """Writes a whole dataset, or nothing.

  The records go to a temporary directory beside `out`, which takes its place
  when all is written.

  Args:
    out: directory of the dataset.
    description: actions, tasks and frame shape of the episodes.
    splits: episodes by split name, each a dict of `fmt.features`; iterables
      are consumed once, in order.
    overwrite: replace a finished dataset at `out`.

  Returns:
    The absolute path of the dataset.

  Raises:
    FileExistsError: see `check_output`.
  """
  out = check_output(out, overwrite=overwrite)
  out.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(
    prefix=f'.{out.name}.incomplete-', dir=out.parent
  ) as work:
    builder = _Builder(description=description, splits=splits, data_dir=work)
    tfds.disable_progress_bar()
    # TFDS reports on standard output, which belongs to the caller.
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare(file_format='array_record')
    if out.exists():
      shutil.rmtree(out)
    pathlib.Path(builder.data_dir).rename(out)
  return out
