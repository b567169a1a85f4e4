"""PPO of `experiments/dream_ppo.py`, for a few updates."""

import json
import sys

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.play import DreamStep, LoadedDream
from experiments import dream_ppo
from tests.cli import small_run
from tests.evals.test_closed_loop import Line
from tests.models.tiny_world import CONFIG, changed, world_and_params
from tests.play.runs import loaded, save_run, tiny_contexts

pytestmark = pytest.mark.slow
SHAPE = (20, 12, 3)
SHORT = dream_ppo.Settings(updates=2, dreams=4, epochs=2, parts=2)


@struct.dataclass
class Count:
  """How far each dream has come."""

  position: jax.Array
  over: jax.Array


class Path:
  """A dream of `Line` that pays every step forward, and ends after three."""

  horizon = 6
  world = changed(world_and_params()[0], {'eval.seed': 2})

  def reset(self, params, contexts, key):
    nothing = jnp.zeros(len(contexts.cont), jnp.int32)
    return self._show(Count(nothing, nothing > 0), nothing)

  def step(self, params, state, action, key):
    move = (action['move'] == 2) & ~state.over
    position = state.position + move
    return self._show(Count(position, position >= 3), move)

  def _show(self, state, moved):
    frame = state.position.astype(jnp.uint8)[:, None, None, None]
    frame = jnp.broadcast_to(frame, (*frame.shape[:1], *SHAPE))
    nothing = jnp.zeros(len(moved))
    return state, DreamStep(
      frame, nothing, moved.astype(jnp.float32), nothing, state.over,
      nothing > 0,
    )  # fmt: skip


def test_it_learns_in_a_dream_what_it_then_does_in_reality():
  dreams = LoadedDream(Path(), {}, tiny_contexts(2, 3))
  settings = dream_ppo.Settings(
    updates=12, dreams=16, epochs=4, parts=2, learning_rate=3e-3
  )
  net, params, log = dream_ppo.train(dreams, settings, jax.random.key(0))
  assert log[0]['return'] < 2.8 and log[-1]['return'] > 2.9
  assert log[-1]['length'] < log[0]['length'] and log[-1]['ended'] > 0.9
  # The real game has ends farther away, at 2 to 5 steps of 6.
  real = dream_ppo.evaluate(Path.world, Line(), net, params, episodes=4)
  assert real['ppo']['success'] > real['random']['success']
  assert real['ppo']['mean_return'] > real['random']['mean_return']


def test_a_run_is_practised_in_and_the_real_game_is_played(
  tmp_path, monkeypatch, capsys
):
  pytest.importorskip('pygame')
  # Cart-pole, from frames, and a model that knows nothing of it.
  config = small_run.make_config(small_run.write_dataset(tmp_path / 'noise'))
  run = save_run(tmp_path / 'run', ['finetune'], config)
  arguments = '--updates 1 --dreams 4 --horizon 2 --episodes 2'
  monkeypatch.setattr(sys, 'argv', ['dream_ppo', str(run), *arguments.split()])
  capsys.readouterr()  # pygame greets.
  dream_ppo.main()
  first, _, rest = capsys.readouterr().out.partition('\n')
  assert json.loads(first)['update'] == 0
  found = json.loads(rest)
  assert set(found) == {'ppo', 'random'}
  # Each step earns 1, up to the time limit of 6.
  for played in found.values():
    assert played['episodes'] == 2 and 1 <= played['mean_return'] <= 6


def test_it_practises_in_a_world_model(capsys):
  dreams = loaded(rows=3, horizon=3)
  _, params, log = dream_ppo.train(dreams, SHORT, jax.random.key(0))
  assert len(log) == 2 == len(capsys.readouterr().out.splitlines())
  assert all(np.isfinite([*row.values()]).all() for row in log)
  assert 1 <= log[0]['length'] <= 3
  assert {p.name for p in CONFIG.actions} <= params['params'].keys()
  _, again, _ = dream_ppo.train(dreams, SHORT, jax.random.key(0))
  jax.tree.map(np.testing.assert_array_equal, params, again)
