import jax.numpy as jnp
import numpy as np

from dreamer4_jax.nn import masks
from dreamer4_jax.nn.backends import SequenceMask
from dreamer4_jax.nn.transformer import banded_causal_mask

# Two latents, two patches, one token of a third modality.
MODALITY = [0, 0, 1, 1, 2]


def as_bool(rows):
  return np.array([[c == '1' for c in row] for row in rows.split()])


def test_encoder_latents_see_all_and_the_others_their_own():
  expected = as_bool('11111 11111 00110 00110 00001')
  assert np.array_equal(masks.encoder_mask(MODALITY), expected)


def test_decoder_latents_see_themselves_and_the_others_latents_too():
  expected = as_bool('11000 11000 11110 11110 11001')
  assert np.array_equal(masks.decoder_mask(MODALITY), expected)


def test_only_the_hidden_token_sees_the_hidden_token():
  expected = as_bool('1101 1101 1111 1101')
  assert np.array_equal(masks.hidden_token_mask(4, 2), expected)
  assert masks.hidden_token_mask(4, None).all()


def test_time_mask_is_banded_causal_and_keeps_to_segments():
  ids = jnp.array([[0, 0, 0, 0, 0], [0, 0, 1, 1, 0]])
  got = SequenceMask.make(banded_causal_mask(5, 3), ids).dense[:, 0, 0]
  whole = as_bool('10000 11000 11100 01110 00111')
  parts = as_bool('10000 11000 00100 00110 00001')
  assert np.array_equal(got, np.stack([whole, parts]))
