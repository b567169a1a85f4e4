"""Images as the format wants them."""

import re

import numpy as np
import pytest

from data_pipelines import values
from data_pipelines.writer import EpisodeError


@pytest.mark.parametrize('lead', [(), (5,)])
def test_grey_images_are_repeated_and_others_left_alone(lead):
  rng = np.random.default_rng(0)
  colour = rng.integers(0, 256, (*lead, 4, 6, 3), np.uint8)
  given = {'steps': bool(lead)}
  assert values.rgb('x', colour, **given) is colour
  grey = values.rgb('x', colour[..., 1:2], **given)
  assert grey.shape == colour.shape
  for channel in range(3):
    np.testing.assert_array_equal(grey[..., channel], colour[..., 1])


@pytest.mark.parametrize(
  ('shape', 'dtype', 'steps', 'expected'),
  [
    ((4, 6, 3), np.float32, False, '(height, width, 3)'),
    ((4, 6, 2), np.uint8, False, '(height, width, 3)'),
    ((5, 4, 6, 3), np.uint8, False, '(height, width, 3)'),
    ((4, 6, 3), np.uint8, True, '(steps, height, width, 3)'),
    ((), np.uint8, False, '(height, width, 3)'),
  ],
)
def test_other_things_are_named(shape, dtype, steps, expected):
  said = f'top: found {np.dtype(dtype)} of shape {shape}, expected uint8 '
  with pytest.raises(EpisodeError, match=re.escape(said + expected) + '$'):
    values.rgb('top', np.zeros(shape, dtype), steps=steps)
