import dataclasses
import json

import pytest

from dreamer4_jax.checkpoint.compatibility import (
  MODEL_FIELDS,
  check_config,
  model_fields,
)
from dreamer4_jax.config import (
  Config,
  FinetunePhase,
  Phases,
  VectorComponent,
)


def test_every_model_field_is_compared():
  base = Config()
  wider = dataclasses.replace(base.actions[0], size=3)
  agent = dataclasses.replace(base.agent, hidden=64)
  tokenizer = dataclasses.replace(base.tokenizer, patch_size=8)
  for name, change in (
    ('actions.0.size', {'actions': (wider,)}),
    ('actions', {'actions': (wider, dataclasses.replace(wider, name='b'))}),
    ('agent.hidden', {'agent': agent}),
    ('vectors', {'vectors': (VectorComponent(name='arm', size=2),)}),
    ('tokenizer.patch_size', {'tokenizer': tokenizer}),
  ):
    changed = dataclasses.replace(base, **change)
    with pytest.raises(ValueError, match=f'^{name} = .*made with'):
      check_config(base, changed, 'x', MODEL_FIELDS)


def test_what_makes_no_other_model_may_change():
  base = Config()
  faster = dataclasses.replace(base.dynamics, remat='full', dtype='bfloat16')
  changed = dataclasses.replace(base, seed=5, name='x', dynamics=faster)
  check_config(base, changed, 'x', MODEL_FIELDS)


def test_a_tokenizer_that_saw_grey_padding_is_refused():
  read = lambda plain: Config.from_saved(json.dumps(plain), 'x')
  old = json.loads(Config().to_json())
  old['tokenizer']['image_width'] += 1
  assert read(old).tokenizer.image_width == 65
  for later in ('grid_rows', 'grid_columns'):
    old['tokenizer'].pop(later)
  with pytest.raises(ValueError, match=r'in x learned with grey padding to'):
    read(old)
  old['tokenizer']['image_width'] -= 1  # Whole patches were never padded.
  assert read(old) == Config()


def test_a_phase_is_bound_by_the_models_it_holds():
  tokenizer = ('vectors', 'tokenizer')
  assert model_fields('tokenizer') == tokenizer
  assert model_fields('dynamics') == (*tokenizer, 'actions', 'dynamics')
  assert model_fields('finetune') == MODEL_FIELDS
  assert model_fields('imagination') == MODEL_FIELDS


def test_prompts_of_baselines_make_another_model():
  def config(share):
    finetune = FinetunePhase(baseline_share=share)
    return Config(phases=Phases(finetune=finetune))

  check_config(config(0.1), config(0.2), 'x', model_fields('finetune'))
  for saved, current in ((0.0, 0.1), (0.1, 0.0)):
    pair = config(saved), config(current)
    check_config(*pair, 'x', model_fields('dynamics'))
    with pytest.raises(
      ValueError,
      match=f'baseline_share = {current}: .* in x was made with {saved}',
    ):
      check_config(*pair, 'x', model_fields('finetune'))
