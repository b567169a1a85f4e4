"""What cannot work is refused before anything is written or trained."""

import pathlib

import pytest

from dreamer4_jax.cli.main import main
from dreamer4_jax.cli.quickstart import quickstart
from dreamer4_jax.config import PHASES, ActionComponent, SourceConfig
from dreamer4_jax.evals.evaluation import evaluate
from dreamer4_jax.training import checks
from dreamer4_jax.training.clips import training_loader
from tests.cli import small_run

EXPERIMENT = """
from tests.cli import small_run
config = small_run.make_config({path!r})
"""


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return small_run.write_dataset(tmp_path_factory.mktemp('data') / 'noise')


@pytest.fixture
def started(monkeypatch):
  """Phases whose training began."""
  found = []
  for module in ('cli.quickstart', 'training.run'):
    monkeypatch.setattr(
      f'dreamer4_jax.{module}.train_phases',
      lambda *args, **_: found.append(args[2]),
    )
  monkeypatch.setattr(
    'dreamer4_jax.cli.startup.enable_compilation_cache', lambda: None
  )
  return found


def with_another(config, path):
  """Returns the config with one more dataset."""
  sources = (*config.data.sources, SourceConfig(path=str(path)))
  return config.edit({'data.sources': sources})


OTHER = (ActionComponent(name='action', kind='categorical', size=3),)
# Changes of the config, and what both commands say.
MISTAKES = [
  ({'env.name': 'gymnasiun:CartPole-v1'}, "'gymnasiun:CartPole-v1': must be"),
  ({'env.name': 'gymnasium:CartPola-v1'}, 'gymnasium:CartPola-v1'),
  (
    {'env.image_size': (8, 8)},
    r'tokenizer.frame_shape = \(16, 16, 3\): env.name = .* has \(8, 8, 3\)',
  ),
  ({'actions': OTHER}, r'actions = .*size=3.*env.name .*size=2'),
  ({'data.sources.0.path': 'nowhere'}, "'nowhere': no dataset there"),
  ({'data.splits': ('trian', 'test')}, "expected some in 'trian'"),
  (
    {'data.sources.0.latents': 'gone'},
    r"data.sources.0.latents = 'gone': latents are made by the trained token",
  ),
  (
    {'phases.finetune.relevant_share': 0.0},
    'phases.finetune.relevant_share = 0.0: leaves no clip .* clone behaviour',
  ),
  (
    {'phases.finetune.relevant_share': 1.0},
    'phases.finetune.relevant_share = 1.0: leaves no uniform clip',
  ),
  (
    {'phases.finetune.baseline_share': 0.1},
    'phases.finetune.baseline_share = 0.1: baselines would learn nothing, of '
    'no clip in a batch of 4',
  ),
  (
    {'phases.finetune.baseline_share': 0.5},
    'phases.finetune.relevant_share = 0.5: leaves no uniform clip .* or '
    'baseline_share = 0.5',
  ),
  (
    {'data.separate_images': 1.0},
    'phases.finetune: data.separate_images = 1.0: leaves no actions',
  ),
  (
    {'data.sources.0.labeled_share': 0.0},
    r'phases.finetune: no episode of .* has actions to clone; use more of '
    r'them \(labeled_share',
  ),
  (
    {'data.sources.0.labeled_hours': 1.0},
    'labeled_hours = 1.0: .* has no frame rate; use labeled_share',
  ),
  ({'dynamics.context_length': 8}, 'dynamics.context_length = 8: must not'),
]
QUICKSTART_MISTAKES = [
  ({'env.name': ''}, "EnvConfig.name = '': must be adapter:level"),
  ({'data.splits': ('train', 'valid')}, "expected some in 'valid'"),
  (
    {'eval.horizons': (2, 14)},
    r'eval.horizons = \(2, 14\): with eval.context_frames = 3 needs clips of '
    '17 frames, and the longest episode .* has 12',
  ),
  ({'eval.clips': 5000}, r'eval.clips = 5000: only \d+ of the first 3,200'),
]


@pytest.mark.parametrize('fields, sentence', MISTAKES)
def test_train_refuses(data, tmp_path, fields, sentence):
  config = small_run.make_config(data).edit(fields)
  with pytest.raises((ValueError, FileNotFoundError), match=sentence):
    checks.check_training(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('fields, sentence', MISTAKES + QUICKSTART_MISTAKES)
def test_quickstart_refuses(data, tmp_path, started, fields, sentence):
  config = small_run.make_config(data).edit(fields)
  with pytest.raises((ValueError, FileNotFoundError), match=sentence):
    quickstart(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists() and not started


def test_every_dataset_must_be_there(data, tmp_path, started):
  config = with_another(small_run.make_config(data), 'gone')
  for begin in (checks.check_training, quickstart):
    with pytest.raises(FileNotFoundError, match="'gone': no dataset there"):
      begin(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists() and not started


def test_what_is_right_is_trained(data, tmp_path, started):
  config = small_run.make_config(data)
  checks.check_training(config, tmp_path)
  # No test split and no environment are needed to train.
  checks.check_training(
    config.edit({'env.name': '', 'data.splits': ('train', 'none')}), tmp_path
  )
  # The phases that are not asked for may be wrong.
  wrong = config.edit({'phases.finetune.relevant_share': 0.0})
  checks.check_training(wrong, tmp_path, ('tokenizer', 'dynamics'))
  assert small_run.tree(tmp_path) == {}


def test_the_command_refuses_before_it_writes(
  data, tmp_path, started, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  pathlib.Path('x.py').write_text(EXPERIMENT.format(path=data))
  for command in ('train', 'quickstart'):
    wrong = ['phases.finetune.relevant_share=0']
    assert main([command, 'x.py', '--set', *wrong]) == 2
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and 'phases.finetune.relevant_share' in said
  assert sorted(small_run.tree(tmp_path)) == ['x.py'] and not started
  assert main(['train', 'x.py']) == 0
  assert started == [PHASES] and pathlib.Path('runs/x/config.json').exists()


def test_without_an_engine_one_can_train_but_not_evaluate(
  data, tmp_path, monkeypatch, started
):
  def make_env(config):
    raise ImportError('EnvConfig.name needs the package x: run `pip install`')

  monkeypatch.setattr('dreamer4_jax.envs.checks.make_env', make_env)
  config = small_run.make_config(data)
  checks.check_training(config, tmp_path)
  with pytest.raises(ValueError, match='needs the package x: run'):
    quickstart(config, tmp_path / 'run')
  assert not started and not (tmp_path / 'run').exists()


@pytest.mark.parametrize('which', ['path', 'more', 'latents'])
@pytest.mark.parametrize('where', ['.', 'inside', 'checkpoints', '..'])
def test_a_run_does_not_write_into_a_dataset(tmp_path, started, which, where):
  place = tmp_path / 'a' / 'data'
  run = {
    '.': place,
    'inside': place / 'runs' / 'x',
    # The dataset lies where a phase, or its checkpoints, would.
    'checkpoints': place,
    '..': tmp_path / 'a',
  }[where]
  if where == 'checkpoints':
    place = run / 'dynamics' / 'checkpoints' / 'd'
  small_run.write_dataset(place)
  other = small_run.write_dataset(tmp_path / 'other')
  config = small_run.make_config(other if which != 'path' else place)
  if which == 'more':
    config = with_another(config, place)
  if which == 'latents':
    config = config.edit({'data.sources.0.latents': str(place)})
  before = small_run.tree(tmp_path)
  if where == '..':  # Beside the phases it is not in the way.
    checks.check_directories(config, run)
    return
  for begin in (
    lambda: checks.check_training(config, run),
    lambda: quickstart(config, run),
  ):
    with pytest.raises(
      ValueError,
      match=rf'^data\.sources\.{int(which == "more")}\.'
      '.* would write checkpoints into this dataset',
    ):
      begin()
  assert small_run.tree(tmp_path) == before and not started


def test_a_run_directory_that_is_a_file_or_a_link(data, tmp_path):
  config = small_run.make_config(data)
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match='file: is a file; name a directory'):
    checks.check_directories(config, tmp_path / 'file')
  (tmp_path / 'link').symlink_to(data)
  with pytest.raises(ValueError, match='would write checkpoints into'):
    checks.check_directories(config, tmp_path / 'link')


def test_a_phase_before_that_is_missing_is_named(data, tmp_path):
  config = small_run.make_config(data)
  with pytest.raises(FileNotFoundError, match='dynamics: needs the phase tok'):
    checks.check_training(config, tmp_path, ('dynamics', 'finetune'))
  with pytest.raises(FileNotFoundError, match='imagination: needs the phase f'):
    checks.check_training(
      config, tmp_path, ('tokenizer', 'dynamics', 'imagination')
    )


@pytest.mark.parametrize(
  'settings, sentence',
  [
    ({'known': False}, 'no episode of .* has actions to clone; add a dataset'),
    ({'actions': ()}, 'no episode of .* has actions to clone; add a dataset'),
    ({'tasks': ()}, 'phases.finetune: tasks: found none in'),
    (
      {
        'tasks': ('near', 'far'),
        'events': [(0, 3, 0)],
        'share': (1,),
      },
      'no episode with an event of .* has actions to clone; use more of them',
    ),
  ],
)
def test_datasets_without_something_to_clone(tmp_path, settings, sentence):
  settings = dict(settings)
  share = settings.pop('share', None)
  path = small_run.write_dataset(tmp_path / 'd', **settings)
  config = small_run.make_config(path).edit({'env.name': ''})
  if len(settings.get('tasks', ())) == 2:
    config = config.edit({'tasks': ('near', 'far')})
  if share:
    # Episode 0, with the only event, is not among the labeled ones.
    config = config.edit({'data.sources.0.labeled_share': 0.2})
  with pytest.raises(ValueError, match=sentence):
    checks.check_training(config, tmp_path / 'run')
  # Video is enough for the first two phases, whatever else it lacks.
  checks.check_training(config, tmp_path / 'run', PHASES[:2])
  # With another dataset that has it, all is well.
  if settings.keys() & {'known', 'actions'}:
    other = small_run.write_dataset(tmp_path / 'more')
    checks.check_training(with_another(config, other), tmp_path)


def test_without_events_cloning_has_actions(data):
  batch = next(training_loader(small_run.make_config(data), 'finetune', 4))
  cloned = batch.action_mask & batch.relevant[:, None]
  assert batch.relevant.tolist() == [False, True, False, True]
  assert cloned[[1, 3]].sum() >= 6 and (batch.task == 0).all()
  assert batch.reward[batch.prev_action_mask].all()


def test_dreams_that_cannot_pay_are_told_of(tmp_path, caplog):
  path = small_run.write_dataset(tmp_path / 'd', paid=0.0)
  checks.check_training(small_run.make_config(path), tmp_path / 'run')
  assert 'nothing to learn from dreams' in caplog.text


def test_a_dataset_to_be_recorded_is_checked_before_training(tmp_path, started):
  path = tmp_path / 'd'
  config = small_run.make_config(path)
  with pytest.raises(FileNotFoundError, match='define a function `record'):
    quickstart(config, tmp_path / 'run')
  assert small_run.tree(tmp_path) == {}
  with pytest.raises(ValueError, match=r'actions: found .*size=3'):
    quickstart(
      config,
      tmp_path / 'run',
      lambda run: small_run.write_dataset(run.data.path, actions=OTHER),
    )
  assert not started


def test_what_cannot_be_evaluated_is_told(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'config\.json: no such file'):
    evaluate(tmp_path)
  for text, sentence in (
    ('{"format": 2, "seed": "x"}', r'config\.json: .*seed'),
    ('{"seed": 1}', r'config\.json: format = 1: .* another version .* reads'),
    (
      '{"format": 2, "agent": {"layers": 2}}',
      r'config\.json: agent\.layers: no config has such a field',
    ),
  ):
    (tmp_path / 'config.json').write_text(text)
    with pytest.raises(ValueError, match=sentence):
      evaluate(tmp_path)
