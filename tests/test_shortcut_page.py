"""Shortcut forcing with a foreign network, as docs/shortcut.md shows it."""

import pathlib
import re

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

PAGE = (pathlib.Path(__file__).parents[1] / 'docs/shortcut.md').read_text()
LOSS, SAMPLES, TOY = re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)
# Seven numbers a row; the network gets the levels merely as two arrays.
NET = nn.Dense(7)
NOISE = jax.random.normal(jax.random.key(2), (64, 7))


def network(params, z, tau, d):
  assert tau.shape == d.shape == z.shape[:1]
  return NET.apply(params, jnp.column_stack([z, tau, d]))


def run(code, **names):
  space = {'__name__': 'page', **names}
  exec(compile(code, 'shortcut.md', 'exec'), space)
  return space


@pytest.mark.parametrize('code, most', [(LOSS, 5), (SAMPLES, 5), (TOY, 20)])
def test_it_takes_few_lines(code, most):
  lines = [line for line in code.splitlines() if line.strip()]
  assert 0 < len(lines) <= most
  assert max(map(len, lines)) <= 80


def test_a_foreign_network_trains_and_is_sampled():
  params = NET.init(jax.random.key(0), jnp.zeros((1, 9)))
  loss = run(LOSS, network=network)['loss']
  z1 = jnp.tile(jnp.linspace(-1, 1, 7), (64, 1))
  step = jax.jit(
    lambda params, key: jax.tree.map(
      lambda p, g: p - 0.3 * g,
      params,
      jax.grad(loss)(params, z1, key),
    )
  )
  for key in jax.random.split(jax.random.key(1), 300):
    params = step(params, key)
  found = run(SAMPLES, network=network, params=params, noise=NOISE)['z1']
  # A linear network can fit the data, which repeat a single row.
  np.testing.assert_allclose(found, z1, atol=0.15)


def test_the_toy_draws_its_four_points():
  space = run(TOY)
  corners = np.array([[x, y] for x in (-1, 1) for y in (-1, 1)])

  def distances(z):
    away = np.linalg.norm(np.asarray(z)[:, None] - corners, axis=-1)
    return away.min(axis=1), np.bincount(away.argmin(axis=1), minlength=4)

  noise, _ = distances(space['noise'])
  assert np.median(noise) > 0.7
  draw = jax.jit(
    lambda noise: space['sample'](
      space['denoiser'](space['params']), noise, steps=1, max_steps=8
    )
  )
  for z, median in ((draw(space['noise']), 0.3), (space['z1'], 0.2)):
    away, counts = distances(z)
    assert np.median(away) < median
    # A quarter each; the standard deviation of a count of 250 is 14.
    assert counts.min() > 180
