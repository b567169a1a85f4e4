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
config = Config(name='toy', agent=AgentConfig(hidden=32))
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
  assert main(['train', experiment, '--set', 'agent.layers=3', 'seed=5']) == 0
  ((config, run_dir, phases),) = calls
  assert (config.name, config.agent.hidden) == ('toy', 32)
  assert (config.agent.layers, config.seed) == (3, 5)
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


def get(config, name):
  for part in name.split('.'):
    config = config[int(part)] if part.isdigit() else getattr(config, part)
  return config


@pytest.mark.parametrize(
  'text, value',
  [
    ('name=a=b', 'a=b'),
    ('dynamics.depth=12', 12),
    ('phases.dynamics.optimizer.b1=0.5', 0.5),
    ('dynamics.remat=full', 'full'),
    ('dynamics.dtype=bfloat16', 'bfloat16'),
    ('phases.dynamics.optimizer.learning_rate=3e-4', 3e-4),
    ('phases.dynamics.optimizer.weight_decay=1', 1.0),
    ('phases.imagination.kl_direction=prior_policy', 'prior_policy'),
    ('eval.horizons=1,2', (1, 2)),
    ('eval.horizons=[3]', (3,)),
    ('tasks=open door', ('open door',)),
    ('env.image_size=64,32', (64, 32)),
    ('env.image_size=[64, 32]', (64, 32)),
    ('data.labeled_hours=1.5', 1.5),
    ('actions.0.size=7', 7),
    ('mesh.data=-1', -1),
    ('data.path=', ''),
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
  both = ['tasks=a,b', 'agent.num_tasks=2']
  config = configs.override(Config(), both)
  expected = dataclasses.replace(
    Config(),
    tasks=('a', 'b'),
    agent=dataclasses.replace(Config().agent, num_tasks=2),
  )
  assert config == expected
  for one in both:
    with pytest.raises(ValueError, match='number of tasks'):
      configs.override(Config(), [one])


MISTAKES = [
  ('dynamics.depht=8', 'dynamics.depht: no such field; did you mean dynamics.'),
  ('depth=8', 'depth: no such field; did you mean dynamics.depth'),
  ('zzz=8', 'zzz: no such field; --help-config lists all'),
  ('mesh=8', 'mesh: is a group; set one of mesh.data, mesh.fsdp, mesh.tensor'),
  ('actions.1.size=8', 'actions.1.size: no such field; did you mean actions.0'),
  ('dynamics.depth', '--set dynamics.depth: must have the form name=value'),
  ('dynamics.depth=deep', "dynamics.depth = 'deep': must be int"),
  ('dynamics.depth=6', 'DynamicsConfig.depth = 6: must be a positive multiple'),
  ('dynamics.dtype=int8', "'int8': must be one of float32, bfloat16"),
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
    (EXPERIMENT.replace('32', '0'), 'AgentConfig.hidden = 0: must be at least'),
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


def test_the_listing_has_every_field_with_type_value_and_meaning(
  experiment, calls, capsys
):
  assert main(['train', experiment, '--help-config', '--set', 'seed=9']) == 0
  listing = capsys.readouterr().out
  lines = listing.splitlines()
  for line, meaning in (
    ('seed=9  (int)', 'Seed of every random choice of the run.'),
    ('agent.hidden=32  (int)', 'Width of the MLP heads.'),
    # Inherited from a private base class.
    ('dynamics.width=128  (int)', 'Model width D.'),
    ('actions.0.size=2  (int)', 'Dimensions, classes or bits.'),
    (
      'phases.imagination.optimizer.name=adamw  (one of adamw, muon)',
      'Update rule.',
    ),
    (
      'eval.horizons=1,4,8,16  (int, with commas between several)',
      'Predicted frames at which dreams are measured, beside the first.',
    ),
  ):
    assert lines[lines.index(line) + 1].strip() == meaning
  assert not calls

  def leaves(value, name):
    if isinstance(value, dict):
      return [x for k, v in value.items() for x in leaves(v, f'{name}.{k}')]
    return [name[1:]]

  found = configs.fields(Config())
  plain = leaves(json.loads(Config().to_json()), '')
  assert set(plain) <= {f.name for f in found} and len(plain) > 100
  assert all(f.meaning for f in found)
  # A line of the listing is what --set takes.
  again = [line.split('  (')[0] for line in lines[::2]]
  config = experiments.load(experiment)
  changed = configs.override(config, again)
  assert changed == dataclasses.replace(config, seed=9)


def test_a_field_may_be_none():
  assert configs._spell(int | None) == 'int or none'
  assert configs._parse('x', 'none', int | None) is None
  assert configs._parse('x', '3', int | None) == 3


def test_every_field_takes_none_where_it_may_be_none():
  some = configs.override(
    Config(), ['env.image_size=8,8', 'data.labeled_hours=2']
  )
  optional = [f.name for f in configs.fields(some) if 'none' in
              configs._spell(f.type).split()]  # fmt: skip
  assert {'env.image_size', 'data.labeled_hours'} <= {*optional}
  for name in optional:
    assert get(configs.override(some, [f'{name}=none']), name) is None


AWKWARD = Config(
  name='a=b, [c]',
  tasks=('reward',),
  data=DataConfig(
    path='none',
    labeled_hours=0.1,
    labeled_where=('world=a, b', ' x '),
    more=(SourceConfig(path='x,y', labeled_where=('noise<=0.5',)),),
  ),
  env=EnvConfig(name='navix:x', image_size=(64, 32)),
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
  other = dataclasses.replace(
    AWKWARD, name='?', data=dataclasses.replace(AWKWARD.data, more=())
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
  assert said.startswith('name=quickstart ')
  # A file of that name comes first.
  pathlib.Path('quickstart').write_text(EXPERIMENT)
  assert main(['quickstart', '--help-config']) == 0
  assert capsys.readouterr().out.startswith('name=toy ')
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
