"""Pictures are stored as players and viewers show them, and fitted one way."""

import io
import struct
import zlib

import numpy as np
from PIL import Image
import pytest

from data_pipelines import geometry
from data_pipelines.writer import EpisodeError

ORIENTATION = 0x0112


def stored(image, form='PNG', **kwargs):
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, form, **kwargs)
  return buffer.getvalue()


@pytest.mark.parametrize(
  ('orientation', 'shown'),
  [
    (1, lambda x: x),
    (2, lambda x: x[:, ::-1]),
    (3, lambda x: x[::-1, ::-1]),
    (4, lambda x: x[::-1]),
    (5, lambda x: x.swapaxes(0, 1)),
    (6, lambda x: np.rot90(x, -1)),
    (7, lambda x: x[::-1, ::-1].swapaxes(0, 1)),
    (8, lambda x: np.rot90(x, 1)),
  ],
)
def test_a_camera_s_orientation_turns_a_picture(orientation, shown):
  """Loaders that ignore EXIF train on pictures that lie on their side.

  github.com/huggingface/diffusers/pull/3465,
  github.com/tensorflow/datasets/issues/3202
  """
  image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
  exif = Image.Exif()
  exif[ORIENTATION] = orientation
  found = geometry.decoded('top', stored(image, exif=exif))
  np.testing.assert_array_equal(found, shown(image))


def test_depth_is_refused_and_not_clipped():
  """github.com/huggingface/lerobot/pull/3402: depth is PNG of 16 bits."""
  depth = np.full((4, 6), 1500, np.uint16)
  with pytest.raises(
    EpisodeError, match=r'top: .*mode I;16 with 16 bits, such'
  ):
    geometry.decoded('top', stored(depth))

  # Pillow would keep the upper bytes of a colour PNG of 16 bits.
  def chunk(kind, body):
    check = struct.pack('>I', zlib.crc32(kind + body))
    return struct.pack('>I', len(body)) + kind + body + check

  rows = b''.join(b'\0' + bytes(6 * 2) for _ in range(2))
  png = (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', struct.pack('>IIBBBBB', 2, 2, 16, 2, 0, 0, 0))
    + chunk(b'IDAT', zlib.compress(rows))
    + chunk(b'IEND', b'')
  )
  with pytest.raises(EpisodeError, match=r'mode RGB with 16 bits'):
    geometry.decoded('top', png)
  with pytest.raises(EpisodeError, match='mode F, such as depth'):
    geometry.decoded('top', stored(np.ones((4, 6), np.float32), 'TIFF'))


def test_grey_palettes_and_opaque_pictures_are_exact():
  rng = np.random.default_rng(0)
  grey = rng.integers(0, 256, (4, 6), np.uint8)
  expected = grey[..., None].repeat(3, -1)
  np.testing.assert_array_equal(geometry.decoded('x', stored(grey)), expected)
  opaque = np.dstack([expected, np.full((4, 6), 255, np.uint8)])
  np.testing.assert_array_equal(geometry.decoded('x', stored(opaque)), expected)
  opaque[0, 0, 3] = 7
  with pytest.raises(EpisodeError, match='transparent pixels'):
    geometry.decoded('x', stored(opaque))
  with pytest.raises(EpisodeError, match='x: damaged image'):
    geometry.decoded('x', b'nothing')


def flag():
  """Black, with a white square in the middle and grey sides."""
  image = np.zeros((20, 40, 3), np.uint8)
  image[:, :10] = image[:, 30:] = 128
  image[5:15, 15:25] = 255
  return image


def test_crop_pad_and_stretch():
  crop = geometry.fitted(flag(), (10, 10), 'crop')[..., 0]
  assert crop[0].tolist() == [0] * 10
  assert crop[5, 3:7].tolist() == [255] * 4 and crop[5, 0] == 0
  pad = geometry.fitted(flag(), (10, 10), 'pad')[..., 0]
  assert not pad[:2].any() and not pad[8:].any()
  assert pad[4, 0] == 128 and pad[4, 9] == 128 and pad[4, 5] == 255
  stretch = geometry.fitted(flag(), (10, 10), 'stretch')[..., 0]
  assert stretch[0].tolist()[:2] == [128, 128] and stretch[0, 4] == 0
  image = flag()
  assert geometry.fitted(image, None) is image
  assert geometry.fitted(image, (20, 40), 'crop') is image


@pytest.mark.parametrize('fit', geometry.FITS)
@pytest.mark.parametrize('shape', [(7, 31), (31, 7), (9, 9), (1, 50)])
def test_every_shape_comes_to_size(shape, fit):
  image = np.full((*shape, 3), 200, np.uint8)
  found = geometry.fitted(image, (8, 12), fit)
  assert found.shape == (8, 12, 3)
  if fit != 'pad':
    assert (found == 200).all()
  else:
    rows, cols = np.nonzero(found[..., 0])
    assert found[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1].all()
    # Bars on both sides, or on neither.
    assert abs(rows.min() - (7 - rows.max())) <= 1
    assert abs(cols.min() - (11 - cols.max())) <= 1


def test_a_ribbon_does_not_become_huge():
  with pytest.raises(EpisodeError, match=r"fit = 'crop'.*1 x 90000.*use pad"):
    geometry.plan((1, 90_000), (720, 1280), 'crop')
