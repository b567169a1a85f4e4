"""What `import dreamer4_jax as d4` offers, and what it costs."""

import inspect
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dreamer4_jax as d4

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / 'docs/python.md').read_text()
TRAIN, PMPO = (
  code
  for code in re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)
  if 'jax.jit' in code or 'pmpo' in code
)
SIGNATURES = {
  'Agent': '(run_dir, *, phase, temperature, seed)',
  'Agent.step': '(self, frame, prev_action, task, is_first, *, events, '
  'vectors)',
  'Batch.of': '(frames, action, *, first, **known)',
  'World.from_config': '(config, platform)',
  'checkpoint.load_params': '(run_dir, phase)',
  'config.experiments.load': '(name)',
  'data.held_out_clips': '(config, length, stream)',
  'DreamEnv': '(run, *, observation, render_mode, **settings)',
  'dream': '(run_dir, out, *, clips, context_frames, horizon, '
  'sampling_steps, seed)',
  'evaluate': '(run_dir, *, config, episodes, seed)',
  'evals.play': '(run_dir, out, *, config, agents, temperatures, episodes, '
  'seed, videos)',
  'imagine': '(world, params, batch, key, *, policy, horizon, '
  'sampling_steps)',
  'objectives.sample': (
    '(denoise, noise, *given, steps, max_steps, lead_axes, taken)'
  ),
  'play.Dream.reset': '(self, params, contexts, key)',
  'play.Dream.restart': '(self, params, now, which, contexts, key)',
  'play.Dream.step': '(self, params, state, action, key)',
  'play.DreamVectorEnv': '(run, num_envs, *, observation, render_mode, '
  '**settings)',
  'play.load_dream': '(run_dir, *, phase, starts, task, prompt, '
  'context_signal, **settings)',
  'play.serve.load_game': '(where, *, phase, starts, steps, challenges)',
  'play.serve.save_game': (
    '(run_dir, out, *, phase, starts, challenges, overwrite)'
  ),
  'train': '(config, run_dir, phases, *, progress, look)',
  'training.dynamics_loss': '(world, params, batch, key, step)',
  'training.finetune_loss': '(world, params, batch, key, step)',
  'training.imagination_loss': '(world, params, contexts, key)',
  'training.init_state': '(world, phase, key, given)',
  'training.tokenizer_loss': '(tokenizer, params, frames, key, *, vectors, '
  'segment_ids, phase, lpips)',
  'training.train_step': '(world, phase)',
}  # fmt: skip


def found(name):
  node = d4
  for part in name.split('.'):
    node = getattr(node, part)
  return node


def spelled(function):
  """A signature without types and defaults."""
  text, starred = [], False
  for p in inspect.signature(function).parameters.values():
    if p.kind is p.KEYWORD_ONLY and not starred:
      text.append('*')
    starred |= p.kind in (p.KEYWORD_ONLY, p.VAR_POSITIONAL)
    stars = {p.VAR_POSITIONAL: '*', p.VAR_KEYWORD: '**'}
    text.append(stars.get(p.kind, '') + p.name)
  return f'({", ".join(text)})'


def test_the_public_names_are_these():
  assert sorted(d4.__all__) == sorted(
    """
    Agent Batch Config DreamEnv Dynamics SpaceTimeTransformer Tokenizer World
    __version__ aot checkpoint config data dream envs evals evaluate imagine
    models nn objectives play rollout runtime sharding train training types
  """.split()
  )
  assert all(getattr(d4, name) is not None for name in d4.__all__)


@pytest.mark.parametrize('name', SIGNATURES)
def test_a_signature_does_not_change_unannounced(name):
  assert spelled(found(name)) == SIGNATURES[name]


def test_it_imports_nothing_before_it_is_used():
  code = 'import sys, dreamer4_jax; print({"jax", "flax"} & set(sys.modules))'
  child = subprocess.run([sys.executable, '-c', code], capture_output=True)
  assert child.stdout == b'set()\n', child.stderr


def lines(code):
  return len([line for line in code.splitlines() if line.strip()])


def test_the_tokenizer_trains_on_video_of_ones_own():
  assert lines(TRAIN) <= 11  # The two imports, and ten at most beside them.
  rng = np.random.default_rng(0)
  video = jnp.asarray(rng.integers(0, 256, (2, 3, 64, 64, 3)), jnp.uint8)
  space = {'video': video}
  exec(TRAIN, space)
  params = space['params']
  moments = space['adam'].init(params)
  new, _ = space['step'](params, moments, jax.random.key(1))
  moved = jax.tree.map(lambda a, b: np.any(a != b), params, new)
  assert sum(jax.tree.leaves(moved)) > 10


def test_pmpo_takes_two_lines():
  assert lines(PMPO) == 2
  x = jnp.asarray([[-1.0, -2.0]])
  space = {
    'log_prob': x, 'advantage': jnp.asarray([[1.0, -1.0]]),
    'weight': jnp.ones((1, 2)), 'kl': jnp.asarray([[0.1, 0.3]]),
  }  # fmt: skip
  exec(PMPO, space)
  # 0.5 * -2 - 0.5 * -1 + 0.3 * 0.2
  np.testing.assert_allclose(space['loss'], -0.44, rtol=1e-6)


def test_a_batch_of_what_there_is():
  frames, action = (
    np.zeros((2, 3, 8, 8, 3), np.uint8),
    np.arange(6).reshape(2, 3),
  )
  first = np.array([[True, False, False], [False, True, False]])
  batch = d4.Batch.of(frames, {'go': action}, first=first)
  np.testing.assert_array_equal(batch.prev_action['go'], [[0, 0, 1], [5, 0, 4]])
  known = [[False, True, True], [False, False, True]]
  np.testing.assert_array_equal(batch.prev_action_mask, known)
  np.testing.assert_array_equal(batch.segment_ids, [[0, 0, 0], [0, 1, 1]])
  assert bool(batch.action_mask.all()) and batch.reward.shape == (2, 3, 1)
  video = d4.Batch.of(frames)
  assert video.action == {} and not video.action_mask.any()
  assert d4.Batch.of(frames, task=5).task == 5
  with pytest.raises(ValueError, match=r'go has shape \(3, 2\): must lead'):
    d4.Batch.of(frames, {'go': action.T})
  with pytest.raises(TypeError, match='tsk'):
    d4.Batch.of(frames, tsk=1)
