"""Non-finite steps, and the metric that selects the best checkpoint."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax import checkpoint
from dreamer4_jax.checkpoint import Best
from dreamer4_jax.config import PHASES, SavingConfig
from tests.training.toy import (
  CONFIG,
  EVERY_LINE,
  STEPS,
  Clips,
  Interrupted,
  lines,
  run,
  step_fn,
)


def test_a_loss_that_stays_nan_stops_training_and_is_not_saved(tmp_path):
  run(tmp_path, {STEPS: 5})
  bad = lambda: {n: Clips(n, value=np.nan) for n in (2, 4)}
  with pytest.raises(FloatingPointError, match=r"'loss'.* step 25, .* 20 "):
    run(tmp_path, {STEPS: 100}, bad())
  _, config = checkpoint.load_arrays(tmp_path / 'tokenizer')
  assert config == CONFIG.edit({STEPS: 5})
  with checkpoint.Checkpoints(tmp_path / 'tokenizer') as checkpoints:
    assert checkpoints.latest() == 5
  with pytest.raises(FloatingPointError, match=r'step 14, .* 9 times'):
    run(tmp_path, iterators=bad())


def test_one_bad_batch_does_not_stop_training(tmp_path):
  def spiky(state, batch, key):
    new, metrics = step_fn(state, batch, key)
    spike = state.opt[0].count == 3
    metrics['loss'] = jnp.where(spike, jnp.inf, metrics['loss'])
    return new, metrics

  run(tmp_path, step_fn=spiky)
  losses = [line['loss'] for line in lines(tmp_path)]
  assert np.isinf(losses).tolist() == [False, True] + [False] * 5


class Spoiled(Clips):
  """Some batches are not finite."""

  def __init__(self, length, bad):
    super().__init__(length)
    self.bad = bad

  def __next__(self):
    bad = self.next in self.bad
    batch = super().__next__()
    return {'x': batch['x'] * np.nan} if bad else batch


def skipping(state, batch, key):
  """Leaves the state as it was unless the loss is finite."""
  new, metrics = step_fn(state, batch, key)
  good = jnp.isfinite(metrics['loss'])
  state = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state)
  return state, {**metrics, 'skipped': (~good).astype(jnp.float32)}


def short(directory, bad, fields):
  fields = {'phases.tokenizer.clip_lengths': (2,), **fields}
  return run(directory, fields, {2: Spoiled(2, bad)}, step_fn=skipping)


def test_a_skipped_step_forbids_no_checkpoint(tmp_path, caplog):
  before = short(tmp_path / 'a', (), {STEPS: 4})
  after = short(tmp_path / 'b', (4,), {STEPS: 5, **EVERY_LINE})
  chex.assert_trees_all_equal(before, after)
  arrays, _ = checkpoint.load_arrays(tmp_path / 'b/tokenizer')
  np.testing.assert_array_equal(arrays['params']['w'], before.params['w'])
  with checkpoint.Checkpoints(tmp_path / 'b/tokenizer') as saved:
    assert saved.latest() == 5
  assert [line['skipped'] for line in lines(tmp_path / 'b')] == [0, 0, 0, 0, 1]
  assert "'loss'" in caplog.text and 'step 5 is not finite' in caplog.text


def test_many_skipped_steps_in_a_row_stop_training(tmp_path, caplog):
  bad = (*range(2, 21), *range(22, 100))  # 19, a good one, all others.
  message = r"'loss'.* step 42, .* 20 times in a row\. They were skipped"
  with pytest.raises(FloatingPointError, match=message):
    short(tmp_path, bad, {STEPS: 150, 'saving.checkpoint_every': 8})
  said = [r for r in caplog.records if 'was skipped' in r.getMessage()]
  assert len(said) == 10
  good = short(tmp_path / 'good', range(2, 21), {STEPS: 22})
  with checkpoint.Checkpoints(tmp_path / 'tokenizer', keep_last=9) as saved:
    assert saved.latest() == 40
  arrays, _ = checkpoint.load_arrays(tmp_path / 'tokenizer')
  np.testing.assert_array_equal(arrays['params']['w'], good.params['w'])


def values(directory):
  found = (directory / 'tokenizer/checkpoints').glob('*/metrics/metrics')
  return {int(p.parts[-3]): json.loads(p.read_text()) for p in found}


def means(directory, window):
  """The running mean of the loss after each step."""
  mean, found = 0.0, {}
  for line in lines(directory):
    mean += (line['loss'] - mean) / min(line['step'], window)
    found[line['step']] = mean
  return found


def test_checkpoints_are_compared_by_a_running_mean(tmp_path):
  best = {'saving.best_metric': 'loss', **EVERY_LINE}
  run(tmp_path / 'whole', best)
  expected = means(tmp_path / 'whole', 5)
  assert values(tmp_path / 'whole') == {
    step: {'loss': pytest.approx(expected[step], rel=1e-6)} for step in (10, 14)
  }
  with pytest.raises(Interrupted):
    run(tmp_path / 'cut', best, {2: Clips(2, stop_at=6), 4: Clips(4)})
  run(tmp_path / 'cut', best)
  assert values(tmp_path / 'cut') == values(tmp_path / 'whole')


def test_the_best_is_kept_beside_the_latest(tmp_path):
  fields = {'saving.best_metric': 'max:loss', 'saving.checkpoint_every': 2}
  run(tmp_path, {**fields, **EVERY_LINE})
  found = means(tmp_path, 2)
  top = max(range(2, 15, 2), key=found.get)
  assert top < 12
  kept = (tmp_path / 'tokenizer/checkpoints').iterdir()
  assert sorted(int(p.name) for p in kept) == [top, 12, 14]


def test_a_metric_that_is_not_there_is_named(tmp_path):
  best = {'saving.best_metric': 'tokenizer/x'}
  with pytest.raises(
    ValueError, match=r"saving\.best_metric = 'tokenizer/x'.*'loss'"
  ):
    run(tmp_path / 'asked', best)
  # A metric of another phase is not looked for.
  run(tmp_path / 'not_asked', {'saving.best_metric': 'dynamics/x'})


def test_the_metric_says_which_phase_and_which_way():
  def best(text):
    saving = SavingConfig(best_metric=text)
    found = {phase: Best.of(saving, phase) for phase in PHASES}
    return {p: (b.metric, b.mode) for p, b in found.items() if b}

  assert best('') == {}
  assert best('loss') == dict.fromkeys(PHASES, ('loss', 'min'))
  assert best('max:loss') == dict.fromkeys(PHASES, ('loss', 'max'))
  assert best('dynamics/flow') == {'dynamics': ('dynamics/flow', 'min')}
  assert best('min:dynamics/flow') == best('dynamics/flow')
  assert best('max:tokenizer/psnr') == {'tokenizer': ('tokenizer/psnr', 'max')}
  for text in ('most:loss', 'toy/loss', 'max:/loss'):
    with pytest.raises(ValueError, match=f"best_metric = '{text}': must be"):
      SavingConfig(best_metric=text)
