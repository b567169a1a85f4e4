# ruff: noqa: E501
"""Kernels of programs for a GPU, counted by hand."""

import dataclasses

import pytest

from dreamer4_jax.aot.chips import CHIPS
from dreamer4_jax.aot.hlo import Program
from dreamer4_jax.aot.kernels import by_kind, list_kernels

# In the form of XLA's text for a GPU: a product by cuBLAS in a loop of five,
# over a slice of stacked weights, whose result is written into a buffer.
TEXT = """HloModule step, is_scheduled=true

FileNames
1 "/usr/lib/flax/linen.py"
2 "/home/me/dreamer4_jax/nn/layers.py"

FunctionNames
1 "scan"
2 "__call__"

FileLocations
1 {file_name_id=2 function_name_id=2 line=114 end_line=114 column=2}
2 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=1}


%sliced (p0: bf16[5,256,512], p1: s32[]) -> bf16[1,256,512] {
  %p0 = bf16[5,256,512]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %cut = bf16[1,256,512]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,256,512}
}

%written (b: bf16[5,64,512], y: bf16[64,512], i: s32[]) -> bf16[5,64,512] {
  %b = bf16[5,64,512]{2,1,0} parameter(0)
  %y = bf16[64,512]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %o = s32[] constant(0)
  %flat = bf16[1,64,512]{2,1,0} bitcast(%y)
  ROOT %put = bf16[5,64,512]{2,1,0} dynamic-update-slice(%b, %flat, %i, %o, %o)
}

%summed (x: bf16[64,512]) -> f32[64] {
  %x = bf16[64,512]{1,0} parameter(0)
  %wide = f32[64,512]{1,0} convert(%x)
  %none = f32[] constant(0)
  ROOT %sum = f32[64]{0} reduce(%wide, %none), dimensions={1}, to_apply=%add
}

%triton (l: bf16[64,256], r: bf16[256,512]) -> bf16[64,512] {
  %l = bf16[64,256]{1,0} parameter(0)
  %r = bf16[256,512]{1,0} parameter(1)
  ROOT %dot = bf16[64,512]{1,0} dot(%l, %r), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (c: (s32[], bf16[64,256], bf16[5,256,512], bf16[5,64,512])) -> (s32[], bf16[64,256], bf16[5,256,512], bf16[5,64,512]) {
  %c = (s32[], bf16[64,256]{1,0}, bf16[5,256,512]{2,1,0}, bf16[5,64,512]{2,1,0}) parameter(0)
  %n = s32[] get-tuple-element(%c), index=0
  %h = bf16[64,256]{1,0} get-tuple-element(%c), index=1
  %w = bf16[5,256,512]{2,1,0} get-tuple-element(%c), index=2
  %buffer = bf16[5,64,512]{2,1,0} get-tuple-element(%c), index=3
  %weight = bf16[1,256,512]{2,1,0} fusion(%w, %n), kind=kLoop, calls=%sliced
  %matrix = bf16[256,512]{1,0} bitcast(%weight)
  %product = (bf16[64,512]{1,0}, s8[4194304]{0}) custom-call(%h, %matrix), custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(f)/mlp/gate/dot_general" stack_frame_id=2}, backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %result = bf16[64,512]{1,0} get-tuple-element(%product), index=0
  %next = bf16[5,64,512]{2,1,0} fusion(%buffer, %result, %n), kind=kLoop, calls=%written
  ROOT %again = (s32[], bf16[64,256]{1,0}, bf16[5,256,512]{2,1,0}, bf16[5,64,512]{2,1,0}) tuple(%n, %h, %w, %next)
}

%condition (d: (s32[], bf16[64,256], bf16[5,256,512], bf16[5,64,512])) -> pred[] {
  %d = (s32[], bf16[64,256]{1,0}, bf16[5,256,512]{2,1,0}, bf16[5,64,512]{2,1,0}) parameter(0)
  %m = s32[] get-tuple-element(%d), index=0
  %five = s32[] constant(5)
  ROOT %less = pred[] compare(%m, %five), direction=LT
}

%graph (q: bf16[64,512]) -> f32[64] {
  %q = bf16[64,512]{1,0} parameter(0)
  ROOT %total = f32[64]{0} fusion(%q), kind=kInput, calls=%summed
}

ENTRY %main (a: (s32[], bf16[64,256], bf16[5,256,512], bf16[5,64,512]), k: bf16[16,128,64], t: f32[32,64]) -> f32[64] {
  %a = (s32[], bf16[64,256]{1,0}, bf16[5,256,512]{2,1,0}, bf16[5,64,512]{2,1,0}) parameter(0)
  %k = bf16[16,128,64]{2,1,0} parameter(1)
  %t = f32[32,64]{1,0} parameter(2)
  %loop = (s32[], bf16[64,256]{1,0}, bf16[5,256,512]{2,1,0}, bf16[5,64,512]{2,1,0}) while(%a), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %x1 = bf16[64,256]{1,0} get-tuple-element(%loop), index=1
  %w1 = bf16[256,512]{1,0} parameter(3)
  %gemm = bf16[64,512]{1,0} fusion(%x1, %w1), kind=kCustom, calls=%triton
  %seen = bf16[16,128,64]{2,1,0} custom-call(%k, %k, %k), custom_call_target="__gpu$xla.gpu.triton", backend_config={name = "attention_forward_1000000000_flop_250000_byte", num_warps = 4 : i32}
  %turned = f32[64,32]{0,1} transpose(%t), dimensions={1,0}
  ROOT %end = f32[64]{0} call(%gemm), to_apply=%graph
}
"""  # fmt: skip


@pytest.fixture(scope='module')
def kernels():
  found = list_kernels(Program(TEXT), CHIPS['h100'])
  return {k.name: k for k in found}


def test_every_kernel_is_counted_as_often_as_it_runs(kernels):
  assert {name: k.count for name, k in kernels.items()} == {
    'weight': 5, 'product': 5, 'next': 5, 'loop': 5, 'less': 6 - 1,
    'gemm': 1, 'seen': 1, 'turned': 1, 'total': 1,
  }  # fmt: skip
  assert {name: k.kind for name, k in kernels.items()} == {
    'weight': 'copy', 'product': 'product', 'next': 'copy', 'loop': 'loop',
    'less': 'fusion', 'gemm': 'product', 'seen': 'attention',
    'turned': 'transpose', 'total': 'reduction',
  }  # fmt: skip


def test_slices_count_what_they_take_and_updates_what_they_write(kernels):
  # A layer's matrix is read and written; not the four others.
  assert kernels['weight'].bytes == 2 * 256 * 512 * 2 + 4
  assert kernels['next'].bytes == 2 * 64 * 512 * 2 + 4
  assert kernels['total'].bytes == 64 * 512 * 2 + 64 * 4
  assert kernels['turned'].bytes == 2 * 32 * 64 * 4


def test_products_count_their_arithmetic_and_not_their_work_space(kernels):
  size = 2 * (64 * 256 + 256 * 512 + 64 * 512)
  for name in ('product', 'gemm'):
    assert kernels[name].flops == 2 * 64 * 256 * 512
    assert kernels[name].bytes == size
  # A kernel of ours says what it costs.
  assert kernels['seen'].flops == 1e9 and kernels['seen'].bytes == 250_000


def test_a_kernel_takes_the_longer_of_bytes_and_flops(kernels):
  # 0.39 MB take longer than 16.8 MFLOP: 4 us and 1.15 times the transfer.
  k = kernels['product']
  assert k.seconds == pytest.approx(4e-6 + 1.15 * k.bytes / 3.03e12)
  # Tenfold the rows and a slower chip: now it is the arithmetic.
  slow = dataclasses.replace(CHIPS['h100'], flops=1e12)
  found = {k.name: k for k in list_kernels(Program(TEXT), slow)}
  rate = 1e12 * 812 / 989
  assert found['product'].seconds == pytest.approx(4e-6 + 1.15 * k.flops / rate)
  k = kernels['total']
  assert k.seconds == pytest.approx(1.5e-6 + k.bytes / 3.03e12)


def test_kernels_are_summed_by_kind_the_longest_first(kernels):
  found = by_kind(list(kernels.values()))
  assert sum(kind['count'] for kind in found.values()) == 29
  assert found['product']['count'] == 6
  seconds = [kind['seconds'] for kind in found.values()]
  assert seconds == sorted(seconds, reverse=True)
  total = sum(k.total for k in kernels.values())
  assert sum(seconds) == pytest.approx(total)


def test_a_kernel_names_its_line_of_code(kernels):
  assert kernels['product'].source == 'dreamer4_jax/nn/layers.py:114'
  assert kernels['product'].op == 'jit(f)/mlp/gate/dot_general'
  assert kernels['gemm'].source == ''
