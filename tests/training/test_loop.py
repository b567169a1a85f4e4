import dataclasses
import json
import logging
import os
import signal

import chex
from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import optax
import pytest

from dreamer4_jax import checkpoint, preemption, sharding
from dreamer4_jax.config import Config, MeshConfig, PhaseConfig
from dreamer4_jax.training import loop

PHASE = PhaseConfig(
  steps=14,
  batch_size=8,
  clip_length=2,
  long_clip_length=4,
  long_every=3,
  log_every=2,
  checkpoint_every=5,
)
OPTIMIZER = optax.adam(0.05)


@struct.dataclass
class State:
  params: dict
  opt: optax.OptState


class Interrupted(Exception):
  pass


class Clips:
  """Random clips by number; stops the run when it comes to `stop_at`."""

  def __init__(self, length, stop_at=None, value=None):
    self.length = length
    self.next = 0
    self.stop_at = stop_at
    self.value = value
    self.served = []

  def __next__(self):
    if self.next == self.stop_at:
      raise Interrupted
    rng = np.random.default_rng((self.length, self.next))
    self.served.append(self.next)
    self.next += 1
    x = rng.normal(size=(8, self.length, 4)).astype(np.float32)
    return {'x': x if self.value is None else np.full_like(x, self.value)}

  def get_state(self):
    return str(self.next).encode()

  def set_state(self, state):
    self.next = int(state)


def init_state():
  init = nn.with_logical_partitioning(nn.initializers.normal(), ('embed',))
  params = {'w': init(jax.random.key(1), (4,)), 'b': jnp.zeros(())}
  return State(params=params, opt=OPTIMIZER.init(params))


def step_fn(state, batch, key):
  noise = jax.random.normal(key, batch['x'].shape)

  def loss_fn(params):
    y = jnp.einsum('btd,d->bt', batch['x'] + 0.1 * noise, params['w'])
    return jnp.square(y + params['b'] - 1.0).mean()

  loss, grads = jax.value_and_grad(loss_fn)(state.params)
  updates, opt = OPTIMIZER.update(grads, state.opt)
  params = optax.apply_updates(state.params, updates)
  metrics = {
    'toy/loss': loss,
    'toy/noise': noise.mean(),
    'toy/frames': jnp.float32(batch['x'].shape[1]),
  }
  return State(params=params, opt=opt), metrics


def run(directory, iterators=None, *, step_fn=step_fn, **changes):
  config = Config(seed=3)
  return loop.run_phase(
    phase='tokenizer',
    config=changes.pop('config', config),
    directory=directory,
    init_state=init_state,
    step_fn=step_fn,
    iterators=iterators or {2: Clips(2), 4: Clips(4)},
    phase_config=dataclasses.replace(PHASE, **changes),
    mesh=sharding.make_mesh(MeshConfig(data=2, fsdp=2)),
    progress=False,
  )


def lines(directory):
  text = (directory / 'tokenizer/metrics.jsonl').read_text()
  found = [json.loads(line) for line in text.splitlines()]
  for line in found:
    line.pop('time')
  return found


def test_resuming_equals_an_uninterrupted_run_bit_for_bit(tmp_path):
  whole = run(tmp_path / 'whole')
  # Batch 6 of the short clips belongs to step 9 of 0..13: steps 6 to 9 are
  # lost and run again, with the batches drawn ahead as well.
  cut = {2: Clips(2, stop_at=6), 4: Clips(4)}
  with pytest.raises(Interrupted):
    run(tmp_path / 'cut', cut)
  assert lines(tmp_path / 'cut')[-1]['step'] == 8
  again = {2: Clips(2), 4: Clips(4)}
  resumed = run(tmp_path / 'cut', again)
  # Steps 0..4 took short clips 0..3 and long clip 0.
  assert again[2].served == list(range(4, 10))
  assert again[4].served == [1, 2, 3]
  assert jax.tree.structure(whole) == jax.tree.structure(resumed)
  chex.assert_trees_all_equal(whole, resumed)
  assert lines(tmp_path / 'whole') == lines(tmp_path / 'cut')


class Terminated(Clips):
  """Has the process asked to stop while a batch is drawn."""

  def __next__(self):
    if self.next == self.stop_at:
      os.kill(os.getpid(), signal.SIGTERM)
      self.stop_at = None
    return super().__next__()


def test_sigterm_loses_no_step(tmp_path):
  whole = run(tmp_path / 'whole')
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(preemption.PreemptedError, match=r'step \d+ of 14'):
    run(tmp_path / 'cut', {2: Terminated(2, stop_at=6), 4: Clips(4)})
  assert signal.getsignal(signal.SIGTERM) is before
  with checkpoint.Checkpoints(tmp_path / 'cut/tokenizer') as saved:
    done = saved.latest()
  # Batch 6 is drawn for step 9, ahead of the steps; no multiple of 5 is near.
  assert 6 <= done <= 9
  again = {2: Clips(2), 4: Clips(4)}
  resumed = run(tmp_path / 'cut', again)
  long = done // 3
  assert (again[2].served[0], again[4].served[0]) == (done - long, long)
  chex.assert_trees_all_equal(whole, resumed)
  assert lines(tmp_path / 'whole') == lines(tmp_path / 'cut')


def test_one_line_a_log_and_one_checkpoint_at_the_end(tmp_path):
  final = run(tmp_path)
  found = lines(tmp_path)
  assert [line['step'] for line in found] == [2, 4, 6, 8, 10, 12, 14]
  # Step s counts from 0; its line says s + 1. Long: every third.
  assert [line['toy/frames'] for line in found] == [2, 2, 4, 2, 2, 4, 2]
  assert found[-1]['toy/loss'] < found[0]['toy/loss']
  arrays, config = checkpoint.load_arrays(tmp_path / 'tokenizer')
  jax.tree.map(
    np.testing.assert_array_equal, arrays['params'], dict(final.params)
  )
  assert config == Config(seed=3)


def test_the_last_step_is_logged_whatever_log_every_says(tmp_path):
  run(tmp_path, steps=5, log_every=3)
  assert [line['step'] for line in lines(tmp_path)] == [3, 5]


def test_every_step_of_every_phase_and_seed_has_its_own_key(tmp_path):
  run(tmp_path / 'a', log_every=1)
  run(tmp_path / 'b', log_every=1, config=Config(seed=4))
  noise = [x['toy/noise'] for n in 'ab' for x in lines(tmp_path / n)]
  assert len(set(noise)) == 28


def test_a_finished_phase_returns_at_once(tmp_path, caplog):
  first = run(tmp_path)

  def untraceable(*_):
    raise AssertionError('stepped')

  def files():
    return sorted((tmp_path / 'tokenizer').rglob('*'))

  before = files()
  again = {2: Clips(2), 4: Clips(4)}
  with caplog.at_level(logging.INFO):
    second = run(tmp_path, again, step_fn=untraceable)
  chex.assert_trees_all_equal(first, second)
  assert again[2].served == [] and files() == before
  assert 'tokenizer: already finished at step 14' in caplog.text


def test_it_says_first_what_it_does(tmp_path, caplog):
  with caplog.at_level(logging.INFO):
    run(tmp_path, steps=5)
    run(tmp_path, steps=7)
  said = [r.getMessage() for r in caplog.records if r.name == loop.__name__]
  assert said[0].startswith('tokenizer: starting fresh, 5 steps in ')
  assert said[1].startswith('tokenizer: resuming from step 5 of 7 in ')


def test_states_are_born_and_stay_sharded(tmp_path):
  mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2))
  expected = jax.NamedSharding(mesh, PartitionSpec('fsdp'))
  state = run(tmp_path)
  for w in (state.params['w'], state.opt[0].mu['w']):
    assert w.sharding.is_equivalent_to(expected, 1)
    assert {s.data.shape for s in w.addressable_shards} == {(2,)}
  resumed = run(tmp_path)
  assert resumed.params['w'].sharding.is_equivalent_to(expected, 1)


def test_a_loss_that_stays_nan_stops_training_and_is_not_saved(tmp_path):
  run(tmp_path, steps=5)
  bad = {2: Clips(2, value=np.nan), 4: Clips(4, value=np.nan)}
  with pytest.raises(FloatingPointError, match=r'toy/loss.* step 25, .* 20 '):
    run(tmp_path, bad, steps=100)
  _, config = checkpoint.load_arrays(tmp_path / 'tokenizer')
  assert config == Config(seed=3)
  with checkpoint.Checkpoints(tmp_path / 'tokenizer') as checkpoints:
    assert checkpoints.latest() == 5
  with pytest.raises(FloatingPointError, match=r'step 14, .* 9 times'):
    run(tmp_path, {2: Clips(2, value=np.nan), 4: Clips(4, value=np.nan)})


def test_one_bad_batch_does_not_stop_training(tmp_path):
  def spiky(state, batch, key):
    new, metrics = step_fn(state, batch, key)
    spike = state.opt[0].count == 3
    metrics['toy/loss'] = jnp.where(spike, jnp.inf, metrics['toy/loss'])
    return new, metrics

  run(tmp_path, step_fn=spiky)
  losses = [line['toy/loss'] for line in lines(tmp_path)]
  assert np.isinf(losses).tolist() == [False, True] + [False] * 5


def test_mistakes_are_named_before_anything_is_compiled(tmp_path):
  with pytest.raises(ValueError, match=r'lengths \[2\] were .* \[2, 4\] are'):
    run(tmp_path, {2: Clips(2)})
  with pytest.raises(ValueError, match='batch_size = 6'):
    run(tmp_path, batch_size=6)
  assert not (tmp_path / 'tokenizer').exists()
  run(tmp_path, steps=1)
  tokenizer = dataclasses.replace(Config().tokenizer, patch_size=8)
  with pytest.raises(ValueError, match=r'tokenizer\.patch_size = 8.*with 16'):
    run(tmp_path, config=Config(tokenizer=tokenizer))
  run(tmp_path, {2: Clips(2)}, steps=2, long_clip_length=0)
