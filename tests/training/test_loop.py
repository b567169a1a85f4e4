"""Running, resuming, logging and stopping a phase."""

import logging
import os
import signal

import chex
import jax
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from dreamer4_jax import checkpoint
from dreamer4_jax.runtime import preemption
from dreamer4_jax.training import loop
from tests.training.toy import (
  CONFIG,
  EVERY_LINE,
  STEPS,
  Clips,
  Interrupted,
  lines,
  make_mesh,
  run,
)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """Directory and final state of a run that nothing interrupts."""
  path = tmp_path_factory.mktemp('whole')
  return path, run(path)


def test_resuming_equals_an_uninterrupted_run_bit_for_bit(tmp_path, whole):
  path, final = whole
  # Batch 6 of the short clips belongs to step 9 of 0..13: steps 6 to 9 are
  # lost and run again, with the batches drawn ahead as well.
  cut = {2: Clips(2, stop_at=6), 4: Clips(4)}
  with pytest.raises(Interrupted):
    run(tmp_path / 'cut', iterators=cut)
  assert lines(tmp_path / 'cut')[-1]['step'] == 8
  again = {2: Clips(2), 4: Clips(4)}
  resumed = run(tmp_path / 'cut', iterators=again)
  # Steps 0..4 took short clips 0..3 and long clip 0.
  assert again[2].served == list(range(4, 10))
  assert again[4].served == [1, 2, 3]
  assert jax.tree.structure(final) == jax.tree.structure(resumed)
  chex.assert_trees_all_equal(final, resumed)
  assert lines(path) == lines(tmp_path / 'cut')


class Terminated(Clips):
  """Has the process asked to stop while a batch is drawn."""

  def __next__(self):
    if self.next == self.stop_at:
      os.kill(os.getpid(), signal.SIGTERM)
      self.stop_at = None
    return super().__next__()


def test_sigterm_loses_no_step(tmp_path, whole):
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(preemption.PreemptedError, match=r'step \d+ of 14'):
    iterators = {2: Terminated(2, stop_at=6), 4: Clips(4)}
    run(tmp_path / 'cut', iterators=iterators)
  assert signal.getsignal(signal.SIGTERM) is before
  with checkpoint.Checkpoints(tmp_path / 'cut/tokenizer') as saved:
    done = saved.latest()
  # Batch 6 is drawn for step 9, ahead of the steps; no multiple of 5 is near.
  assert 6 <= done <= 9
  again = {2: Clips(2), 4: Clips(4)}
  resumed = run(tmp_path / 'cut', iterators=again)
  long = done // 3
  assert (again[2].served[0], again[4].served[0]) == (done - long, long)
  chex.assert_trees_all_equal(whole[1], resumed)
  assert lines(whole[0]) == lines(tmp_path / 'cut')


class AskedAfter:
  """Stands for `Sigterm`: the signal comes in the nth step."""

  def __init__(self, steps):
    self.left = steps

  @property
  def received(self):
    self.left -= 1
    return self.left <= 0


# Amid the steps, with a checkpoint that is due, in the last step, after it.
@pytest.mark.parametrize('asked', [1, 7, 10, 14, 15])
def test_sigterm_loses_no_step_wherever_it_comes(tmp_path, whole, asked):
  done = min(asked, 14)
  with pytest.raises(preemption.PreemptedError, match=rf'step {done} of 14'):
    run(tmp_path, sigterm=AskedAfter(asked))
  with checkpoint.Checkpoints(tmp_path / 'tokenizer') as saved:
    assert saved.latest() == done
  again = {2: Clips(2), 4: Clips(4)}
  resumed = run(tmp_path, iterators=again)
  ran = len(again[2].served) + len(again[4].served)
  assert ran == 14 - done
  chex.assert_trees_all_equal(whole[1], resumed)
  assert lines(whole[0]) == lines(tmp_path)


def test_one_line_a_log_and_one_checkpoint_at_the_end(tmp_path):
  final = run(tmp_path)
  found = lines(tmp_path)
  assert [line['step'] for line in found] == [2, 4, 6, 8, 10, 12, 14]
  # Step s counts from 0; its line says s + 1. Long: every third.
  assert [line['toy/frames'] for line in found] == [2, 2, 4, 2, 2, 4, 2]
  assert found[-1]['loss'] < found[0]['loss']
  arrays, config = checkpoint.load_arrays(tmp_path / 'tokenizer')
  jax.tree.map(
    np.testing.assert_array_equal, arrays['params'], dict(final.params)
  )
  assert config == CONFIG


def test_somebody_may_look_with_every_checkpoint(tmp_path, whole):
  """Looking changes nothing; a phase that is cut short looks again or not."""
  path, final = whole
  seen = []

  def look(phase, step, state):
    seen.append((phase, step))
    return {'real/return': float(state.params['b'])} if step > 5 else {}

  cut = {2: Clips(2, stop_at=8), 4: Clips(4)}
  with pytest.raises(Interrupted):
    run(tmp_path, iterators=cut, look=look)
  chex.assert_trees_all_equal(final, run(tmp_path, look=look))
  assert seen == [('tokenizer', step) for step in (5, 10, 14)]
  found = [line for line in lines(tmp_path) if 'real/return' in line]
  assert [line['step'] for line in found] == [10, 14]
  assert found[-1]['real/return'] == float(final.params['b'])
  others = [line for line in lines(tmp_path) if 'real/return' not in line]
  assert others == lines(path)


def test_the_last_step_is_logged_whatever_log_every_says(tmp_path):
  run(tmp_path, {STEPS: 5, 'saving.log_every': 3})
  assert [line['step'] for line in lines(tmp_path)] == [3, 5]


def test_every_step_of_every_phase_and_seed_has_its_own_key(tmp_path):
  run(tmp_path / 'a', EVERY_LINE)
  run(tmp_path / 'b', {**EVERY_LINE, 'seed': 4})
  noise = [x['toy/noise'] for n in 'ab' for x in lines(tmp_path / n)]
  assert len(set(noise)) == 28


def test_the_loss_goes_on_from_8_devices_to_2_and_back(tmp_path):
  run(tmp_path / 'whole', EVERY_LINE, mesh=make_mesh(8))
  for steps, devices in ((5, 8), (9, 2), (14, 8)):
    mesh = make_mesh(devices)
    fields = {**EVERY_LINE, STEPS: steps}
    state = run(tmp_path / 'moved', fields, mesh=mesh)
    shards = state.params['w'].addressable_shards
    assert [s.data.size for s in shards] == [8 // devices] * devices
  whole, moved = (
    np.array([line['loss'] for line in lines(tmp_path / name)])
    for name in ('whole', 'moved')
  )
  assert len(np.unique(whole)) == 14
  # On 2 devices sums are taken in another order, which changes a few units in
  # the last place of float32, 6e-8; further steps may multiply them.
  np.testing.assert_allclose(moved, whole, rtol=2e-6)
  np.testing.assert_array_equal(moved[:5], whole[:5])


def test_a_finished_phase_returns_at_once(tmp_path, caplog):
  first = run(tmp_path)

  def untraceable(*_):
    raise AssertionError('stepped')

  def files():
    return sorted((tmp_path / 'tokenizer').rglob('*'))

  before = files()
  again = {2: Clips(2), 4: Clips(4)}
  with caplog.at_level(logging.INFO):
    second = run(tmp_path, iterators=again, step_fn=untraceable)
  chex.assert_trees_all_equal(first, second)
  assert again[2].served == [] and files() == before
  assert 'tokenizer: already finished at step 14' in caplog.text


def test_it_says_first_what_it_does(tmp_path, caplog):
  with caplog.at_level(logging.INFO):
    run(tmp_path, {STEPS: 5})
    run(tmp_path, {STEPS: 7})
  said = [r.getMessage() for r in caplog.records if r.name == loop.__name__]
  assert said[0].startswith('tokenizer: starting fresh, 5 steps in ')
  assert said[1].startswith('tokenizer: resuming from step 5 of 7 in ')


def test_states_are_born_and_stay_sharded(tmp_path):
  mesh = make_mesh(2, data=2)
  expected = jax.NamedSharding(mesh, PartitionSpec('fsdp'))
  state = run(tmp_path)
  for w in (state.params['w'], state.opt[0].mu['w']):
    assert w.sharding.is_equivalent_to(expected, 1)
    assert {s.data.shape for s in w.addressable_shards} == {(4,)}
  resumed = run(tmp_path)
  assert resumed.params['w'].sharding.is_equivalent_to(expected, 1)


def test_mistakes_are_named_before_anything_is_compiled(tmp_path):
  with pytest.raises(ValueError, match=r'lengths \[2\] were .* \[2, 4\] are'):
    run(tmp_path, iterators={2: Clips(2)})
  with pytest.raises(ValueError, match='batch_size = 6'):
    run(tmp_path, {'phases.tokenizer.batch_size': 6})
  # Two rows a device.
  with pytest.raises(ValueError, match='accumulate = 4, that is by 16'):
    run(tmp_path, {'accumulate': 4})
  with pytest.raises(ValueError, match="phase = 'pretraining': must be one of"):
    run(tmp_path, phase='pretraining')
  assert not (tmp_path / 'tokenizer').exists()
  run(tmp_path, {STEPS: 1})
  with pytest.raises(ValueError, match=r'tokenizer\.patch_size = 8.*with 16'):
    run(tmp_path, {'tokenizer.patch_size': 8})
  fields = {STEPS: 2, 'phases.tokenizer.clip_lengths': (2,)}
  run(tmp_path, fields, {2: Clips(2)})
