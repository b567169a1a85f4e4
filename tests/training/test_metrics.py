import json

import jax
import numpy as np
import pytest

from dreamer4_jax.training.metrics import MetricWriter


def lines(directory):
  text = (directory / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_a_line_holds_step_time_and_flat_scalars(tmp_path):
  with MetricWriter(tmp_path) as writer:
    writer.write(3, {'a/loss': np.float32(0.5), 'b/c': 2})
  (line,) = lines(tmp_path)
  assert line.pop('time') > 1e9
  assert line == {'step': 3, 'a/loss': 0.5, 'b/c': 2.0}
  assert list((tmp_path / 'tensorboard').iterdir())


def test_resuming_drops_later_lines_and_half_lines(tmp_path):
  with MetricWriter(tmp_path) as writer:
    for step in (10, 20, 30):
      writer.write(step, {'x/y': step})
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 15, "x/')
  with MetricWriter(tmp_path, resume_step=20) as writer:
    writer.write(30, {'x/y': -1})
  assert [(x['step'], x['x/y']) for x in lines(tmp_path)] == [
    (10, 10.0),
    (20, 20.0),
    (30, -1.0),
  ]


def test_a_metric_that_is_no_scalar_is_named(tmp_path):
  with MetricWriter(tmp_path) as writer:
    with pytest.raises(ValueError, match=r"'a/b' has shape \(2,\)"):
      writer.write(1, {'a/b': np.zeros(2)})


def test_of_several_processes_only_the_first_writes(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  with MetricWriter(tmp_path) as writer:
    writer.write(1, {'a/b': 1.0})
  assert not list(tmp_path.iterdir())
