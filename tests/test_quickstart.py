"""The whole path at toy size: record, train, evaluate, report, go on."""

import json

import jax
import numpy as np
import pytest

from data_pipelines.collect import CollectConfig, collect
from data_pipelines.pretokenise import PretokeniseConfig, pretokenise
from dreamer4_jax import sharding
from dreamer4_jax.checkpoint import load_params
from dreamer4_jax.cli.quickstart import quickstart
from dreamer4_jax.config import PHASES, EvalConfig, MeshConfig, experiments
from dreamer4_jax.data import EpisodeSource, novelty
from dreamer4_jax.evals import policies, seeds
from dreamer4_jax.evals.evaluation import FRAMES_A_CLIP, _held_out
from dreamer4_jax.models import World
from dreamer4_jax.training.clips import training_loader

pytestmark = pytest.mark.slow


def toy(path):
  """The quickstart's experiment with toy models and two steps a phase."""
  small = {'width': 16, 'depth': 2, 'time_every': 2}
  short = {'steps': 2, 'batch_size': 8, 'clip_lengths': (4,)}
  return experiments.load('quickstart').edit(
    {
      **{f'tokenizer.{k}': v for k, v in small.items()},
      **{f'dynamics.{k}': v for k, v in small.items()},
      'dynamics.context_length': 4,
      'agent.hidden': (16,),
      **{f'phases.{p}.{k}': v for p in PHASES for k, v in short.items()},
      'phases.finetune.baseline_share': 0.25,
      'phases.imagination.horizon': 3,
      'phases.imagination.sampling_steps': 2,
      'saving.log_every': 1,
      'data.sources.0.path': str(path),
      'env.max_steps': 12,
      'eval': EvalConfig(
        clips=20,
        context_frames=3,
        horizons=(2, 4),
        episodes=8,
      ),
    }
  )


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  path = tmp_path_factory.mktemp('run')
  config = toy(path / 'data')

  def record(config):
    out = config.data.path
    report = collect(
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
    novelty.measure_dataset(out, 'train')
    return report

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
  figures, dynamics = saved['tokenizer'], saved['dynamics']
  assert 0 < figures['psnr_worst_1pct'] < figures['psnr']
  assert 0 < figures['psnr_worst_regions'] < figures['psnr']
  assert figures['psnr_changed'] > 0
  for name in ('exact', 'tiles', 'rare_tiles'):
    assert 0 <= figures[name] <= 1
  assert 'before the door' in figures['player']
  for h in (1, 2, 4):
    for baseline in ('', '_repeat_last', '_shuffled_actions'):
      assert dynamics[f'psnr_{h}{baseline}'] > 0
      assert 0 <= dynamics[f'exact_{h}{baseline}'] <= 1
    assert 0 <= dynamics[f'changed_{h}'] <= 1
    for part in ('worst_1pct', 'worst_regions', 'changed'):
      assert dynamics[f'psnr_{part}_{h}'] > 0
  kinds = ('bc', 'bc_all', 'bc_best', 'rl')
  ends = ('', '_0.5', '_0.25', '_greedy')
  names = ['random', *(kind + end for kind in kinds for end in ends)]
  assert list(saved['agents']) == names
  recordings = saved['recordings'].values()
  assert sum(a['episodes'] for a in recordings) == 12
  for agent in saved['agents'].values():
    assert agent['episodes'] == 8 and 0 <= agent['success'] <= 1
    assert 1 <= agent['mean_length'] <= 12
    assert set(agent['events']) == {'key', 'door', 'goal'}
  clones = {k: a for k, a in saved['agents'].items() if k.startswith('bc')}
  quality = lambda a: (a['success'], a['mean_return'])
  best = clones[saved['best_clone']]
  assert quality(best) == max(map(quality, clones.values()))
  for compared in ('rl_vs_bc', 'rl_vs_best_clone'):
    assert set(saved[compared]) == {
      'measure',
      'test',
      'difference',
      'ci95',
      'p_value',
    }
  steps = saved['rl_vs_best_clone_steps']
  assert steps is None or steps['episodes'] >= 2
  assert set(saved['reality']) == {'bc', 'rl'}
  for agent in saved['reality'].values():
    assert set(agent['tasks']) == {'key', 'door', 'goal'}
    assert 8 <= agent['states'] <= 3 * 8 and 0 <= agent['dreamed'] <= 1
  text = (path / 'run/report.md').read_text()
  assert f'| rl | all | {saved["reality"]["rl"]["states"]} | ' in text
  assert 'navix' in saved['versions'] and 'gymnasium' not in saved['versions']
  parts = ('data', 'tokenizer', 'dynamics', 'finetune', 'imagination')
  seconds = saved['seconds']
  total = sum(seconds[part] for part in (*parts, 'evaluation'))
  assert seconds['total'] == pytest.approx(total)
  for name in ('parameters', 'device', 'versions', 'seed', 'config'):
    assert name in saved


def test_figures_of_the_tokenizer_are_of_all_frames_there_are(run):
  path, config, results = run
  lengths = EpisodeSource(path / 'data', 'test').index.lengths
  whole = 16 * 4  # frames of a batch
  count = -(-int(lengths.sum()) // whole)
  assert FRAMES_A_CLIP * config.eval.clips >= lengths.sum()
  player = results['tokenizer']['player'].values()
  assert sum(place['frames'] for place in player) == whole * count
  # A few frames more than fill a batch.
  fewer = config.edit({'eval.clips': whole // FRAMES_A_CLIP + 1})
  batches = _held_out(fewer)
  assert [b.frames.shape[:2] for b in batches] == [(16, 4)] * 2 and count > 2


def test_the_files_of_the_report_are_there(run):
  path, _, _ = run
  for name in (
    'report.md', 'worst.png', 'dreams.mp4', 'dreams.png', 'agent.mp4'
  ):  # fmt: skip
    assert (path / 'run' / name).stat().st_size > 0
  assert (path / 'run/success.png').stat().st_size > 0


def test_the_report_has_all_policies_and_both_comparisons(run):
  path, _, results = run
  text = (path / 'run/report.md').read_text()
  assert '| policy | success | steps | return | key | door | goal |' in text
  for name in results['agents']:
    assert f'\n| {name} | ' in text
  best = results['best_clone']
  assert f'Best clone on these episodes: {best}.' in text
  assert '\nrl - bc, ' in text and f'\nrl - {best} (best clone), ' in text


def test_runs_are_reported_side_by_side(run):
  path, _, _ = run
  found = seeds.summarise(seeds.load_results([path / 'run']))
  assert found['policies']['bc_all_greedy']['score']['n'] == 1
  assert f'| {path / "run"} | ' in seeds.markdown(found)


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
  params, saved = load_params(path / 'run', 'dynamics')
  source = EpisodeSource(path / 'run/latents-0', 'train')
  assert source.description.tokenizer == world.fingerprint(params)
  assert saved.data.sources[0].latents == str(path / 'run/latents-0')
  loader = training_loader(saved, 'dynamics', 4, world.fingerprint(params))
  assert next(loader).frames.shape == (8, 4, 36, 8)
  with pytest.raises(ValueError, match='this run has 0123; pre-tokenise again'):
    training_loader(saved, 'dynamics', 4, '0123')


def test_phases_start_from_the_phase_before(run):
  path, _, _ = run
  tokenizer, _ = load_params(path / 'run', 'tokenizer')
  final, _ = load_params(path / 'run', 'imagination')
  for a, b in zip(
    jax.tree.leaves(tokenizer['tokenizer']),
    jax.tree.leaves(final['tokenizer']),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)


def test_policies_are_those_of_their_phases(run):
  path, config, _ = run
  found = policies.load_policies(path / 'run', config)
  assert list(found) == ['bc', 'bc_all', 'bc_best', 'rl']
  assert [p.prompt for p in found.values()] == [None, 3, 4, None]
  cloned, _ = load_params(path / 'run', 'finetune')
  imagined, _ = load_params(path / 'run', 'imagination')
  equal = lambda a, b: all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))
  for name, policy in found.items():
    own = policy.params['policy']
    assert equal(own, imagined['policy']) == (name == 'rl'), name
    assert equal(own, cloned['policy']) == (name != 'rl'), name
    assert 'prior' not in policy.params
