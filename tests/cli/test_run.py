"""Whole runs by a wheel, on a dataset without events: what a user reads.

All that is off by default is on: see `small_run.with_options`.
"""

import json
import re
import subprocess

import jax
import numpy as np
import pytest

from data_pipelines import pretokenise
from dreamer4_jax.checkpoint import latest_step, load_arrays, load_params
from dreamer4_jax.cli import startup
from dreamer4_jax.cli.main import main
from dreamer4_jax.config import PHASES
from dreamer4_jax.data import EpisodeSource
from dreamer4_jax.evals import drawing, evaluation, files, provenance
from dreamer4_jax.models import World
from dreamer4_jax.training.clips import training_loader
from tests import wheel
from tests.cli import small_run

pytest.importorskip('gymnasium')
pytest.importorskip('pygame')
pytestmark = pytest.mark.slow

README = (wheel.ROOT / 'README.md').read_text()
SNIPPETS = re.findall(r'```python\n(.*?)```', README, re.DOTALL)
# Which the README's snippets read.
RUN = 'runs/quickstart'
BAR = re.compile(r'^[\w. ]*:\s+\d+%\|.*?\]\s*')


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """What a wheel holds, without the checkout."""
  directory = tmp_path_factory.mktemp('alone')
  return wheel.unpack(wheel.build(directory), directory)


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  home = tmp_path_factory.mktemp('home')
  small_run.write_dataset(home / 'noise', vectors=(small_run.STATE,))
  config = small_run.with_options(
    small_run.make_config('noise'), home / 'tasks.npy'
  )
  (home / 'quickstart.py').write_text(
    'from dreamer4_jax.config import Config\n'
    f'config = Config.from_json({config.to_json()!r})\n'
  )
  return home


def dreamer4(alone, home, *arguments):
  """Runs a command; returns its exit code and the lines that a user reads."""
  child = wheel.python(
    alone,
    f"run('dreamer4_jax.cli.main', *{arguments!r})",
    home,
    stderr=subprocess.STDOUT,
  )
  pieces = re.split(r'[\r\n]+', child.stdout)
  lines = [BAR.sub('', piece).rstrip() for piece in pieces]
  return child.returncode, [line for line in lines if line]


@pytest.fixture(scope='module')
def trained(alone, home):
  code, lines = dreamer4(alone, home, 'train', 'quickstart.py')
  return (
    code,
    lines,
    json.loads((home / RUN / 'seconds.json').read_text()),
  )


@pytest.fixture(scope='module')
def evaluated(alone, home, trained):
  return dreamer4(alone, home, 'quickstart', 'quickstart.py')


def test_training_prints_a_line_a_phase(trained):
  code, lines, _ = trained
  assert code == 0, lines
  # Ten steps of one phase may take ten lines; these are of all four.
  assert len(lines) <= 10 and len(set(lines)) == len(lines), lines
  starts = [line.split(':')[0] for line in lines]
  # One more: the tokenizer says that LPIPS is off.
  assert starts == [PHASES[0], *PHASES], lines


def test_every_phase_took_its_ten_steps(home, trained):
  run = home / RUN
  assert [latest_step(run, phase) for phase in PHASES] == [10] * 4


def test_the_snippets_of_the_readme_run_on_it(alone, home, trained):
  child = wheel.python(
    alone,
    f"""
import jax, numpy as np
step, dream, model = ({{}} for _ in range(3))
for code, space in zip({SNIPPETS!r}, (step, dream, model), strict=True):
  exec(compile(code, 'README.md', 'exec'), space)

assert int(step['state'].step) == 1
assert all(np.isfinite(x).all() for x in step['metrics'].values())
# Unboxed, as the loop has them.
params = jax.tree.leaves(step['state'].params)
assert all(isinstance(x, jax.Array) for x in params)

images, actions = dream['images'], dream['actions']['action']
assert images.shape == (16, 16, 16, 16, 3), images.shape
assert np.isfinite(images).all()
assert actions.shape == (16, 16), actions.shape
assert set(np.unique(actions).tolist()) <= {{0, 1}}

x = np.random.default_rng(0).normal(size=(2, 3, 5, 7)).astype('float32')
model = model['VideoModel']()
params = model.init(jax.random.key(0), x)
assert model.apply(params, x).shape == (2, 3, 5, 1)
""",
    home,
  )
  assert child.returncode == 0, child.stderr


def test_evaluating_prints_little_more_than_the_report(home, evaluated):
  code, lines = evaluated
  assert code == 0, lines
  text = (home / RUN / 'report.md').read_text()
  ours = [line for line in lines if line not in text.splitlines()]
  assert len(ours) <= 10 and len(set(ours)) == len(ours), ours
  assert all('already finished' in line for line in ours), ours
  assert set(text.splitlines()) - {''} <= set(lines)


def test_cloning_learned_from_a_dataset_without_events(home, trained):
  lines = (home / RUN / 'finetune/metrics.jsonl').read_text().splitlines()
  losses = [json.loads(line)['finetune/policy'] for line in lines]
  assert len(losses) == 10 and min(losses) > 0
  policy = load_arrays(home / RUN / 'finetune')[0]['opt_state']
  moments = [np.abs(x).max() for x in jax.tree.leaves(policy) if np.size(x) > 1]
  assert min(moments) >= 0 and max(moments) > 0


def test_returns_are_compared_where_there_are_no_events(home, evaluated):
  results = json.loads((home / RUN / 'results.json').read_text())
  # Finetuned without baselines.
  assert {name.partition('_')[0] for name in results['agents']} == {
    'random', 'bc', 'rl'
  }  # fmt: skip
  assert len(results['agents']) == 1 + 4 + 4
  clones = {k: a for k, a in results['agents'].items() if k.startswith('bc')}
  best = max(clones, key=lambda k: clones[k]['mean_return'])
  assert results['best_clone'] == best
  assert results['rl_vs_best_clone']['measure'] == 'return'
  assert results['rl_vs_best_clone_steps'] is None
  assert results['rl_vs_bc']['measure'] == 'return'
  assert 'sign-flip' in results['rl_vs_bc']['test']
  for agent in results['agents'].values():
    assert agent['success'] is None and agent['events'] == {}
    assert 1 <= agent['mean_return'] <= 6  # Cart-pole pays 1 a step.
  versions = results['versions']
  assert {'gymnasium', 'ale-py'} <= set(versions) and 'navix' not in versions
  text = (home / RUN / 'report.md').read_text()
  assert 'Tile by tile' not in text and 'worst.png' in text
  assert '\n| rl | - | ' in text and 'The same 3 episodes for all' in text
  assert 'rl - bc, return = ' in text and 'nan' not in text.lower()
  # The game runs on the host.
  assert results['reality'] is None and 'reality: not measured' in text


def test_a_finished_phase_takes_no_more_time(home, trained, evaluated):
  _, _, before = trained
  assert set(before) == set(PHASES) and min(before.values()) > 0
  seconds = json.loads((home / RUN / 'results.json').read_text())['seconds']
  assert {p: seconds[p] for p in PHASES} == before
  total = sum(seconds[part] for part in (*PHASES, 'evaluation'))
  assert seconds['total'] == pytest.approx(total)


def test_a_trained_run_is_evaluated_by_its_directory(
  home, evaluated, monkeypatch
):
  monkeypatch.chdir(home)
  run = home / RUN
  before = json.loads((run / 'results.json').read_text())
  for name in ('results.json', 'report.md', 'dreams.mp4', 'agent.mp4'):
    (run / name).unlink()
  found = evaluation.evaluate(run, episodes=5, seed=7)
  saved = json.loads((run / 'results.json').read_text())
  assert saved == json.loads(json.dumps(found))
  # Of other clips; pixels are alike on all of them, states are not.
  psnr = before['tokenizer']['psnr']
  assert saved['tokenizer']['psnr'] == pytest.approx(psnr, abs=0.1)
  assert saved['tokenizer']['vectors']['state'] > 0
  assert saved['agents']['rl']['episodes'] == 5
  assert saved['config']['eval']['seed'] == 7
  # Of the last evaluation alone, and training is not trained again.
  for part in PHASES:
    assert saved['seconds'][part] == before['seconds'][part]
  for name in ('report.md', 'dreams.mp4', 'agent.mp4', 'training.png'):
    assert (run / name).stat().st_size > 0


def test_what_is_for_the_eye_costs_no_results(
  home, evaluated, monkeypatch, caplog
):
  def fail(*unused_args):
    raise OSError('no codec')

  version = provenance.metadata.version

  def missing(name):  # ale_py asks for its own version when it is imported.
    if name == 'gymnasium':
      raise provenance.metadata.PackageNotFoundError(name)
    return version(name)

  monkeypatch.chdir(home)
  monkeypatch.setattr(files, 'write_video', fail)
  monkeypatch.setattr(drawing, 'plot_training', fail)
  monkeypatch.setattr(provenance.metadata, 'version', missing)
  run = home / RUN
  (run / 'results.json').unlink()
  (run / 'agent.mp4').unlink()
  found = evaluation.evaluate(run)
  assert json.loads((run / 'results.json').read_text())['agents']
  assert found['versions']['gymnasium'] == 'not installed'
  assert not (run / 'agent.mp4').exists()
  assert 'agent.mp4 is left out (OSError: no codec)' in caplog.text


def test_the_state_goes_all_the_way(home, evaluated):
  results = json.loads((home / RUN / 'results.json').read_text())
  assert np.isfinite(results['tokenizer']['vectors']['state'])
  text = (home / RUN / 'report.md').read_text()
  assert 'Vector state: off by' in text
  run, latents = str(home / RUN), str(home / 'latents')
  noise = str(home / 'noise')
  pretokenise.pretokenise(
    pretokenise.PretokeniseConfig(
      run=run, dataset=noise, out=latents, streams=4
    ),
    progress=False,
  )
  # Latents hold the state: nothing stands beside them.
  params, config = load_params(run, 'tokenizer')
  config = config.edit(
    {'data.sources.0.path': noise, 'data.sources.0.latents': latents}
  )
  name = World.from_config(config).fingerprint(params)
  batch = next(training_loader(config, 'dynamics', 4, name))
  assert batch.frames.shape == (4, 4, 4, 4) and not batch.vectors
  batch = next(training_loader(config, 'tokenizer', 4))
  assert batch.vectors['state'].shape == (4, 4, 4)


def test_an_agent_that_sees_the_state_records(home, trained):
  path = small_run.record(
    home / 'played',
    policy='checkpoint',
    run=str(home / RUN),
    episodes=2,
    test_episodes=2,
    parallel=2,
  )
  state = EpisodeSource(path, 'train')[0]['vector']['state']
  # By the rule of the game, at 50 frames a second.
  moved = state[:-1, 0] + 0.02 * state[:-1, 1]
  np.testing.assert_allclose(state[1:, 0], moved, rtol=1e-4, atol=1e-6)


def test_the_world_model_trained_on_in_imagination(home, trained):
  before, _ = load_params(home / RUN, 'finetune')
  after, _ = load_params(home / RUN, 'imagination')
  np.testing.assert_array_equal(after['task_vectors'], np.eye(1, 3))
  for module in ('policy', 'dynamics', 'reward', 'task'):
    old, new = (jax.tree.leaves(params[module]) for params in (before, after))
    assert all(np.isfinite(x).all() for x in new)
    assert any(np.any(x != y) for x, y in zip(old, new, strict=True)), module


def test_a_run_that_is_not_trained_is_named(home, trained, tmp_path):
  config = (home / RUN / 'config.json').read_text()
  (tmp_path / 'config.json').write_text(config)
  with pytest.raises(FileNotFoundError, match='the phase tokenizer is not tr'):
    evaluation.evaluate(tmp_path)


def test_any_agents_of_a_run_play(home, trained, monkeypatch, capsys):
  monkeypatch.chdir(home)
  monkeypatch.setattr(startup, 'enable_compilation_cache', lambda: None)
  before = sorted((home / RUN).iterdir())
  options = ['--episodes', '3', '--seed', '5', '--videos', '1', '--out', 'new']
  agents = ['--agents', 'bc', 'rl', '--temperatures', '1', '0']
  assert main(['evaluate', RUN, *options, *agents]) == 0
  found = json.loads((home / 'new/episodes.json').read_text())
  names = ['random', 'bc', 'bc_greedy', 'rl', 'rl_greedy']
  assert list(found['agents']) == names and found['first_seed'] == 5
  assert all(a['episodes'] == 3 for a in found['agents'].values())
  others = ['bc_greedy', 'rl', 'rl_greedy', 'random']
  assert list(found['comparisons']) == [f'bc - {name}' for name in others]
  said = capsys.readouterr().out
  for name in names:
    assert (home / f'new/{name}.mp4').stat().st_size > 0
    assert f'| {name} |' in said
  assert sorted((home / RUN).iterdir()) == before
  prompt = found['prompt']
  only = ['--agents', 'rl', '--videos', '0', '--episodes', '2', '--out', 'one']
  assert main(['evaluate', RUN, *only, '--prompt', f'{prompt[0]}:3']) == 0
  found = json.loads((home / 'one/episodes.json').read_text())
  assert found['prompt'] == [f'{prompt[0]}:3']
  assert main(['evaluate', RUN, '--prompt', 'sleep']) == 2
  assert "prompt = 'sleep': must begin with one of the tasks" in (
    capsys.readouterr().err
  )
  assert main(['evaluate', RUN, '--agents', 'bc_best']) == 2
  assert "agents = 'bc_best': this run has random, bc, rl" in (
    capsys.readouterr().err
  )


def test_a_run_is_examined(home, trained, monkeypatch, capsys):
  monkeypatch.chdir(home)
  monkeypatch.setattr(startup, 'enable_compilation_cache', lambda: None)
  # Ten steps on noise: nothing is learned, and the page says so.
  assert main(['doctor', RUN, '--clips', '16']) == 1
  said = capsys.readouterr().out
  assert said.strip() == (home / RUN / 'doctor.md').read_text().strip()
  found = json.loads((home / RUN / 'doctor.json').read_text())
  assert {f['phase'] for f in found} == {'data', *PHASES}
  verdict = {(f['phase'], f['name']): f['verdict'] for f in found}
  assert verdict['tokenizer', 'PSNR'] == 'wrong'
  assert verdict['imagination', 'steps'] == 'fine'
  assert '- tokenizer, PSNR: ' in said.split('## Data')[0]
  assert main(['doctor', 'nowhere']) == 2
  assert 'nowhere' in capsys.readouterr().err


def test_a_run_dreams(home, trained, monkeypatch, capsys):
  monkeypatch.chdir(home)
  monkeypatch.setattr(startup, 'enable_compilation_cache', lambda: None)
  options = ['--clips', '2', '--context-frames', '2', '--horizon', '2']
  assert main(['dream', RUN, '--out', 'dreamt', *options]) == 0
  said = capsys.readouterr().out
  found = json.loads((home / 'dreamt/dream.json').read_text())
  assert json.loads(said) == found
  assert found['phase'] == 'imagination' and np.isfinite(found['psnr_2'])
  for name in ('dream.png', 'dream.mp4'):
    assert (home / 'dreamt' / name).stat().st_size > 0
