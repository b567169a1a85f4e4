"""Fields found in serialized examples, with protobuf's parser as the oracle."""

import numpy as np
import pytest
from tensorflow_datasets.proto import tf_example_pb2

from dreamer4_jax.data.records import Layouts, read_int

STEP_BYTES = {'observation': 12, 'is_first': 1, 'action/a': 4}


def example(rng, steps=3, start=0, without=(), **more):
  """Returns an example, its fields in any order, as protobuf likes."""
  payloads = {n: rng.bytes(steps * size) for n, size in STEP_BYTES.items()}
  found = tf_example_pb2.Example()
  feature = found.features.feature
  for name in rng.permutation([*payloads, 'start']):
    if name == 'start':
      feature[name].int64_list.value.append(start)
    elif name not in without:
      feature[name].bytes_list.value.append((payloads | more)[name])
  return found


def test_the_payloads_are_those_that_protobuf_finds():
  rng, layouts = np.random.default_rng(0), Layouts(STEP_BYTES)
  for _ in range(300):
    steps = int(rng.integers(1, 20))
    start = int(rng.choice([0, 8, 127, 128, 300, 1 << 40]))
    found = example(rng, steps, start)
    record = found.SerializeToString()
    layout = layouts.find(record)
    assert layout.steps == steps
    assert read_int(record, layout.spans['start']) == start
    for name in STEP_BYTES:
      begin, end = layout.spans[name]
      expected = found.features.feature[name].bytes_list.value[0]
      assert record[begin:end] == expected


def test_records_of_one_size_need_not_have_one_layout():
  layouts = Layouts({'is_first': 1})

  def record(first, second):
    entry = {
      'is_first': b'\n\x08is_first\x12\x05\n\x03\n\x01\x00',
      'is_other': b'\n\x08is_other\x12\x05\n\x03\n\x01\x01',
    }
    body = b''.join(b'\n\x11' + entry[name] for name in (first, second))
    return b'\n' + bytes([len(body)]) + body

  one, other = record('is_first', 'is_other'), record('is_other', 'is_first')
  assert len(one) == len(other)
  for x in (one, other, one):
    begin, end = layouts.find(x).spans['is_first']
    assert x[begin:end] == b'\x00'


def test_a_payload_that_looks_like_a_field_is_none():
  rng = np.random.default_rng(0)
  inner = example(rng, 1).SerializeToString()
  found = example(rng, 12, observation=(inner * 12)[:144])
  record = found.SerializeToString()
  begin, end = Layouts(STEP_BYTES).find(record).spans['is_first']
  expected = found.features.feature['is_first'].bytes_list.value[0]
  assert record[begin:end] == expected


def test_cut_records_are_refused():
  rng, layouts = np.random.default_rng(0), Layouts(STEP_BYTES)
  record = example(rng).SerializeToString()
  layouts.find(record)
  for size in range(len(record)):
    with pytest.raises(ValueError, match=r'found|ends|wire type'):
      layouts.find(record[:size])


@pytest.mark.parametrize('name', STEP_BYTES)
def test_a_missing_or_short_field_is_named(name):
  rng, layouts = np.random.default_rng(0), Layouts(STEP_BYTES)
  short = rng.bytes(2 * STEP_BYTES[name])
  for found in (example(rng, without=(name,)), example(rng, **{name: short})):
    with pytest.raises(ValueError, match=r'expected .* for each of'):
      layouts.find(found.SerializeToString())


def test_a_list_of_floats_is_refused():
  found = example(np.random.default_rng(0))
  found.features.feature['is_first'].float_list.value.append(1.0)
  with pytest.raises(ValueError, match='is_first as a list of kind 2'):
    Layouts(STEP_BYTES).find(found.SerializeToString())
