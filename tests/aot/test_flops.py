"""Counted products against arithmetic by hand and XLA's own count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.aot.flops import count_flops


def count(fn, *shapes):
  return count_flops(jax.make_jaxpr(fn)(*map(jnp.ones, shapes)))


def test_a_product_with_batch_and_several_contracted_axes():
  einsum = lambda x, y: jnp.einsum('bijk,bkjl->bil', x, y)
  assert count(einsum, (3, 4, 5, 6), (3, 6, 5, 7)) == 2 * 3 * 4 * 5 * 6 * 7


def test_loops_count_as_often_as_they_run_and_branches_at_their_costliest():
  def fn(x, w):
    y, _ = jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, length=5)
    cheap = lambda a: a @ w
    dear = lambda a: jax.jit(jnp.matmul)(a @ w, w)
    return jax.lax.cond(y.sum() > 0, cheap, dear, y)

  assert count(fn, (4, 8), (8, 8)) == (5 + 2) * 2 * 4 * 8 * 8


def test_what_the_backward_pass_computes_again_counts():
  def layers(x, w):
    for _ in range(2):
      x = jnp.tanh(x @ w)
    return x.sum()

  shapes, one = ((4, 8), (8, 8)), 2 * 4 * 8 * 8
  # Two products forward, two for each gradient; the first layer's input too.
  assert count(jax.grad(layers, argnums=(0, 1)), *shapes) == 6 * one
  again = jax.grad(jax.checkpoint(layers), argnums=(0, 1))
  # Of the second layer's products one is enough to go back from its result.
  assert count(again, *shapes) in (7 * one, 8 * one)


def test_against_the_count_of_xla():
  def fn(x, w, v):
    return jnp.einsum('bij,jk,kl->bil', x, w, v)

  shapes = ((3, 16, 32), (32, 64), (64, 8))
  compiled = jax.jit(fn).lower(*map(jnp.ones, shapes)).compile()
  assert count(fn, *shapes) == compiled.cost_analysis()['flops']


def test_products_in_an_endless_loop_cannot_be_counted():
  def fn(x):
    return jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ c, x)

  with pytest.raises(ValueError, match='in a while loop'):
    count(fn, (4, 4))


def test_what_each_device_does_counts_for_all():
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ('data',))
  spec = jax.P('data')

  def fn(x, w):
    own = jax.shard_map(
      jnp.matmul, mesh=mesh, in_specs=(spec, jax.P()), out_specs=spec
    )
    return own(x, w)

  assert count(fn, (8, 16), (16, 32)) == 2 * 8 * 16 * 32


def test_the_cheapest_branch_may_count_instead():
  def fn(x, w):
    return jax.lax.cond(x.sum() > 0, lambda a: a @ w @ w, lambda a: a @ w, x)

  jaxpr = jax.make_jaxpr(fn)(jnp.ones((4, 8)), jnp.ones((8, 8)))
  assert count_flops(jaxpr) == 2 * count_flops(jaxpr, costliest=False)
