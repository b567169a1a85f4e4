import dataclasses
import functools
import math

from flax import linen as nn
import jax
import pytest

from dreamer4_jax.config import (
  PHASES,
  ActionComponent,
  AgentConfig,
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
  """Parameters in millions by room, without a byte of them."""
  world = World.from_config(own_config(name))
  params = jax.eval_shape(
    lambda key: nn.meta.unbox(world.init(key, ('tokenizer', 'dynamics'))),
    jax.random.key(0),
  )
  return {
    room: sum(math.prod(x.shape) for x in jax.tree.leaves(tree)) / 1e6
    for room, tree in params.items()
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
  t = presets.PRESETS[name].tokenizer
  assert row[1].strip() == f'{t.image_height}x{t.image_width}'
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


@pytest.mark.parametrize('name', presets.PRESETS)
def test_apply_keeps_all_but_the_sizes_and_what_fits_them(name):
  before = Config(
    name='mine',
    actions=ACTIONS,
    tasks=('a', 'b'),
    agent=AgentConfig(num_tasks=2),
    tokenizer=dataclasses.replace(
      Config().tokenizer, image_height=48, image_width=80, channels=1
    ),
  )
  after = presets.apply(before, name)
  t = after.tokenizer
  assert (t.image_height, t.image_width, t.channels) == (48, 80, 1)
  assert t.width == presets.PRESETS[name].tokenizer.width
  assert after.dynamics == presets.PRESETS[name].dynamics
  rest = {'tokenizer': before.tokenizer, 'dynamics': before.dynamics}
  phases = {
    phase: dataclasses.replace(
      getattr(after.phases, phase),
      **{k: getattr(getattr(before.phases, phase), k) for k in fields},
    )
    for phase, fields in presets.PRESETS[name].phases.items()
  }
  rest['phases'] = dataclasses.replace(after.phases, **phases)
  assert dataclasses.replace(after, **rest) == before
  assert Config.from_json(after.to_json()) == after


@pytest.mark.parametrize('name', presets.PRESETS)
def test_a_preset_can_be_trained_as_it_is(name):
  after = presets.apply(Config(actions=ACTIONS), name)
  after.check_context(PHASES)


def test_paper_sets_what_the_paper_sets():
  config = presets.apply(
    Config(
      actions=ACTIONS,
      tokenizer=TokenizerConfig(image_height=360, image_width=640),
    ),
    'paper',
  )
  assert config.tokenizer.grid == (24, 40)
  assert config.tokenizer.bottleneck_gain == 1
  p = config.phases
  for name in PHASES:
    phase = getattr(p, name)
    assert (phase.clip_length, phase.long_clip_length) == (64, 256)
    assert phase.separate_images == (0 if name == 'imagination' else 0.3)
  assert (
    config.dynamics.context_length == 192 == config.tokenizer.context_length
  )
  assert p.tokenizer.max_mask_ratio == 0.9 and p.tokenizer.lpips_weight == 0.2
  assert p.dynamics.end_share == 0 == p.finetune.end_share
  assert p.finetune.relevant_share == 0.5 and p.finetune.distance_decay == 1
  i = p.imagination
  assert (i.gamma, i.lam, i.alpha, i.beta) == (0.997, 0.95, 0.5, 0.3)
  assert (i.kl_direction, i.sampling_steps) == ('policy_prior', 4)
  assert config.agent.distances == 8


def test_an_unknown_preset_is_refused():
  with pytest.raises(ValueError, match="preset = 'huge': must be one of tiny,"):
    presets.apply(Config(), 'huge')
