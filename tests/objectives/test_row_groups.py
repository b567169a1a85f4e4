import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.objectives import RowGroups, group_size


def test_one_row_of_every_group_is_taken_and_goes_back():
  x = np.arange(24, dtype=np.float32).reshape(8, 3)
  groups = RowGroups(place=jnp.array([0, 2]), size=4)
  taken = groups.take({'a': jnp.asarray(x)})['a']
  assert np.array_equal(taken, x[[0, 6]])
  expected = np.where(np.isin(np.arange(8), [0, 6])[:, None], x, 0)
  assert np.array_equal(groups.put(taken), expected)
  alone = RowGroups(place=jnp.zeros(8, int), size=1)
  assert np.array_equal(alone.put(jnp.asarray(x)), x)


def test_the_first_wanted_row_is_taken():
  wanted = jnp.array([c == '1' for c in '01100001'])
  assert RowGroups.of(wanted, 4).place.tolist() == [1, 3]
  assert RowGroups.of(wanted, 2).place.tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize('size', [0, 3])
def test_groups_divide_the_rows(size):
  with pytest.raises(ValueError, match=rf'rows_per_group = {size}: .* 8 rows'):
    RowGroups.of(jnp.ones(8, bool), size)


@pytest.mark.parametrize(
  'rows, share, size',
  [
    (8, 0.25, 4),
    (8, 0.5 * 0.25, 8),
    (8, 0.25 * 0.25, 8),
    (16, 0.25 * 0.25, 16),
    (6, 0.25, 3),
    (7, 0.25, 1),
    (1, 0.25, 1),
    (8, 1.0, 1),
    (8, 0.0, 8),
  ],
)
def test_groups_are_as_large_as_the_share_allows(rows, share, size):
  assert group_size(rows, share) == size
