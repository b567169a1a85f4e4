import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.objectives import multi_token_rewards, multi_token_targets

targets_of = jax.jit(multi_token_targets, static_argnums=3)
SEGMENTS = jnp.array([[0, 0, 0, 1, 1], [3, 3, 3, 3, 3]])
VALID = jnp.array([[1, 1, 0, 1, 1], [0, 1, 1, 1, 1]], bool)


def test_hand_worked():
  x = jnp.array([[10, 11, 12, 13, 14], [20, 21, 22, 23, 24]])
  targets, mask = targets_of(x, VALID, SEGMENTS, 3)
  # Frame 0 of clip 0 sees 10, 11 and the invalid 12; frame 2 would reach
  # into segment 1; frame 4 has nothing ahead.
  expected_mask = [
    [[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 0], [1, 0, 0]],
    [[0, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0]],
  ]
  targets, mask = np.asarray(targets), np.asarray(mask)
  assert mask.dtype == np.bool_
  assert np.array_equal(mask, np.array(expected_mask, bool))
  assert targets[0, 0].tolist() == [10, 11, 12]
  assert targets[1, 2].tolist() == [22, 23, 24]
  assert targets[1, 3].tolist()[:2] == [23, 24]


@pytest.mark.parametrize('distances', [1, 4, 9])
def test_matches_loops(distances):
  rng = np.random.default_rng(distances)
  b, t = 3, 6
  x = {
    'move': rng.integers(0, 9, (b, t)),
    'look': rng.normal(size=(b, t, 2)).astype(np.float32),
  }
  valid = rng.uniform(size=(b, t)) > 0.3
  segments = np.cumsum(rng.uniform(size=(b, t)) > 0.7, axis=1)
  targets, mask = targets_of(
    {k: jnp.asarray(v) for k, v in x.items()},
    jnp.asarray(valid),
    jnp.asarray(segments),
    distances,
  )
  targets, mask = jax.tree.map(np.asarray, (targets, mask))
  assert mask.shape == (b, t, distances)
  assert targets['look'].shape == (b, t, distances, 2)
  assert targets['move'].dtype == np.int32
  seen = 0
  for i in range(b):
    for now in range(t):
      for n in range(distances):
        then = now + n
        expected = (
          then < t and valid[i, then] and segments[i, then] == segments[i, now]
        )
        assert mask[i, now, n] == expected
        if expected:
          seen += 1
          for name in x:
            assert np.array_equal(targets[name][i, now, n], x[name][i, then])
  assert seen > 5


def test_errors_name_the_fault():
  with pytest.raises(ValueError, match='distances = 0'):
    multi_token_targets(VALID, VALID, SEGMENTS, 0)
  with pytest.raises(ValueError, match=r'\(2, 4, 3\)'):
    multi_token_targets(jnp.zeros((2, 4, 3)), VALID, SEGMENTS, 2)


def test_an_id_that_is_no_task_has_no_reward():
  reward = jnp.ones((1, 2, 2))
  found, seen = multi_token_rewards(
    reward, jnp.array([[1, 3]]), jnp.zeros((1, 2), int), 1
  )
  assert found[..., 0].tolist() == [[1, 0]] and seen.all()
