"""Arithmetic of a program before it is compiled, with loops counted in full."""

from __future__ import annotations

from collections.abc import Iterator
import functools
import math
from typing import Any

import jax


def count_flops(jaxpr: Any, *, costliest: bool = True) -> int:
  """Counts the operations of all matrix products.

  A product of `[m, k]` and `[k, n]` is 2 m k n operations. A scan counts as
  often as it runs, a conditional as one branch, a Pallas kernel as its cost
  estimate. Element-wise operations do not count.

  Args:
    jaxpr: of `jax.make_jaxpr(...)(...)`, closed or open.
    costliest: which branch of a conditional counts; else the cheapest.

  Raises:
    ValueError: the program has a loop of unknown length.
  """
  jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)
  count = functools.partial(count_flops, costliest=costliest)
  choose = max if costliest else min
  total = 0
  for equation in jaxpr.eqns:
    name, params = equation.primitive.name, equation.params
    if name == 'dot_general':
      total += _product(equation)
    elif name == 'pallas_call':
      # A kernel says itself what it computes: its grid repeats its products.
      estimate = params['cost_estimate']
      total += estimate.flops if estimate else 0
    elif name == 'shard_map':
      # Its shapes are those of one device.
      total += params['mesh'].size * count(params['jaxpr'])
    elif name == 'cond':
      total += choose(map(count, params['branches']))
    elif name == 'scan':
      total += params['length'] * count(params['jaxpr'])
    elif name == 'while' and count(params['body_jaxpr']):
      raise ValueError(
        'matrix products in a while loop, of which nobody knows how often it '
        'runs; use jax.lax.scan or fori_loop with fixed bounds'
      )
    elif name != 'while':
      total += sum(map(count, _inner(params)))
  return total


def _product(equation: Any) -> int:
  (contracted, _), _ = equation.params['dimension_numbers']
  left = equation.invars[0].aval.shape
  out = equation.outvars[0].aval.shape
  return 2 * math.prod(out) * math.prod(left[i] for i in contracted)


def _inner(params: dict[str, Any]) -> Iterator[Any]:
  """Yields the programs among the parameters of a call."""
  for value in params.values():
    for item in value if isinstance(value, tuple | list) else [value]:
      if isinstance(getattr(item, 'jaxpr', item), jax.extend.core.Jaxpr):
        yield item
