"""Text of compiled programs: by hand, and compiled here for eight devices."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import pytest

from dreamer4_jax.aot.hlo import Program
from dreamer4_jax.config import MeshConfig
from dreamer4_jax.sharding import make_mesh

# In the form of libtpu's text: no trip count beside the loop.
TEXT = """HloModule step, is_scheduled=true

%wrapped (p.1: s32[], p.2: s32[]) -> pred[] {
  %p.1 = s32[] parameter(0)
  ROOT %less = pred[] compare(%p.1, %p.2), direction=LT
}

%condition.1 (arg: (s32[], f32[8])) -> pred[] {
  %arg = (s32[], f32[8]{0}) parameter(0)
  %limit = s32[]{:T(128)} constant(9)
  ROOT %fusion.1 = pred[] fusion(%arg, %limit), kind=kLoop, calls=%wrapped
}

%all-reduce-scatter.2 (x: bf16[64,8]) -> bf16[8,8] {
  %x = bf16[64,8]{1,0} parameter(0)
  %all-reduce.7 = bf16[64,8]{1,0} all-reduce(%x), to_apply=%add
  ROOT %cut = bf16[8,8]{1,0} dynamic-slice(%all-reduce.7)
}

%body.1 (arg: (s32[], f32[8])) -> (s32[], f32[8]) {
  %arg.1 = (s32[], f32[8]{0}) parameter(0)
  %gather = bf16[64,8]{1,0:T(8,128)(2,1)} all-gather(%arg.1), dimensions={0}
  %fusion.2 = f32[8] fusion(%arg.1), calls=%wrapped, {"estimated_cycles":"100"}
  %fusion.3 = bf16[8,8]{1,0} fusion(%gather), calls=%all-reduce-scatter.2
  ROOT %out = (s32[], f32[8]{0}) tuple(%arg.1, %fusion.2)
}

%cheap (x: f32[8]) -> f32[8] {
  ROOT %x.1 = f32[8]{0} copy(%x), backend_config={"estimated_cycles":"5"}
}

%dear (x: f32[8]) -> f32[8] {
  ROOT %x.2 = f32[8]{0} copy(%x), backend_config={"estimated_cycles":"70"}
}

%offloaded (x: f32[8]) -> f32[8] {
  ROOT %x.3 = f32[8]{0} copy(%x), backend_config={"estimated_cycles":"3"}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %start = (f32[4]{0}, f32[32]{0}) all-gather-start(%p), dimensions={0}
  %done = f32[32]{0} all-gather-done(%start)
  %loop = (s32[], f32[8]{0}) while(%p), condition=%condition.1, body=%body.1
  %aside = ((f32[8]{0}), f32[8]{0}) async-start(%p), calls=%offloaded
  ROOT %either = f32[8]{0} conditional(%p), branch_computations={%cheap, %dear}
}
"""


def test_loops_are_multiplied_and_the_dearest_branch_is_taken():
  cost = Program(TEXT).cost
  assert cost.cycles == 9 * 100 + 3 + 70
  assert cost.counts == {'all-gather': 9 + 1, 'reduce-scatter': 9}
  # The asynchronous one names its operand, 4 numbers, and its result, 32.
  assert cost.bytes['all-gather'] == 9 * 64 * 8 * 2 + 32 * 4
  # What goes in, not the eighth that comes out.
  assert cost.bytes['reduce-scatter'] == 9 * 64 * 8 * 2


def test_a_text_without_entry_is_refused():
  with pytest.raises(ValueError, match='no ENTRY'):
    Program('HloModule nothing\n')


def test_a_program_compiled_here():
  mesh = make_mesh(MeshConfig(data=1, fsdp=-1))

  def fn(x, w):
    def layer(x, w):
      x = jnp.tanh(x @ jax.lax.with_sharding_constraint(w, P()))
      return jax.lax.with_sharding_constraint(x, P('fsdp')), None

    return jax.lax.scan(layer, x, w)[0]

  x = jax.ShapeDtypeStruct((16, 8), jnp.float32)
  w = jax.ShapeDtypeStruct((5, 8, 8), jnp.float32)
  with jax.set_mesh(mesh):
    where = (
      jax.NamedSharding(mesh, P('fsdp')),
      jax.NamedSharding(mesh, P(None, 'fsdp')),
    )
    text = jax.jit(fn, in_shardings=where).lower(x, w).compile().as_text()
  cost = Program(text).cost
  # One gathered matrix of 64 numbers a layer, and nothing else.
  assert sum(cost.counts.values()) == cost.counts['all-gather'] == 5
  assert cost.bytes['all-gather'] == 5 * 64 * 4
