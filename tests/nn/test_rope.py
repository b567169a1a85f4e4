import jax.numpy as jnp
import numpy as np

from dreamer4_jax.nn import rope

PAIRS, BASE = 4, 100.0


def rotated(x, position):
  angle = rope.angles(jnp.asarray(position, jnp.uint32), PAIRS, BASE)
  turn = rope.rotation(angle[None])
  return np.asarray(rope.rotate(jnp.asarray(x), turn), np.float64)


def vectors():
  rng = np.random.default_rng(0)
  return rng.normal(size=(2, 1, 2 * PAIRS)).astype(np.float32)


def test_rotation_matches_float64():
  # Pair i turns by 100^(-i/4) radians a position; a frequency is rounded to
  # 2^-33 turns, which is 7e-7 radians after 1,000 positions.
  x = vectors()[0]
  speed = 100.0 ** (-np.arange(4) / 4)
  for position in (0, 1, 17, 1000):
    z = (x[:, :4] + 1j * x[:, 4:].astype(np.float64)) * np.exp(
      1j * speed * position
    )
    expected = np.concatenate([z.real, z.imag], axis=-1)
    np.testing.assert_allclose(rotated(x, position), expected, atol=4e-6)


def test_logits_depend_on_the_distance_alone():
  q, k = vectors()
  expected = [(rotated(q, d) * rotated(k, 0)).sum() for d in range(4)]
  assert np.ptp(expected) > 0.1
  for start in (100, 1_000_000, 2**31 - 2, 2**32 - 2):
    for d in range(4):
      here = rotated(q, (start + d) % 2**32), rotated(k, start)
      np.testing.assert_allclose(
        (here[0] * here[1]).sum(), expected[d], atol=5e-6
      )


def test_phases_are_exact_integers_at_any_position():
  steps = [int(m) for m in rope.frequencies(PAIRS, BASE)]
  for position in (3, 1_000_000, 2**32 - 1):
    turns = [(position * m % 2**32) / 2**32 for m in steps]
    signed = [t - 1 if t >= 0.5 else t for t in turns]
    got = rope.angles(jnp.asarray(position, jnp.uint32), PAIRS, BASE)
    np.testing.assert_allclose(got, 2 * np.pi * np.array(signed), rtol=2e-7)


def test_axial_angles_turn_half_with_the_row_and_half_with_the_column():
  got = np.asarray(rope.axial_angles(2, 3, PAIRS, BASE))
  assert got.shape == (6, PAIRS)
  for row in range(2):
    for col in range(3):
      # Two pairs for each: speeds 1 and 100^(-1/2) = 0.1.
      np.testing.assert_allclose(
        got[3 * row + col], [row, 0.1 * row, col, 0.1 * col], atol=1e-6
      )


def test_rotation_keeps_dtype_and_length():
  x = jnp.asarray(vectors()[0], jnp.bfloat16)
  turn = rope.rotation(jnp.ones((1, PAIRS)))
  assert rope.rotate(x, turn).dtype == jnp.bfloat16
  np.testing.assert_allclose(
    np.linalg.norm(rotated(vectors()[0], 5)),
    np.linalg.norm(vectors()[0]),
    rtol=1e-6,
  )
