"""A config refuses what cannot work, naming the field and the value."""

import dataclasses
import json
import operator

import pytest

from dreamer4_jax import config as cfg

# Every field that can be invalid, with invalid values.
BAD = [
  (cfg.TokenizerConfig, 'width', 0),
  (cfg.TokenizerConfig, 'width', 30),
  (cfg.TokenizerConfig, 'num_heads', 0),
  (cfg.TokenizerConfig, 'depth', 0),
  (cfg.TokenizerConfig, 'depth', 6),
  (cfg.TokenizerConfig, 'time_every', 1),
  (cfg.TokenizerConfig, 'context_length', 0),
  (cfg.TokenizerConfig, 'frame_shape', (0, 64, 3)),
  (cfg.TokenizerConfig, 'frame_shape', (64, 64, 0)),
  (cfg.TokenizerConfig, 'patch_size', 0),
  (cfg.TokenizerConfig, 'patch_grid', (3, 4)),
  (cfg.TokenizerConfig, 'patch_grid', (4, 3)),
  (cfg.TokenizerConfig, 'num_latents', 0),
  (cfg.TokenizerConfig, 'bottleneck_dim', 0),
  (cfg.TokenizerConfig, 'bottleneck_gain', 0.0),
  (cfg.DynamicsConfig, 'width', 30),
  (cfg.DynamicsConfig, 'depth', 3),
  (cfg.DynamicsConfig, 'num_kv_heads', 0),
  (cfg.DynamicsConfig, 'num_kv_heads', 3),
  (cfg.DynamicsConfig, 'num_spatial_tokens', 0),
  (cfg.DynamicsConfig, 'num_registers', -1),
  (cfg.DynamicsConfig, 'max_steps', 0),
  (cfg.DynamicsConfig, 'max_steps', 48),
  (cfg.DynamicsConfig, 'context_signal', 0.0),
  (cfg.DynamicsConfig, 'context_signal', 1.0),
  (cfg.TransformerConfig, 'num_kv_heads', 0),
  (cfg.TransformerConfig, 'num_kv_heads', 3),
  (cfg.TransformerConfig, 'mlp_hidden', 0),
  (cfg.TransformerConfig, 'soft_cap', 0.0),
  (cfg.TransformerConfig, 'soft_cap', 81.0),
  (cfg.TransformerConfig, 'unroll', 0),
  (cfg.AgentConfig, 'task_vector_size', -1),
  (cfg.AgentConfig, 'hidden', ()),
  (cfg.AgentConfig, 'hidden', (128, 0)),
  (cfg.AgentConfig, 'distances', 0),
  (cfg.AgentConfig, 'bins', 1),
  (cfg.AgentConfig, 'bins', 64),
  (cfg.OptimizerConfig, 'muon', ('dynamics', 'sleep')),
  (cfg.OptimizerConfig, 'decay_share', 1.5),
  (cfg.OptimizerConfig, 'clip_norm', 0.0),
  (cfg.OptimizerConfig, 'betas', (0.9, 1.0)),
  (cfg.OptimizerConfig, 'betas', (-0.1, 0.9)),
  (cfg.OptimizerConfig, 'ema_decay', 1.0),
  (cfg.ForcingConfig, 'bootstrap_share', 0.0),
  (cfg.ForcingConfig, 'bootstrap_share', 0.3),
  (cfg.ForcingConfig, 'bootstrap_share', 2.0),
  (cfg.ForcingConfig, 'end_share', 1.1),
  (cfg.ForcingConfig, 'clear_share', -0.1),
  (cfg.ForcingConfig, 'low_weight', 2.0),
  (cfg.ForcingConfig, 'event_weight', 0.0),
  (cfg.TokenizerPhase, 'steps', 0),
  (cfg.TokenizerPhase, 'learning_rate', 0.0),
  (cfg.TokenizerPhase, 'batch_size', 0),
  (cfg.TokenizerPhase, 'clip_lengths', ()),
  (cfg.TokenizerPhase, 'clip_lengths', (0,)),
  (cfg.TokenizerPhase, 'clip_lengths', (16, 16)),
  (cfg.TokenizerPhase, 'clip_lengths', (8, 16, 32)),
  (cfg.TokenizerPhase, 'max_mask_ratio', 1.0),
  (cfg.TokenizerPhase, 'latent_noise', -0.1),
  (cfg.DynamicsPhase, 'clip_lengths', (16, 8)),
  (cfg.DynamicsPhase, 'bootstrap_start', -1),
  (cfg.DynamicsPhase, 'relevant_share', 1.5),
  (cfg.FinetunePhase, 'steps', 0),
  (cfg.FinetunePhase, 'relevant_share', 1.5),
  (cfg.FinetunePhase, 'context_share', 1.0),
  (cfg.FinetunePhase, 'baseline_share', -0.1),
  # With the half that is relevant clips, it is more than 1.
  (cfg.FinetunePhase, 'baseline_share', 0.6),
  (cfg.FinetunePhase, 'dynamics_rate', 1.5),
  (cfg.FinetunePhase, 'distance_decay', 0.0),
  (cfg.ImaginationPhase, 'batch_size', 0),
  (cfg.ImaginationPhase, 'relevant_share', -1),
  (cfg.ImaginationPhase, 'horizon', 0),
  (cfg.ImaginationPhase, 'sampling_steps', 3),
  (cfg.ImaginationPhase, 'gamma', 1.1),
  (cfg.ImaginationPhase, 'lam', -0.1),
  (cfg.ImaginationPhase, 'alpha', 2.0),
  (cfg.ImaginationPhase, 'world_rate', -0.5),
  (cfg.SourceConfig, 'weight', 0.0),
  (cfg.SourceConfig, 'weight', float('inf')),
  (cfg.SourceConfig, 'labeled_share', -0.1),
  (cfg.SourceConfig, 'labeled_hours', -1.0),
  (cfg.DataConfig, 'sources', ()),
  (cfg.DataConfig, 'long_every', 0),
  (cfg.DataConfig, 'long_only_share', 1.1),
  (cfg.DataConfig, 'separate_images', 2.0),
  (cfg.DataConfig, 'novel_share', -0.2),
  (cfg.DataConfig, 'switch_tasks', -0.2),
  (cfg.DataConfig, 'threads', 0),
  (cfg.DataConfig, 'lead', -1),
  (cfg.SavingConfig, 'log_every', 0),
  (cfg.SavingConfig, 'checkpoint_every', 0),
  (cfg.SavingConfig, 'best_metric', 'psnr'),
  (cfg.SavingConfig, 'best_metric', 'sleep/psnr'),
  (cfg.SavingConfig, 'best_metric', 'tokenizer/'),
  (cfg.SavingConfig, 'best_metric', 'max:'),
  (cfg.SavingConfig, 'best_metric', 'most:tokenizer/psnr'),
  (cfg.EvalConfig, 'clips', 0),
  (cfg.EvalConfig, 'context_frames', 0),
  (cfg.EvalConfig, 'horizons', ()),
  (cfg.EvalConfig, 'horizons', (4, 0)),
  (cfg.EvalConfig, 'episodes', 0),
  (cfg.EvalConfig, 'seed', -1),
  (cfg.EvalConfig, 'temperatures', (0.5, 0.0)),
  (cfg.EvalConfig, 'temperatures', (1.0, -0.5)),
  (cfg.EvalConfig, 'temperatures', (1.0, 0.5, 0.5)),
]
# Fields for which a config refuses no number.
ANY = {
  'rope_base',
  'bin_limit',
  'warmup_steps',
  'weight_decay',
  'beta',
}
# Environments refuse what they cannot do; components have tests of their own.
ELSEWHERE = {
  cfg.Config,
  cfg.EnvConfig,
  cfg.MeshConfig,
  cfg.ActionComponent,
  cfg.VectorComponent,
}


@pytest.mark.parametrize(('kind', 'field', 'value'), BAD)
def test_a_bad_value_is_named_with_a_remedy(kind, field, value):
  with pytest.raises(ValueError) as error:
    kind(**{field: value})
  message = str(error.value)
  start = f'{kind.__name__}.{field} = {value!r}: '
  assert message.startswith(start) and len(message) > len(start) + 5


def test_every_number_is_in_the_table():
  found = {
    (base, field) for kind, field, _ in BAD for base in kind.__mro__[:-1]
  }
  kinds = [
    kind for kind in vars(cfg).values() if dataclasses.is_dataclass(kind)
  ]
  kinds += cfg.TokenizerConfig.__mro__[1:-1]
  assert len(kinds) > 20
  for kind in set(kinds) - ELSEWHERE:
    for name, annotation in kind.__annotations__.items():
      if 'int' in annotation or 'float' in annotation:
        assert (kind, name) in found or name in ANY, (kind, name)


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('patch_grid', (4, 4)),
    ('patch_grid', (9, 5)),
    ('bootstrap_share', 1 / 3),
    ('bootstrap_share', 1.0),
    ('low_weight', 1.0),
    ('clip_lengths', (16, 48)),
    ('labeled_hours', 0.0),
    ('best_metric', 'loss'),
    ('best_metric', 'min:loss'),
    ('best_metric', 'max:tokenizer/psnr'),
    ('mlp_hidden', 1),
    ('soft_cap', None),
    ('soft_cap', 80.0),
  ],
)
def test_what_is_next_to_a_bad_value_will_do(field, value):
  kind = next(kind for kind, name, _ in BAD if name == field)
  assert getattr(kind(**{field: value}), field) == value


@pytest.mark.parametrize(
  ('overrides', 'named'),
  [
    ({'size': 1}, 'size = 1'),
    ({'low': 1.0, 'high': 1.0}, 'low = 1.0'),
    ({'bins': 1}, 'bins = 1'),
  ],
)
def test_a_bad_action_component_is_named(overrides, named):
  good = {'name': 'stick', 'kind': 'categorical', 'size': 3}
  with pytest.raises(ValueError, match=r'actions\[stick\]\.') as error:
    cfg.ActionComponent(**{**good, **overrides})
  assert named in str(error.value)


@pytest.mark.parametrize(
  ('fields', 'named'),
  [
    ({'actions': ()}, 'actions = []'),
    (
      {'actions': (cfg.ActionComponent(name='a', kind='binary', size=1),) * 2},
      "actions = ['a', 'a']",
    ),
    (
      {'vectors': (cfg.VectorComponent(name='arm', size=1),) * 2},
      "vectors = ['arm', 'arm']",
    ),
    ({'tasks': ()}, 'tasks = ()'),
    ({'tasks': ('a', 'a')}, "tasks = ('a', 'a')"),
    ({'prompt': ('sleep',)}, "prompt = 'sleep'"),
    ({'prompt': ('reward:0',)}, "prompt = 'reward:0'"),
    ({'prompt': ('reward:many',)}, "prompt = 'reward:many'"),
    ({'dynamics.num_spatial_tokens': 7}, 'dynamics.num_spatial_tokens = 7'),
    ({'accumulate': 0}, 'Config.accumulate = 0'),
    ({'accumulate': 3}, 'accumulate = 3'),
    ({'agent.task_vector_size': 3}, 'agent.task_vector_size = 3'),
    ({'data.task_vectors': 'x.npy'}, 'agent.task_vector_size = 0'),
    ({'dynamics.max_steps': 2}, 'phases.imagination.sampling_steps = 4'),
  ],
)
def test_groups_that_do_not_fit_each_other_are_named(fields, named):
  with pytest.raises(ValueError) as error:
    cfg.Config().edit(fields)
  message = str(error.value)
  assert message.startswith(named + ': ') and len(message) > len(named) + 7


def test_parts_of_a_batch_divide_the_batches_of_all_phases():
  sizes = {f'phases.{name}.batch_size': 12 for name in cfg.PHASES}
  whole = cfg.Config().edit(sizes | {'accumulate': 3})
  assert whole.accumulate == 3
  for name in cfg.PHASES:
    text = rf'accumulate = 3: must divide phases\.{name}\.batch_size = 16'
    with pytest.raises(ValueError, match=text):
      whole.edit({f'phases.{name}.batch_size': 16})


@pytest.mark.parametrize('sizes', [(0, 1, 1), (-1, -1, 1), (1, 1, -2)])
def test_a_bad_mesh_is_named(sizes):
  data, fsdp, tensor = sizes
  with pytest.raises(ValueError, match='MeshConfig = '):
    cfg.MeshConfig(data=data, fsdp=fsdp, tensor=tensor)


@pytest.mark.parametrize('phase', cfg.PHASES)
def test_a_context_longer_than_the_clips_of_a_phase_is_named(phase):
  model = 'tokenizer' if phase == 'tokenizer' else 'dynamics'
  enough, short = {'clip_lengths': (16, 20)}, {'clip_lengths': (16, 19)}
  if phase == 'imagination':
    enough, short = {'clip_lengths': (8,), 'horizon': 13}, {'horizon': 12}

  def config(changes):
    fields = {f'phases.{name}.clip_lengths': (64,) for name in cfg.PHASES}
    fields |= {f'phases.{phase}.{k}': v for k, v in (enough | changes).items()}
    return cfg.Config().edit({f'{model}.context_length': 20} | fields)

  config({}).check_context(cfg.PHASES)
  text = rf'{model}.context_length = 20: .* 19 frames.*phases.{phase}.clip_len'
  with pytest.raises(ValueError, match=text):
    config(short).check_context(cfg.PHASES)
  config(short).check_context([p for p in cfg.PHASES if p != phase])
  if phase == 'imagination':
    with pytest.raises(
      ValueError, match=r'dynamics.context_length = 20: .* 8 '
    ):
      config({'world_rate': 0.5}).check_context(cfg.PHASES)


def test_baselines_have_names_where_they_have_clips():
  base = cfg.Config()
  some = {'phases.finetune.baseline_share': 0.1}
  vectors = {'agent.task_vector_size': 3, 'data.task_vectors': 'x.npy'}
  assert base.baselines == () == base.edit(vectors).baselines
  assert base.edit(some).baselines == ('all', 'best')
  with pytest.raises(
    ValueError, match=r'phases.finetune.baseline_share = 0.1: needs tasks by id'
  ):
    base.edit(some | vectors)


def test_latents_that_are_aligned_are_as_many_as_patches():
  cfg.TokenizerConfig(num_latents=16, aligned_latents=True)
  sentence = 'aligned_latents = True: needs num_latents = 8 .* patches, 16'
  with pytest.raises(ValueError, match=sentence):
    cfg.TokenizerConfig(num_latents=8, aligned_latents=True)


def test_a_prompt_is_a_list_of_tasks_and_counts():
  config = cfg.Config(tasks=('wood', 'table', 'a:b'))
  assert config.stages() == ((0, 1), (1, 1), (2, 1)) and config.milestones
  asked = config.edit({'prompt': ('wood:4', 'table', 'wood', 'a:b', 'a:b:2')})
  assert asked.stages() == ((0, 4), (1, 1), (0, 1), (2, 1), (2, 2))
  assert not asked.milestones
  assert asked.stages(('table',)) == ((1, 1),)
  assert config.edit({'prompt': ('table', 'wood')}).milestones
  assert not config.edit({'prompt': ('table', 'wood', 'table')}).milestones


def test_fields_that_runs_no_longer_have_are_passed_over():
  plain = json.loads(cfg.Config().to_json())
  plain['saving']['keep_last'] = 5
  plain['eval']['reality_episodes'] = 7
  plain['env']['tile'] = 8
  assert cfg.Config.from_json(json.dumps(plain)) == cfg.Config()
  plain['env']['tile'] = 4
  small = cfg.Config.from_json(json.dumps(plain))
  assert small.env.image_size == small.tokenizer.frame_shape[:2]
  plain['saving']['keep_first'] = 5
  with pytest.raises(ValueError, match=r'saving\.keep_first: no config has'):
    cfg.Config.from_json(json.dumps(plain))


def test_what_follows_from_fields_is_not_said_again():
  config = cfg.Config(
    tasks=('a', 'b', 'c'),
    tokenizer=cfg.TokenizerConfig(frame_shape=(50, 33, 1)),
    data=cfg.DataConfig(
      sources=(cfg.SourceConfig(path='one'), cfg.SourceConfig(path='two')),
      splits=('mine', 'yours'),
    ),
  )
  assert config.num_tasks == 3
  assert config.tokenizer.grid == (4, 3)
  assert config.tokenizer.latent_shape == (16, 16)
  data = config.data
  assert (data.path, data.train_split, data.eval_split) == (
    'one',
    'mine',
    'yours',
  )
  lengths = [
    (phase.clip_length, phase.longest_clip)
    for phase in (
      cfg.DynamicsPhase(clip_lengths=(7,)),
      cfg.DynamicsPhase(clip_lengths=(7, 9)),
    )
  ]
  assert lengths == [(7, 7), (7, 9)]
  assert [type(phase) for phase in config.phases] == [
    cfg.TokenizerPhase,
    cfg.DynamicsPhase,
    cfg.FinetunePhase,
    cfg.ImaginationPhase,
  ]


def test_fields_that_only_fit_each_other_are_edited_at_once():
  base = cfg.Config()
  together = [
    # Within a group, and across two.
    {'dynamics.width': 60, 'dynamics.num_heads': 3, 'dynamics.num_kv_heads': 3},
    {'agent.task_vector_size': 3, 'data.task_vectors': 'x.npy'},
  ]
  for fields in together:
    for name, value in fields.items():
      with pytest.raises(ValueError):
        base.edit({name: value})
    found = base.edit(fields)
    for name, value in fields.items():
      assert operator.attrgetter(name)(found) == value
    # All else is unchanged, and so is the first config.
    before = {name: operator.attrgetter(name)(base) for name in fields}
    assert found.edit(before) == base == cfg.Config()


def test_members_of_tuples_are_edited_by_number():
  sources = (cfg.SourceConfig(path='a'), cfg.SourceConfig(path='b'))
  base = cfg.Config().edit({'data.sources': sources})
  found = base.edit({'data.sources.1.weight': 2.0, 'tasks.0': 'key'})
  assert found.data.sources == (
    sources[0],
    cfg.SourceConfig(path='b', weight=2.0),
  )
  assert found.tasks == ('key',) and base.data.sources == sources
  # A whole member, and a member of a replaced tuple, in either order.
  other = cfg.SourceConfig(path='c')
  assert base.edit({'data.sources.0': other}).data.sources[0] == other
  for fields in (
    {'data.sources': sources[:1], 'data.sources.0.weight': 3.0},
    {'data.sources.0.weight': 3.0, 'data.sources': sources[:1]},
  ):
    assert base.edit(fields).data.sources == (
      cfg.SourceConfig(path='a', weight=3.0),
    )


@pytest.mark.parametrize(
  ('name', 'sentence'),
  [
    ('name', 'name: no such field in Config'),
    ('dynamics.deep', 'dynamics.deep: no such field in DynamicsConfig'),
    # Worked out, not a field.
    ('data.path', 'data.path: no such field in DataConfig'),
    ('num_tasks', 'num_tasks: no such field in Config'),
    ('data.sources.1.path', 'data.sources.1: no such field in tuple'),
    ('data.sources.-1.path', 'data.sources.-1: no such field in tuple'),
    ('sleep.steps', 'sleep: no such field in Config'),
    ('seed.x', 'seed.x: no such field in int'),
  ],
)
def test_an_unknown_field_is_not_edited(name, sentence):
  with pytest.raises(ValueError) as error:
    cfg.Config().edit({name: 1})
  assert str(error.value) == sentence


def test_an_edited_value_is_refused_as_any_other():
  with pytest.raises(ValueError, match=r'^DynamicsPhase\.steps = 0: must be'):
    cfg.Config().edit({'phases.dynamics.steps': 0})


def rich_config():
  """A config with tuples, nothing, and groups in tuples."""
  return cfg.Config().edit(
    {
      'vectors': (cfg.VectorComponent(name='arm', size=2, std=(0.5, 2.0)),),
      'tokenizer.patch_grid': (5, 6),
      'agent.hidden': (8, 16, 32),
      'phases.dynamics.clip_lengths': (4, 12),
      'data.sources': (
        cfg.SourceConfig(path='a', labeled_where=('noise<=0.5',)),
        cfg.SourceConfig(path='b', labeled_hours=1.5),
      ),
      'optimizer.muon': ('dynamics',),
      'eval.horizons': (1, 2),
      'env.image_size': (8, 9),
    }
  )


def test_a_config_comes_back_from_json_with_the_number_of_its_format():
  for config in (cfg.Config(), rich_config()):
    text = config.to_json()
    assert json.loads(text)['format'] == 2
    found = cfg.Config.from_json(text)
    assert found == config and hash(found) == hash(config)
    assert found.to_json() == text
  # What it leaves out has its default.
  assert cfg.Config.from_json('{"format": 2}') == cfg.Config()


@pytest.mark.parametrize('number', [None, 1, 3, '2'])
def test_another_format_is_refused(number):
  # None: configs written before there was a number have none.
  plain = json.loads(cfg.Config().to_json())
  del plain['format']
  if number is not None:
    plain['format'] = number
  text = rf'^format = {number or 1!r}: .* another version .* reads format 2; '
  with pytest.raises(ValueError, match=text):
    cfg.Config.from_json(json.dumps(plain))


@pytest.mark.parametrize(
  ('name', 'where'),
  [
    ('name', []),
    ('agent.num_tasks', ['agent']),
    ('phases.dynamics.long_clip_length', ['phases', 'dynamics']),
    ('data.sources.1.frames', ['data', 'sources', 1]),
    ('vectors.0.unit', ['vectors', 0]),
  ],
)
def test_an_unknown_field_of_json_is_refused(name, where):
  plain = json.loads(rich_config().to_json())
  group = plain
  for key in where:
    group = group[key]
  group[name.rpartition('.')[2]] = 1
  with pytest.raises(ValueError) as error:
    cfg.Config.from_json(json.dumps(plain))
  assert str(error.value) == f'{name}: no config has such a field; remove it'


@pytest.mark.parametrize(
  ('text', 'sentence'),
  [
    ('[1]', r"'\[1\]': is no config"),
    ('{"format": 2, "seed": "x"}', r'seed'),
    ('{"format": 2, "compute": {"dtype": "int8"}}', r'compute\.dtype'),
    ('{"format": 2, "data": {"splits": ["a"]}}', r'data\.splits'),
    (
      '{"format": 2, "dynamics": {"width": -3}}',
      r'DynamicsConfig\.width = -3: must be at least 1',
    ),
    ('{"format": 2, ', 'truncated'),
  ],
)
def test_a_wrong_value_of_json_is_named(text, sentence):
  with pytest.raises(ValueError, match=sentence):
    cfg.Config.from_json(text)
