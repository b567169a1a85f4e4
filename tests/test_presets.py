import dataclasses
import functools
import math
import operator

from flax import linen as nn
import jax
import pytest

from dreamer4_jax.config import (
  PHASES,
  ActionComponent,
  ComputeConfig,
  Config,
  TokenizerConfig,
  presets,
)
from dreamer4_jax.models import World

ACTIONS = (ActionComponent(name='action', kind='categorical', size=10),)


def own_config(name):
  preset = presets.PRESETS[name]
  return Config(
    actions=ACTIONS, tokenizer=preset.tokenizer, dynamics=preset.dynamics
  )


@functools.cache
def count(name):
  """Parameters in millions by module, without a byte of them."""
  world = World.from_config(own_config(name))
  params = jax.eval_shape(
    lambda key: nn.meta.unbox(world.init(key, ('tokenizer', 'dynamics'))),
    jax.random.key(0),
  )
  return {
    module: sum(math.prod(x.shape) for x in jax.tree.leaves(tree)) / 1e6
    for module, tree in params.items()
  }


def test_paper_has_the_papers_sizes():
  assert count('paper') == {
    'tokenizer': pytest.approx(400, rel=0.05),
    'dynamics': pytest.approx(1600, rel=0.05),
  }


@pytest.mark.parametrize('name, total', [('small', 20), ('base', 100)])
def test_sizes_are_what_they_are_called(name, total):
  assert sum(count(name).values()) == pytest.approx(total, rel=0.05)


def test_tiny_has_less_than_a_million():
  assert sum(count('tiny').values()) < 1


@pytest.mark.parametrize('name', presets.PRESETS)
def test_the_table_in_the_docstring_holds(name):
  (row,) = (
    line.strip('|').split('|')
    for line in presets.__doc__.splitlines()
    if line.startswith(f'| {name} ')
  )
  height, width, _ = presets.PRESETS[name].tokenizer.frame_shape
  assert row[1].strip() == f'{height}x{width}'
  counted = count(name)
  assert [float(row[2]), float(row[3])] == pytest.approx(
    [counted['tokenizer'], counted['dynamics']], abs=0.05
  )


def test_paper_has_the_papers_tokens():
  t, d = presets.PAPER.tokenizer, presets.PAPER.dynamics
  assert (t.grid, math.prod(t.grid)) == ((24, 40), 960)
  assert (t.grid[0] * t.patch_size, t.grid[1] * t.patch_size) == (384, 640)
  world = World.from_config(own_config('paper'))
  assert (t.num_latents, t.bottleneck_dim) == (512, 16)
  assert (d.num_spatial_tokens, world.channels) == (256, 32)
  assert d.context_length == 192 and d.num_kv_heads < d.num_heads


def mentioned(preset):
  """Dotted names of the fields that a preset has a say in."""
  groups = {'tokenizer', 'dynamics', 'compute'}
  fields = {f'phases.{phase}': own for phase, own in preset.phases.items()}
  fields |= {name: getattr(preset, name) for name in ('agent', 'forcing')}
  fields['data'] = preset.data
  return groups | {f'{group}.{k}' for group, own in fields.items() for k in own}


@pytest.mark.parametrize('name', presets.PRESETS)
def test_apply_keeps_all_but_the_sizes_and_what_fits_them(name):
  before = Config(
    actions=ACTIONS,
    tasks=('a', 'b'),
    tokenizer=TokenizerConfig(frame_shape=(48, 80, 1)),
  ).edit(
    {
      'compute.remat': 'dots',
      'agent.distances': 3,
      'forcing.bootstrap_share': 0.5,
      'forcing.end_share': 0.25,
      'data.separate_images': 0.1,
      'data.novel_share': 0.2,
      'data.sources.0.path': 'here',
      'saving.log_every': 7,
      'phases.dynamics.steps': 11,
      'phases.finetune.relevant_share': 0.25,
    }
  )
  preset = presets.PRESETS[name]
  after = presets.apply(before, name)
  assert after.tokenizer == dataclasses.replace(
    preset.tokenizer, frame_shape=(48, 80, 1), patch_grid=None
  )
  assert after.dynamics == preset.dynamics
  # Nothing is left of the compute settings of another size.
  assert after.compute == ComputeConfig(**preset.compute)
  get = lambda config, field: operator.attrgetter(field)(config)
  for phase, fields in preset.phases.items():
    for field, value in fields.items():
      assert get(after, f'phases.{phase}.{field}') == value
  kept = {field: get(before, field) for field in mentioned(preset)}
  assert after.edit(kept) == before
  assert Config.from_json(after.to_json()) == after


def test_a_preset_pads_frames_of_its_own_size_alone():
  grid = lambda shape: (
    (
      presets.apply(Config().edit({'tokenizer.frame_shape': shape}), 'paper')
    ).tokenizer.grid
  )
  assert grid((360, 640, 3)) == grid((360, 640, 1)) == (24, 40)
  assert grid((64, 64, 3)) == (4, 4)
  own = {'tokenizer.frame_shape': (64, 64, 3), 'tokenizer.patch_grid': (5, 6)}
  assert presets.apply(Config().edit(own), 'paper').tokenizer.grid == (5, 6)


@pytest.mark.parametrize('name', presets.PRESETS)
def test_a_preset_can_be_trained_as_it_is(name):
  after = presets.apply(Config(actions=ACTIONS), name)
  after.check_context(PHASES)


def test_paper_sets_what_the_paper_sets():
  # Applied to a config that differs in all of it.
  before = Config(actions=ACTIONS).edit(
    {
      'tokenizer.frame_shape': (360, 640, 3),
      'agent.distances': 3,
      'forcing.end_share': 0.25,
      'forcing.clear_share': 0.5,
      'forcing.low_weight': 1.0,
      'phases.tokenizer.max_mask_ratio': 0.5,
      'phases.finetune.relevant_share': 0.25,
      'phases.finetune.dynamics_rate': 0.1,
      'phases.finetune.distance_decay': 0.5,
      'phases.imagination.gamma': 0.9,
      'phases.imagination.lam': 0.8,
      'phases.imagination.alpha': 0.7,
      'phases.imagination.beta': 0.1,
      'phases.imagination.sampling_steps': 2,
      'phases.imagination.world_rate': 0.5,
      'phases.imagination.stop_at_event': True,
    }
  )
  config = presets.apply(before, 'paper')
  assert config.tokenizer.grid == (24, 40)
  assert config.tokenizer.bottleneck_gain == 1
  assert all(phase.clip_lengths == (64, 256) for phase in config.phases)
  assert config.data.separate_images == 0.3
  assert (
    config.dynamics.context_length == 192 == config.tokenizer.context_length
  )
  assert config.phases.tokenizer.max_mask_ratio == 0.9
  f = config.forcing
  assert (f.end_share, f.clear_share, f.low_weight) == (0, 0, 0.1)
  t = config.phases.finetune
  assert (t.relevant_share, t.dynamics_rate, t.distance_decay) == (0.5, 1, 1)
  i = config.phases.imagination
  assert (i.gamma, i.lam, i.alpha, i.beta) == (0.997, 0.95, 0.5, 0.3)
  assert (i.sampling_steps, i.world_rate, i.stop_at_event) == (4, 0, False)
  assert config.agent.distances == 8
  assert (config.compute.remat, config.compute.dtype) == ('full', 'bfloat16')


def test_an_unknown_preset_is_refused():
  with pytest.raises(ValueError, match="preset = 'huge': must be one of tiny,"):
    presets.apply(Config(), 'huge')
