"""A config refuses what cannot work, naming the field and the value."""

import dataclasses

import pytest

from dreamer4_jax import config as cfg

BAD = [
  (cfg.TokenizerConfig, 'width', 30),
  (cfg.TokenizerConfig, 'num_heads', 0),
  (cfg.TokenizerConfig, 'num_kv_heads', 3),
  (cfg.TokenizerConfig, 'mlp_hidden', 0),
  (cfg.TokenizerConfig, 'context_length', 0),
  (cfg.TokenizerConfig, 'soft_cap', 0.0),
  (cfg.DynamicsConfig, 'soft_cap', 81.0),
  (cfg.TokenizerConfig, 'bottleneck_gain', 0.0),
  (cfg.TokenizerConfig, 'image_height', 0),
  (cfg.TokenizerConfig, 'patch_size', 0),
  (cfg.TokenizerConfig, 'num_latents', 0),
  (cfg.TokenizerConfig, 'encoder_depth', 6),
  (cfg.TokenizerConfig, 'decoder_depth', 0),
  (cfg.DynamicsConfig, 'depth', 3),
  (cfg.DynamicsConfig, 'num_spatial_tokens', 0),
  (cfg.DynamicsConfig, 'num_action_tokens', 0),
  (cfg.DynamicsConfig, 'num_registers', -1),
  (cfg.DynamicsConfig, 'max_steps', 48),
  (cfg.DynamicsConfig, 'context_signal', 1.0),
  (cfg.DynamicsConfig, 'whitening_floor', -0.1),
  (cfg.AgentConfig, 'num_tasks', 0),
  (cfg.AgentConfig, 'distances', 0),
  (cfg.AgentConfig, 'bins', 64),
  (cfg.OptimizerConfig, 'learning_rate', 0.0),
  (cfg.OptimizerConfig, 'ema_decay', 1.0),
  (cfg.OptimizerConfig, 'decay_share', 1.5),
  (cfg.OptimizerConfig, 'clip_norm', -1.0),
  (cfg.TokenizerPhase, 'steps', 0),
  (cfg.TokenizerPhase, 'batch_size', 0),
  (cfg.TokenizerPhase, 'long_clip_length', 16),
  (cfg.TokenizerPhase, 'separate_images', 2.0),
  (cfg.TokenizerPhase, 'keep_last', 0),
  (cfg.TokenizerPhase, 'keep_best', -1),
  (cfg.TokenizerPhase, 'keep_best', 1),
  (cfg.TokenizerPhase, 'max_mask_ratio', 1.0),
  (cfg.TokenizerPhase, 'vector_weight', -1.0),
  (cfg.DynamicsPhase, 'bootstrap_rows', 0.3),
  (cfg.DynamicsPhase, 'bootstrap_every', 0),
  (cfg.DynamicsPhase, 'bootstrap_start', -1),
  (cfg.FinetunePhase, 'context_share', 1.0),
  (cfg.TokenizerPhase, 'long_only_share', 0.1),
  (cfg.DynamicsPhase, 'end_share', 1.1),
  (cfg.FinetunePhase, 'end_share', -0.1),
  (cfg.FinetunePhase, 'distance_decay', 0.0),
  (cfg.FinetunePhase, 'dynamics_rate', 1.5),
  (cfg.FinetunePhase, 'relevant_share', 1.5),
  (cfg.FinetunePhase, 'baseline_share', -0.1),
  # With the half of relevant clips it is more than all.
  (cfg.FinetunePhase, 'baseline_share', 0.6),
  (cfg.ImaginationPhase, 'relevant_share', -1),
  (cfg.OptimizerConfig, 'final_scale', 1.5),
  (cfg.DataConfig, 'labeled_share', 1.2),
  (cfg.DataConfig, 'threads', 0),
  (cfg.DataConfig, 'ahead', 0),
  (cfg.SourceConfig, 'weight', 0.0),
  (cfg.SourceConfig, 'labeled_share', -0.1),
  (cfg.SourceConfig, 'labeled_hours', -1.0),
  (cfg.DataConfig, 'switch_tasks', -0.2),
  (cfg.EvalConfig, 'frames', 0),
  (cfg.EvalConfig, 'clips', 0),
  (cfg.EvalConfig, 'episodes', 0),
  (cfg.EvalConfig, 'context_frames', 0),
  (cfg.EvalConfig, 'horizons', ()),
  (cfg.EvalConfig, 'horizons', (4, 0)),
  (cfg.EvalConfig, 'seed', -1),
  (cfg.EvalConfig, 'temperatures', (0.5, 0.0)),
  (cfg.EvalConfig, 'temperatures', (1.0, -0.5)),
  (cfg.EvalConfig, 'temperatures', (1.0, 0.5, 0.5)),
  (cfg.EvalConfig, 'reality_episodes', -1),
  (cfg.EvalConfig, 'reality_starts', ()),
  (cfg.EvalConfig, 'reality_starts', (4, -1)),
  (cfg.ImaginationPhase, 'horizon', 0),
  (cfg.ImaginationPhase, 'sampling_steps', 3),
  (cfg.ImaginationPhase, 'gamma', 1.1),
  (cfg.ImaginationPhase, 'lam', -0.1),
  (cfg.ImaginationPhase, 'alpha', 2.0),
]


@pytest.mark.parametrize(('kind', 'field', 'value'), BAD)
def test_a_bad_value_is_named_with_a_remedy(kind, field, value):
  with pytest.raises(ValueError) as error:
    kind(**{field: value})
  message = str(error.value)
  start = f'{kind.__name__}.{field} = {value!r}: '
  assert message.startswith(start) and len(message) > len(start) + 5


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


def replaced(room, **fields):
  """A whole config in which one room differs."""
  whole = cfg.Config()
  return {room: dataclasses.replace(getattr(whole, room), **fields)}


@pytest.mark.parametrize(
  ('overrides', 'named'),
  [
    ({'actions': ()}, 'actions = []'),
    (
      {'actions': (cfg.ActionComponent(name='a', kind='binary', size=1),) * 2},
      "actions = ['a', 'a']",
    ),
    (
      replaced('dynamics', num_spatial_tokens=7),
      'dynamics.num_spatial_tokens = 7',
    ),
    ({'tasks': ('one', 'two')}, 'agent.num_tasks = 1'),
    (
      replaced('dynamics', max_steps=2),
      'phases.imagination.sampling_steps = 4',
    ),
  ],
)
def test_rooms_that_do_not_fit_each_other_are_named(overrides, named):
  with pytest.raises(ValueError) as error:
    cfg.Config(**overrides)
  assert str(error.value).startswith(named + ': ')


@pytest.mark.parametrize('sizes', [(0, 1, 1), (-1, -1, 1), (1, 1, -2)])
def test_a_bad_mesh_is_named(sizes):
  data, fsdp, tensor = sizes
  with pytest.raises(ValueError, match='MeshConfig = '):
    cfg.MeshConfig(data=data, fsdp=fsdp, tensor=tensor)


@pytest.mark.parametrize('phase', cfg.PHASES)
def test_a_context_longer_than_the_clips_of_a_phase_is_named(phase):
  room = 'tokenizer' if phase == 'tokenizer' else 'dynamics'
  trained = dict(clip_length=16, long_clip_length=20)
  if phase == 'imagination':
    trained = dict(clip_length=8, horizon=13)

  def config(**changes):
    enough = dict(clip_length=64)
    fields = {name: enough for name in cfg.PHASES}
    fields[phase] = trained | changes
    base = cfg.Config()
    return dataclasses.replace(
      base,
      **{room: dataclasses.replace(getattr(base, room), context_length=20)},
      phases=dataclasses.replace(
        base.phases,
        **{
          name: dataclasses.replace(getattr(base.phases, name), **own)
          for name, own in fields.items()
        },
      ),
    )

  config().check_context(cfg.PHASES)
  key = 'horizon' if phase == 'imagination' else 'long_clip_length'
  short = config(**{key: trained[key] - 1})
  text = rf'{room}.context_length = 20: .* 19 frames.*phases.{phase}.clip'
  with pytest.raises(ValueError, match=text):
    short.check_context(cfg.PHASES)
  short.check_context([p for p in cfg.PHASES if p != phase])
  if phase == 'imagination':
    with pytest.raises(
      ValueError, match=r'dynamics.context_length = 20: .* 8 '
    ):
      config(world_rate=0.5).check_context(cfg.PHASES)


def with_baselines(share, **agent):
  base = cfg.Config()
  finetune = dataclasses.replace(base.phases.finetune, baseline_share=share)
  return dataclasses.replace(
    base,
    phases=dataclasses.replace(base.phases, finetune=finetune),
    agent=dataclasses.replace(base.agent, **agent),
    data=cfg.DataConfig(task_vectors='x.npy' if agent else ''),
  )


def test_baselines_have_names_where_they_have_clips():
  assert with_baselines(0.0).baselines == ()
  assert with_baselines(0.1).baselines == ('all', 'best')
  with_baselines(0.0, task_vector_size=3)
  with pytest.raises(
    ValueError, match=r'phases.finetune.baseline_share = 0.1: needs tasks by id'
  ):
    with_baselines(0.1, task_vector_size=3)


def test_latents_that_are_aligned_are_as_many_as_patches():
  cfg.TokenizerConfig(num_latents=16, aligned_latents=True)
  sentence = 'aligned_latents = True: needs num_latents = 8 .* patches, 16'
  with pytest.raises(ValueError, match=sentence):
    cfg.TokenizerConfig(num_latents=8, aligned_latents=True)


def test_a_soft_cap_may_be_none_and_comes_back_from_json():
  whole = cfg.Config(**replaced('dynamics', soft_cap=None))
  assert '"soft_cap": null' in whole.to_json()
  found = cfg.Config.from_json(whole.to_json())
  assert found == whole and found.dynamics.stack(4).soft_cap is None
  assert found.tokenizer.soft_cap == 50.0
  # Saved configs have the fields that they had.
  assert 'fast_gradient' not in whole.to_json()
