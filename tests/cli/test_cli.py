import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import dreamer4_jax as d4
from dreamer4_jax.checkpoint import Checkpoints
from dreamer4_jax.cli import configs
from dreamer4_jax.cli.main import main
from dreamer4_jax.cli.startup import enable_compilation_cache
from dreamer4_jax.config import (
  PHASES,
  ActionComponent,
  Config,
  DataConfig,
  EnvConfig,
  EvalConfig,
  SourceConfig,
  experiments,
)

EXPERIMENT = """
from dreamer4_jax.config import AgentConfig, Config
config = Config(agent=AgentConfig(hidden=(32,)))
"""


@pytest.fixture
def experiment(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  path = tmp_path / 'experiments' / 'toy.py'
  path.parent.mkdir()
  path.write_text(EXPERIMENT)
  return 'experiments/toy.py'


@pytest.fixture
def calls(monkeypatch):
  """Calls of the train function, which does nothing."""
  found = []
  monkeypatch.setattr(
    'dreamer4_jax.training.run.train_phases',
    lambda *args, **unused: found.append(args),
  )
  monkeypatch.setattr(
    'dreamer4_jax.training.checks.check_training', lambda *unused_args: None
  )
  monkeypatch.setattr(
    'dreamer4_jax.cli.startup.enable_compilation_cache', lambda: None
  )
  return found


def test_train_hands_over_the_resolved_config_and_saves_it(experiment, calls):
  fields = ['agent.distances=3', 'seed=5']
  assert main(['train', experiment, '--set', *fields]) == 0
  ((config, run_dir, phases),) = calls
  assert (config.agent.hidden, config.agent.distances) == ((32,), 3)
  assert config.seed == 5
  assert (run_dir, phases) == (pathlib.Path('runs/toy'), PHASES)
  assert Config.from_json((run_dir / 'config.json').read_text()) == config


def test_phase_and_run_dir_can_be_chosen(experiment, calls, tmp_path):
  args = ['--phase', 'dynamics', '--run-dir', str(tmp_path / 'x')]
  assert main(['train', experiment, *args]) == 0
  assert calls[0][1:] == (tmp_path / 'x', ('dynamics',))
  args = ['--phase', 'finetune', 'dynamics', '--run-dir', str(tmp_path / 'x')]
  assert main(['train', experiment, *args]) == 0
  assert calls[1][2] == ('dynamics', 'finetune')
  with pytest.raises(SystemExit) as info:
    main(['train', experiment, '--phase', 'sleep'])
  assert info.value.code == 2 and len(calls) == 2


def test_datasets_can_be_named(experiment, calls):
  path = pathlib.Path(experiment)
  own = 'data=DataConfig(sources=(SourceConfig(path="own", weight=3.0),), '
  path.write_text(
    'from dreamer4_jax.config import Config, DataConfig, SourceConfig\n'
    f'config = Config({own} threads=2))'
  )

  def named(*options):
    assert main(['train', experiment, *options]) == 0
    return calls[-1][0].data

  assert named().path == 'own'
  # Nothing of the experiment's dataset is left; the rest of its group stays.
  data = named('--data', 'other')
  assert data == DataConfig(sources=(SourceConfig(path='other'),), threads=2)
  # Several datasets; --set is applied after them.
  fields = ['--set', 'data.sources.1.weight=0.5', 'data.novel_share=0.25']
  data = named(*fields, '--data', 'a', 'b c')
  assert data.sources == (
    SourceConfig(path='a'), SourceConfig(path='b c', weight=0.5)
  )  # fmt: skip
  assert (data.path, data.novel_share, data.threads) == ('a', 0.25, 2)
  with pytest.raises(SystemExit) as info:
    main(['train', experiment, '--data'])
  assert info.value.code == 2


def get(config, name):
  for part in name.split('.'):
    config = config[int(part)] if part.isdigit() else getattr(config, part)
  return config


@pytest.mark.parametrize(
  'text, value',
  [
    ('env.name=a=b', 'a=b'),
    ('dynamics.depth=12', 12),
    ('optimizer.betas=0.5,0.75', (0.5, 0.75)),
    ('optimizer.muon=dynamics,finetune', ('dynamics', 'finetune')),
    ('optimizer.muon=', ()),
    ('compute.remat=full', 'full'),
    ('compute.dtype=bfloat16', 'bfloat16'),
    ('phases.dynamics.learning_rate=3e-4', 3e-4),
    ('optimizer.weight_decay=1', 1.0),
    ('phases.tokenizer.clip_lengths=4', (4,)),
    ('tokenizer.frame_shape=32,48,1', (32, 48, 1)),
    ('eval.horizons=1,2', (1, 2)),
    ('eval.horizons=[3]', (3,)),
    ('tasks=open door', ('open door',)),
    ('env.image_size=64,32', (64, 32)),
    ('env.image_size=[64, 32]', (64, 32)),
    ('data.sources.0.labeled_hours=1.5', 1.5),
    ('actions.0.size=7', 7),
    ('mesh.data=-1', -1),
    ('data.sources.0.path=', ''),
  ],
)
def test_values_are_parsed_by_the_fields_type(text, value):
  config = configs.override(Config(), [text])
  found = get(config, text.partition('=')[0])
  assert found == value and type(found) is type(value)


def test_a_tuple_of_groups_is_json():
  text = 'actions=[{"name": "a", "kind": "binary", "size": 3}]'
  config = configs.override(Config(), [text])
  assert config.actions == (ActionComponent(name='a', kind='binary', size=3),)


def test_an_item_of_a_replaced_tuple_can_be_overridden():
  both = ['actions=[{"name": "a", "kind": "binary", "size": 3}]']
  config = configs.override(Config(), [*both, 'actions.0.size=4'])
  assert config.actions == (ActionComponent(name='a', kind='binary', size=4),)
  with pytest.raises(ValueError, match=r'actions\.0\.size: no such field'):
    configs.override(Config(), ['actions=[]', 'actions.0.size=4'])


def test_overrides_are_checked_together_and_leave_the_rest_alone():
  # Each alone would be refused.
  both = ['tokenizer.depth=3', 'tokenizer.time_every=3']
  config = configs.override(Config(), both)
  expected = dataclasses.replace(
    Config(),
    tokenizer=dataclasses.replace(Config().tokenizer, depth=3, time_every=3),
  )
  assert config == expected
  for one in both:
    with pytest.raises(ValueError, match='positive multiple of time_every'):
      configs.override(Config(), [one])


MISTAKES = [
  ('dynamics.depht=8', 'dynamics.depht: no such field; did you mean dynamics.'),
  ('depth=8', 'depth: no such field; did you mean tokenizer.depth, dyn'),
  ('dynamics.dtype=x', 'no such field; did you mean compute.dtype'),
  ('data.path=x', 'no such field; did you mean data.sources.0.path'),
  ('zzz=8', 'zzz: no such field; --help-config lists all'),
  ('mesh=8', 'mesh: is a group; set one of mesh.data, mesh.fsdp, mesh.tensor'),
  ('actions.1.size=8', 'actions.1.size: no such field; did you mean actions.0'),
  ('dynamics.depth', '--set dynamics.depth: must have the form name=value'),
  ('dynamics.depth=deep', "dynamics.depth = 'deep': must be int"),
  ('dynamics.depth=6', 'DynamicsConfig.depth = 6: must be a positive multiple'),
  ('compute.dtype=int8', "'int8': must be one of float32, bfloat16"),
  ('eval.horizons=4,x', "'4,x': must be int, with commas between several"),
  ('env.image_size=64', "'64': must be 2 values (int) with commas between"),
  ('eval.horizons=', 'EvalConfig.horizons = (): needs at least one'),
  ('actions=[]', 'actions = []: needs at least one component'),
  ('actions=[{', 'is no JSON'),
  ('actions=[{"name": "a"}]', 'must be JSON list of ActionComponent'),
]


@pytest.mark.parametrize('text, sentence', MISTAKES)
def test_a_mistake_is_one_sentence_and_exit_code_2(
  experiment, calls, capsys, text, sentence
):
  assert main(['train', experiment, '--set', text]) == 2
  said = capsys.readouterr().err
  assert said.startswith('dreamer4: ') and said.count('\n') == 1
  assert sentence in said and '$' not in said  # No JSON path.
  assert not calls and not pathlib.Path('runs').exists()


def test_mistakes_in_the_experiment_file(experiment, calls, capsys):
  path = pathlib.Path(experiment)
  assert main(['train', 'experiments/tyo.py']) == 2
  assert 'no such experiment file; there are ' in capsys.readouterr().err
  for text, sentence in (
    ('x = 1', 'must define a variable `config`'),
    ('config = 3', 'found int'),
    (EXPERIMENT.replace('32', '0'), 'AgentConfig.hidden = (0,): needs'),
    (EXPERIMENT.replace('hidden', 'hiden'), "'hiden'"),
  ):
    path.write_text(text)
    assert main(['train', experiment]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f'dreamer4: {experiment}: ') and sentence in said
  assert not calls


def test_a_run_of_another_model_is_refused_and_keeps_its_config(
  experiment, calls, capsys
):
  assert main(['train', experiment]) == 0
  config, run_dir, _ = calls[0]
  with Checkpoints(run_dir / 'dynamics') as checkpoints:
    checkpoints.save(1, {'x': jnp.zeros(1)}, None, config)
  before = (run_dir / 'config.json').read_text()
  assert main(['train', experiment, '--set', 'dynamics.depth=4']) == 2
  assert 'dynamics.depth = 4: the checkpoint in' in capsys.readouterr().err
  assert (run_dir / 'config.json').read_text() == before and len(calls) == 1
  assert main(['train', experiment, '--set', 'agent.hidden=64']) == 0


MOST_FIELDS = 110


def test_a_config_is_small_enough_to_be_read(capsys):
  assert main(['train', 'quickstart', '--help-config']) == 0
  lines = capsys.readouterr().out.splitlines()
  found = [line for line in lines if not line.startswith(' ')]
  assert all('=' in line for line in found)
  assert 60 < len(found) <= MOST_FIELDS, len(found)


def test_the_listing_has_every_field_with_type_value_and_meaning(
  experiment, calls, capsys
):
  assert main(['train', experiment, '--help-config', '--set', 'seed=9']) == 0
  listing = capsys.readouterr().out
  lines = listing.splitlines()
  for line, meaning in (
    ('seed=9  (int)', 'Seed of every random choice of the run.'),
    (
      'agent.hidden=32  (int, with commas between several)',
      'Widths of the hidden layers of the MLP heads.',
    ),
    # Inherited.
    ('dynamics.width=128  (int)', 'Model width D.'),
    ('phases.imagination.steps=1000  (int)', 'Train steps.'),
    ('mesh.data=-1  (int)', 'Data-parallel devices.'),
    (
      'env.image_size=none  (2 values (int) with commas between them or none)',
      'Height and width of frames, for simulators and grid worlds; none takes '
      'what they show, of a grid 8 pixels a tile. Craftax has a size of its '
      'own.',
    ),
    (
      'compute.dtype=float32  (one of float32, bfloat16)',
      'Compute dtype; parameters, softmax, norms and losses stay float32.',
    ),
    (
      'eval.horizons=1,4,8,16  (int, with commas between several)',
      'Predicted frames at which dreams are measured, beside the first.',
    ),
  ):
    assert lines[lines.index(line) + 1].strip() == meaning
  assert not calls
  # Members of lists are shown in their list, and by themselves if asked for.
  assert not any(line.startswith('actions.0') for line in lines)
  assert any(line.startswith('actions=[{"name": "action"') for line in lines)

  def leaves(value, name):
    if isinstance(value, dict):
      return [x for k, v in value.items() for x in leaves(v, f'{name}.{k}')]
    return [name[1:]]

  found = configs.fields(Config())
  plain = json.loads(Config().to_json())
  assert plain.pop('format') == 2
  assert [line.split('=')[0] for line in lines[::2]] == leaves(plain, '')
  assert {*leaves(plain, '')} <= {f.name for f in found}
  assert all(f.meaning for f in found)
  # A line of the listing is what --set takes.
  again = [line.split('  (')[0] for line in lines[::2]]
  config = experiments.load(experiment)
  changed = configs.override(config, again)
  assert changed == dataclasses.replace(config, seed=9)


def listed(capsys, *options):
  """Returns the fields that a command lists, as `--set` takes them."""
  assert main(['train', *options]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert all(line.startswith('    ') for line in lines[1::2])
  return [line.split('  (')[0] for line in lines[::2]]


def names(assignments):
  return [assignment.split('=')[0] for assignment in assignments]


def test_a_part_of_the_config_can_be_listed(experiment, calls, capsys):
  show = lambda *options: listed(capsys, experiment, *options)
  every = show('--help-config')
  for part in ('agent', 'dynamics', 'phases', 'phases.imagination', 'data'):
    own = [line for line in every if line.startswith(f'{part}.')]
    found = show('--help-config', part)
    assert [n for n in found if '.0.' not in n] == own and len(own) > 2
  # Not those that merely begin alike.
  assert names(show('--help-config', 'env'))[0] == 'env.name'
  assert not any('eval' in line for line in show('--help-config', 'env'))
  # A field, as it is set; a list, with its members; one of them.
  assert show('--help-config', 'seed', '--set', 'seed=9') == ['seed=9']
  assert show('--set', 'tasks=a', '--help-config', 'tasks') == ['tasks=a']
  own = [f.name for f in dataclasses.fields(ActionComponent)]
  member = [f'actions.0.{name}' for name in own]
  assert names(show('--help-config', 'actions')) == ['actions', *member]
  found = show('--help-config', 'actions.0')
  assert names(found) == member and 'actions.0.size=2' in found
  assert show('--help-config', 'actions.0.size') == ['actions.0.size=2']
  sources = names(show('--help-config', 'data.sources.1', '--data', 'a', 'b'))
  assert sources[0] == 'data.sources.1.path' and len(sources) > 4
  assert not calls


@pytest.mark.parametrize(
  ('part', 'sentence'),
  [
    ('dynamic', 'dynamic: no such field'),
    ('phases.dream', 'phases.dream: no such field'),
    ('learning_rate', 'did you mean phases.tokenizer.learning_rate'),
    ('actions.1', 'actions.1: no such field'),
    ('agent.', 'agent.: no such field'),
  ],
)
def test_a_part_that_there_is_not_is_refused(
  experiment, calls, capsys, part, sentence
):
  assert main(['train', experiment, '--help-config', part]) == 2
  said = capsys.readouterr()
  assert said.err.startswith('dreamer4: ') and said.err.count('\n') == 1
  assert sentence in said.err and not said.out and not calls


def test_a_field_may_be_none():
  assert configs._spell(int | None) == 'int or none'
  assert configs._parse('x', 'none', int | None) is None
  assert configs._parse('x', '3', int | None) == 3


def test_every_field_takes_none_where_it_may_be_none():
  some = configs.override(
    Config(),
    [
      'env.image_size=8,8',
      'data.sources.0.labeled_hours=2',
      'tokenizer.patch_grid=4,5',
    ],
  )
  optional = [f.name for f in configs.fields(some) if 'none' in
              configs._spell(f.type).split()]  # fmt: skip
  assert len(optional) == 3
  for name in optional:
    assert get(configs.override(some, [f'{name}=none']), name) is None


AWKWARD = Config(
  tasks=('reward',),
  data=DataConfig(
    sources=(
      SourceConfig(
        path='none', labeled_hours=0.1, labeled_where=('world=a, b', ' x ')
      ),
      SourceConfig(path='x,y', labeled_where=('noise<=0.5',)),
    ),
  ),
  env=EnvConfig(name='a=b, [c]', image_size=(64, 32)),
  eval=EvalConfig(horizons=(3,)),
)


@pytest.mark.parametrize(
  'config',
  [
    Config(),
    AWKWARD,
    dataclasses.replace(AWKWARD, tasks=('none',)),
    dataclasses.replace(AWKWARD, tasks=('[a',)),
    dataclasses.replace(AWKWARD, tasks=('',)),
  ],
)
def test_every_field_is_shown_as_it_is_set(config):
  other = AWKWARD.edit(
    {'env.name': '?', 'data.sources': AWKWARD.data.sources[:1]}
  )
  for field in configs.fields(config):
    text = f'{field.name}={configs._show(field.value)}'
    assert configs.override(config, [text]) == config, text
    if field.name not in {f.name for f in configs.fields(other)}:
      continue
    changed = configs.override(other, [text])
    assert get(changed, field.name) == field.value, text
  shown = [
    line.split('  (')[0] for line in configs.describe(config).splitlines()[::2]
  ]
  assert configs.override(config, shown) == config


def test_help_mentions_the_listing_and_is_fast_to_import(capsys):
  with pytest.raises(SystemExit) as info:
    main(['train', '--help'])
  said = capsys.readouterr().out
  assert info.value.code == 0
  assert '--help-config' in said and 'dynamics.depth=8' in said
  code = "import sys, dreamer4_jax.cli.main; print('jax' in sys.modules)"
  env = os.environ | {'PYTHONPATH': str(pathlib.Path(__file__).parents[2])}
  child = subprocess.run(
    [sys.executable, '-c', code], env=env, capture_output=True, text=True
  )
  assert child.stdout == 'False\n', child.stderr


def test_the_compilation_cache_can_be_moved(monkeypatch):
  before = jax.config.jax_compilation_cache_dir
  try:
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '/elsewhere')
    enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == '/elsewhere'
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
    enable_compilation_cache()
    found = jax.config.jax_compilation_cache_dir
    assert found.endswith('.cache/dreamer4_jax/xla')
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.5
  finally:
    jax.config.update('jax_compilation_cache_dir', before)


def test_version_and_shipped_experiments(capsys, tmp_path, monkeypatch):
  with pytest.raises(SystemExit) as info:
    main(['--version'])
  assert info.value.code == 0
  assert capsys.readouterr().out.startswith(f'dreamer4 {d4.__version__}')
  monkeypatch.chdir(tmp_path)
  assert main(['quickstart', '--help-config']) == 0
  said = capsys.readouterr().out
  assert 'env.name=navix:Navix-DoorKey-Random-6x6-v0  (text)' in said
  # A file of that name comes first.
  pathlib.Path('quickstart').write_text(EXPERIMENT)
  assert main(['quickstart', '--help-config']) == 0
  said = capsys.readouterr().out
  assert 'env.name=  (text)' in said and 'agent.hidden=32  (int' in said
  assert main(['train', 'quickstrat', '--help-config']) == 2
  assert 'shipped are ' in capsys.readouterr().err


def test_a_missing_extra_is_a_sentence_and_another_import_is_not(
  experiment, calls, monkeypatch, capsys
):
  def absent(*args, **unused):
    raise ImportError("run `pip install 'dreamer4_jax[navix]'`")

  monkeypatch.setattr('dreamer4_jax.training.run.train_phases', absent)
  assert main(['train', experiment]) == 2
  assert 'dreamer4_jax[navix]' in capsys.readouterr().err

  def broken(*args, **unused):
    raise ModuleNotFoundError('no flux', name='flux')

  monkeypatch.setattr('dreamer4_jax.training.run.train_phases', broken)
  with pytest.raises(ModuleNotFoundError):
    main(['train', experiment])


def test_a_reader_that_leaves_early_ends_it_quietly(tmp_path):
  code = 'from dreamer4_jax.cli.main import main; raise SystemExit(main())'
  command = [sys.executable, '-c', code, 'quickstart', '--help-config']
  root = str(pathlib.Path(__file__).parents[2])
  child = subprocess.Popen(
    command,
    env=os.environ | {'PYTHONPATH': root, 'PYTHONUNBUFFERED': '1'},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  child.stdout.close()
  assert child.wait() == 1 and child.stderr.read() == ''
