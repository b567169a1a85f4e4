"""The whole path at toy size: record, train, evaluate, report, go on."""

import dataclasses
import json
import pathlib
import runpy

import jax
import numpy as np
import pytest

from data_pipelines.collect import CollectConfig, collect
from data_pipelines.pretokenise import PretokeniseConfig, pretokenise
from dreamer4_jax import sharding
from dreamer4_jax.cli.loaders import training_loader
from dreamer4_jax.cli.quickstart import quickstart
from dreamer4_jax.config import EvalConfig, MeshConfig
from dreamer4_jax.data import EpisodeSource
from dreamer4_jax.models import World
from dreamer4_jax.training.phases import load_rooms

EXPERIMENT = pathlib.Path(__file__).parents[1] / 'experiments/quickstart.py'


def toy(path):
  """The quickstart's experiment with toy models and two steps a phase."""
  config = runpy.run_path(str(EXPERIMENT))['config']
  replace = dataclasses.replace
  short = lambda phase: replace(
    phase,
    steps=2,
    batch_size=8,
    clip_length=4,
    long_clip_length=0,
    log_every=1,
  )
  phases = config.phases
  small = {'width': 16, 'mlp_hidden': 16, 'time_every': 2}
  return replace(
    config,
    tokenizer=replace(
      config.tokenizer, **small, encoder_depth=2, decoder_depth=2
    ),
    dynamics=replace(config.dynamics, **small, depth=2, context_length=4),
    agent=replace(config.agent, hidden=16, layers=1),
    phases=replace(
      phases,
      tokenizer=short(phases.tokenizer),
      dynamics=short(phases.dynamics),
      finetune=short(phases.finetune),
      imagination=replace(
        short(phases.imagination), horizon=3, sampling_steps=2
      ),
    ),
    data=replace(config.data, path=str(path)),
    env=replace(config.env, max_steps=12),
    eval=EvalConfig(
      clips=4,
      context_frames=3,
      horizons=(2, 4),
      episodes=8,
      reality_episodes=6,
    ),
  )


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  path = tmp_path_factory.mktemp('run')
  config = toy(path / 'data')

  def record(out):
    return collect(
      CollectConfig(
        out=out,
        env=config.env.name,
        episodes=24,
        test_episodes=12,
        noise=(0.2, 1.0),
        max_steps=12,
        parallel=12,
      ),
      progress=False,
    )

  def tokenise(run, dataset, out):
    settings = PretokeniseConfig(run=run, dataset=dataset, out=out)
    return pretokenise(settings, progress=False)

  # On one device: what several do is tested elsewhere.
  one = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sharding, 'make_mesh', lambda config: one)
    results = quickstart(config, path / 'run', record, tokenise)
  return path, config, results


def test_results_have_what_the_report_needs(run):
  path, _, results = run
  saved = json.loads((path / 'run/results.json').read_text())
  assert saved == json.loads(json.dumps(results))
  assert saved['tokenizer']['psnr'] > 0
  for h in (2, 4):
    for baseline in ('', '_repeat_last', '_shuffled_actions'):
      assert saved['dynamics'][f'psnr_{h}{baseline}'] > 0
  assert set(saved['agents']) == {'random', 'bc', 'rl'}
  for agent in saved['agents'].values():
    assert agent['episodes'] == 8 and 0 <= agent['success'] <= 1
    assert 1 <= agent['mean_length'] <= 12
  assert set(saved['reality']) == {'bc', 'rl'}
  for agent in saved['reality'].values():
    assert set(agent['tasks']) == {'key', 'door', 'goal'}
    assert 6 <= agent['states'] <= 3 * 6 and 0 <= agent['dreamed'] <= 1
  text = (path / 'run/report.md').read_text()
  assert f'| rl | all | {saved["reality"]["rl"]["states"]} | ' in text
  assert set(saved['rl_vs_bc']) == {
    'measure',
    'test',
    'difference',
    'ci95',
    'p_value',
  }
  assert 'navix' in saved['versions'] and 'gymnasium' not in saved['versions']
  parts = ('data', 'tokenizer', 'dynamics', 'finetune', 'imagination')
  seconds = saved['seconds']
  total = sum(seconds[part] for part in (*parts, 'evaluation'))
  assert seconds['total'] == pytest.approx(total)
  for name in ('parameters', 'device', 'versions', 'seed', 'config'):
    assert name in saved


def test_the_files_of_the_report_are_there(run):
  path, _, _ = run
  for name in ('report.md', 'dreams.mp4', 'dreams.png', 'agent.mp4'):
    assert (path / 'run' / name).stat().st_size > 0


def test_a_finished_run_trains_and_records_nothing_again(run, monkeypatch):
  path, config, results = run
  before = (path / 'run/tokenizer/metrics.jsonl').read_text()

  def record(*paths):
    raise AssertionError(f'{paths} written twice')

  again = quickstart(config, path / 'run', record, record)
  assert (path / 'run/tokenizer/metrics.jsonl').read_text() == before
  assert again['tokenizer'] == results['tokenizer']
  assert again['agents'] == results['agents']
  assert again['reality'] == results['reality']
  # The evaluation takes what the last one took, the rest what it took.
  before, after = results['seconds'], again['seconds']
  for part in ('data', 'tokenizer', 'dynamics', 'finetune', 'imagination'):
    assert after[part] == before[part]
  assert after['total'] == pytest.approx(
    sum(after[part] for part in after if part != 'total')
  )


def test_later_phases_read_latents(run):
  path, config, _ = run
  world = World.from_config(config)
  rooms, saved = load_rooms(path / 'run', 'dynamics')
  source = EpisodeSource(path / 'run/latents', 'train')
  assert source.description.tokenizer == world.fingerprint(rooms)
  assert saved.data.latents == str(path / 'run/latents')
  loader = training_loader(saved, 'dynamics', 4, world.fingerprint(rooms))
  assert next(loader).frames.shape == (8, 4, 8, 16)
  with pytest.raises(ValueError, match='this run has 0123; pre-tokenise again'):
    training_loader(saved, 'dynamics', 4, '0123')


def test_phases_start_from_the_phase_before(run):
  path, _, _ = run
  tokenizer, _ = load_rooms(path / 'run', 'tokenizer')
  final, _ = load_rooms(path / 'run', 'imagination')
  for a, b in zip(
    jax.tree.leaves(tokenizer['tokenizer']),
    jax.tree.leaves(final['tokenizer']),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)
