import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.objectives import pmpo_loss

LOG_PROB = jnp.array([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0]])
ADVANTAGE = jnp.array([[1.0, -1.0, 0.0], [2.0, -3.0, -0.5]])
WEIGHT = jnp.array([[1.0, 1.0, 1.0], [0.5, 1.0, 0.0]])
KL = jnp.array([[0.1, 0.2, 0.3], [0.4, 0.5, 9.0]])


@jax.jit
def run(log_prob=LOG_PROB, advantage=ADVANTAGE, weight=WEIGHT, kl=KL):
  return pmpo_loss(log_prob, advantage, weight, alpha=0.25, kl=kl, beta=0.3)


@jax.jit
@jax.grad
def _grad(args):
  return run(**args).loss


def grads(**kwargs):
  """Gradients for log_prob, advantage, weight and kl."""
  args = dict(log_prob=LOG_PROB, advantage=ADVANTAGE, weight=WEIGHT, kl=KL)
  return _grad(args | kwargs)


def test_hand_worked():
  # D+ = {-1, -3, -4 at weight 1/2}: (-1 - 3 - 2) / 2.5 = -2.4.
  # D- = {-2, -5}, -6 has no weight: -3.5.
  # policy = 0.75 * -3.5 - 0.25 * -2.4 = -2.025.
  # KL: (0.1 + 0.2 + 0.3 + 0.2 + 0.5) / 4.5 = 1.3 / 4.5.
  out = run()
  np.testing.assert_allclose(out.policy_term, -2.025, rtol=1e-6)
  np.testing.assert_allclose(out.kl_term, 1.3 / 4.5, rtol=1e-6)
  np.testing.assert_allclose(out.loss, -2.025 + 0.39 / 4.5, rtol=1e-6)
  np.testing.assert_allclose(out.positive_share, 2.5 / 4.5, rtol=1e-6)


def test_gradients_by_hand():
  # D+: -0.25 / 2.5 per unit of weight; D-: 0.75 / 2. Descent raises the
  # likelihood of D+ and lowers that of D-. KL: 0.3 / 4.5 per unit of weight.
  got = grads()
  np.testing.assert_allclose(
    got['log_prob'], [[-0.1, 0.375, -0.1], [-0.05, 0.375, 0]], rtol=1e-6
  )
  np.testing.assert_allclose(got['kl'], WEIGHT * 0.3 / 4.5, rtol=1e-6)
  assert not np.any(got['advantage']) and not np.any(got['weight'])


def test_only_the_sign_of_the_advantage_matters():
  scaled = ADVANTAGE * jnp.array([[1e-6, 7.0, 1.0], [1e6, 1e-3, 40.0]])
  assert run(advantage=scaled).loss == run().loss
  flipped = ADVANTAGE.at[0, 0].set(-1e-6)
  assert run(advantage=flipped).loss != run().loss


@pytest.mark.parametrize('sign', [1, -1])
def test_an_empty_set_contributes_nothing(sign):
  # All in one set: mean log-prob (-1 - 2 - 3 - 2 - 5) / 4.5 = -13 / 4.5.
  expected = 0.25 * 13 / 4.5 if sign > 0 else -0.75 * 13 / 4.5
  advantage = sign * jnp.ones((2, 3))
  out = run(advantage=advantage)
  np.testing.assert_allclose(out.policy_term, expected, rtol=1e-6)
  assert out.positive_share == (sign > 0)
  got = grads(advantage=advantage)['log_prob']
  scale = -0.25 if sign > 0 else 0.75
  np.testing.assert_allclose(got, scale * WEIGHT / 4.5, rtol=1e-6)


def test_no_weight_at_all_gives_zero_loss_and_zero_gradients():
  out = run(weight=jnp.zeros((2, 3)))
  assert [float(x) for x in jax.tree.leaves(out)] == [0, 0, 0, 0]
  got = grads(weight=jnp.zeros((2, 3)))
  assert all(np.array_equal(g, np.zeros((2, 3))) for g in got.values())


def test_steps_without_weight_may_hold_anything():
  bad = (1, 2)
  kwargs = dict(
    log_prob=LOG_PROB.at[bad].set(-jnp.inf),
    advantage=ADVANTAGE.at[bad].set(jnp.nan),
    kl=KL.at[bad].set(jnp.nan),
  )
  np.testing.assert_allclose(run(**kwargs).loss, run().loss, rtol=1e-6)
  got = grads(**kwargs)
  assert all(np.all(np.isfinite(g)) for g in got.values())


def test_low_precision_is_computed_in_float32():
  low = [x.astype(jnp.bfloat16) for x in (LOG_PROB, ADVANTAGE, WEIGHT, KL)]
  out = run(*low)
  assert out.loss.dtype == jnp.float32
  assert out.loss == run(*(x.astype(jnp.float32) for x in low)).loss


def test_shapes_must_agree():
  with pytest.raises(ValueError, match=r'advantage \(2, 1\)'):
    run(advantage=ADVANTAGE[:, :1])
