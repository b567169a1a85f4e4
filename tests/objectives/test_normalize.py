import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.objectives import rms_init
from dreamer4_jax.objectives import rms_normalize as eager

rms_normalize = jax.jit(eager)


def test_hand_worked_steps():
  # decay 1/2. Loss 2: m = 2, bias 1/2, rms 2 -> 1.
  # Loss 4: m = 1 + 8 = 9, bias 3/4, rms sqrt(12) -> 4 / sqrt(12).
  first, state = rms_normalize(jnp.float32(2), rms_init(), decay=0.5)
  second, state = rms_normalize(jnp.float32(4), state, decay=0.5)
  np.testing.assert_allclose(first, 1.0, rtol=1e-6)
  np.testing.assert_allclose(second, 4 / np.sqrt(12), rtol=1e-6)
  np.testing.assert_allclose(state.mean_square, 9, rtol=1e-6)
  np.testing.assert_allclose(state.weight, 0.75, rtol=1e-6)


def test_default_decay_is_a_hundredth():
  # m = 0.99 * 0.04 + 0.16 = 0.1996, bias 0.0199.
  _, state = rms_normalize(jnp.float32(2), rms_init())
  out, _ = rms_normalize(jnp.float32(4), state)
  np.testing.assert_allclose(out, 4 / np.sqrt(0.1996 / 0.0199), rtol=1e-5)


def test_long_run_matches_float64_and_forgets_the_start():
  losses = np.abs(np.random.default_rng(0).normal(3, 1, 300)) + 0.1
  losses[0] = 1000.0
  state, m, w = rms_init(), 0.0, 0.0
  for x in losses:
    out, state = rms_normalize(jnp.float32(x), state, decay=0.9)
    m, w = 0.9 * m + 0.1 * x**2, 0.9 * w + 0.1
    np.testing.assert_allclose(out, x / np.sqrt(m / w), rtol=1e-4)


def test_gradient_treats_the_scale_as_a_constant():
  _, state = rms_normalize(jnp.float32(2), rms_init(), decay=0.5)
  grad = jax.grad(lambda x: rms_normalize(x, state, decay=0.5)[0])
  np.testing.assert_allclose(grad(jnp.float32(4)), 1 / np.sqrt(12), rtol=1e-6)
  fresh = jax.grad(lambda x: rms_normalize(x, rms_init())[0])
  np.testing.assert_allclose(fresh(jnp.float32(5)), 0.2, rtol=1e-5)


def test_scale_is_at_least_eps():
  out, _ = rms_normalize(jnp.float32(0), rms_init())
  assert out == 0
  out, _ = rms_normalize(jnp.float32(2e-3), rms_init(), eps=1e-2)
  np.testing.assert_allclose(out, 0.2, rtol=1e-6)
  grad = jax.grad(lambda x: rms_normalize(x, rms_init())[0])(jnp.float32(0))
  np.testing.assert_allclose(grad, 1e6, rtol=1e-5)


@pytest.mark.parametrize('seen', [False, True])
def test_inactive_step_changes_nothing(seen):
  state = rms_init()
  if seen:
    _, state = rms_normalize(jnp.float32(3), state)

  def f(x, active):
    return rms_normalize(x, state, active=active)

  (out, new), grad = jax.value_and_grad(f, has_aux=True)(
    jnp.float32(7), jnp.array(False)
  )
  assert out == 0 and grad == 0
  assert new.mean_square == state.mean_square and new.weight == state.weight
  on, new = f(jnp.float32(7), jnp.array(True))
  expected, state_on = rms_normalize(jnp.float32(7), state)
  assert on == expected and new.mean_square == state_on.mean_square


def test_low_precision_loss_is_normalised_in_float32():
  # 300^2 is beyond float16.
  out, state = rms_normalize(jnp.float16(300), rms_init())
  assert out.dtype == jnp.float32 and state.mean_square.dtype == jnp.float32
  np.testing.assert_allclose(out, 1, rtol=1e-5)
  with pytest.raises(ValueError, match='scalar'):
    rms_normalize(jnp.ones(3), rms_init())
