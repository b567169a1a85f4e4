"""Drawing batches ahead of the device, in a background thread."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import copy
import dataclasses
import queue
import threading
from typing import Any

from dreamer4_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Drawn:
  """A batch, and where the iterators stood after it was drawn.

  Attributes:
    batch: the batch, as its iterator returned it.
    iterator_states: the state of every iterator, by clip length as a string.
      Saving it saves the position after this batch, however many later
      batches have been drawn meanwhile.
  """

  batch: PyTree
  iterator_states: dict[str, Any]


def prefetch(
  iterators: Mapping[int, Any], lengths: Sequence[int], *, ahead: int = 2
) -> Iterator[Drawn]:
  """Yields one batch for each entry of `lengths`.

  The generator owns the iterators until it is closed.

  Args:
    iterators: endless iterators with `get_state`, by clip length.
    lengths: which iterator to draw from, step by step.
    ahead: batches that may wait.

  Raises:
    RuntimeError: an iterator ran out; an error of an iterator is raised as
      it is.
  """
  waiting: queue.Queue[Drawn | BaseException] = queue.Queue(maxsize=ahead)
  stopped = threading.Event()

  def hand_over(item: Drawn | BaseException) -> None:
    while not stopped.is_set():
      try:
        return waiting.put(item, timeout=0.1)
      except queue.Full:
        continue

  def draw() -> None:
    try:
      states = {str(n): _position(it) for n, it in iterators.items()}
      for number, length in enumerate(lengths):
        if stopped.is_set():
          return
        try:
          batch = next(iterators[length])
        except StopIteration:
          raise RuntimeError(
            f'the clips of length {length} ran out after {number} batches: '
            'the data pipeline must repeat without end'
          ) from None
        states = states | {str(length): _position(iterators[length])}
        hand_over(Drawn(batch, states))
    except BaseException as error:
      hand_over(error)

  thread = threading.Thread(target=draw, name='prefetch', daemon=True)
  thread.start()
  try:
    for _ in lengths:
      item = waiting.get()
      if isinstance(item, BaseException):
        raise item
      yield item
  finally:
    stopped.set()
    thread.join()


def _position(iterator: Any) -> Any:
  return copy.deepcopy(iterator.get_state())  # It may be a live object.
