import time

import pytest

from dreamer4_jax.training.prefetch import prefetch


class Counter:
  """Yields 0, 1, ...; its state is one live dict."""

  def __init__(self, fail_at=None, end=None):
    self.state = {'next': 0}
    self.fail_at = fail_at
    self.end = end

  def __next__(self):
    n = self.state['next']
    if n == self.fail_at:
      raise OSError('disk on fire')
    if n == self.end:
      raise StopIteration
    self.state['next'] += 1
    return n

  def get_state(self):
    return self.state


def test_each_batch_comes_with_the_position_right_after_it():
  iterators = {4: Counter(), 8: Counter()}
  found = []
  for item in prefetch(iterators, [4, 4, 8, 4]):
    time.sleep(0.02)  # The thread runs ahead.
    states = item.iterator_states
    found.append((item.batch, states['4']['next'], states['8']['next']))
  assert found == [(0, 1, 0), (1, 2, 0), (0, 2, 1), (2, 3, 1)]


def test_it_draws_at_most_a_few_batches_ahead():
  counter = Counter()
  drawn = prefetch({4: counter}, [4] * 100, ahead=2)
  next(drawn)
  time.sleep(0.1)
  # One yielded, two waiting, one in hand.
  assert counter.state['next'] == 4
  drawn.close()
  assert counter.state['next'] == 4


def test_errors_come_to_the_step_they_belong_to():
  drawn = prefetch({4: Counter(fail_at=1)}, [4, 4])
  assert next(drawn).batch == 0
  with pytest.raises(OSError, match='disk on fire'):
    next(drawn)
  drawn = prefetch({4: Counter(end=1)}, [4, 4])
  next(drawn)
  with pytest.raises(RuntimeError, match='length 4 ran out after 1 batches'):
    next(drawn)


def test_an_iterator_without_a_state_is_an_error_not_a_hang():
  with pytest.raises(AttributeError, match='get_state'):
    next(prefetch({4: iter([1])}, [4]))
