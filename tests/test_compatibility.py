import dataclasses
import json

import pytest

from dreamer4_jax.checkpoint.compatibility import (
  MODEL_FIELDS,
  check_config,
  model_fields,
)
from dreamer4_jax.config import Config, VectorComponent


def test_every_model_field_is_compared():
  base = Config()
  (action,) = base.actions
  more = (action, dataclasses.replace(action, name='b'))
  for name, change in (
    ('actions.0.size', {'actions.0.size': 3}),
    ('actions', {'actions': more}),
    ('agent.hidden.1', {'agent.hidden': (128, 64)}),
    ('agent.hidden', {'agent.hidden': (128,)}),
    ('vectors', {'vectors': (VectorComponent(name='arm', size=2),)}),
    ('tokenizer.patch_size', {'tokenizer.patch_size': 8}),
    ('tokenizer.frame_shape.1', {'tokenizer.frame_shape': (64, 60, 3)}),
    ('tokenizer.patch_grid', {'tokenizer.patch_grid': (4, 5)}),
    ('dynamics.num_kv_heads', {'dynamics.num_kv_heads': 2}),
  ):
    with pytest.raises(ValueError, match=f'^{name} = .*made with'):
      check_config(base, base.edit(change), 'x', MODEL_FIELDS)


def test_what_makes_no_other_model_may_change():
  base = Config()
  changed = base.edit(
    {
      'seed': 5,
      'compute.remat': 'full',
      'compute.dtype': 'bfloat16',
      'forcing.end_share': 0.5,
      'phases.dynamics.steps': 7,
      'optimizer.muon': ('dynamics',),
    }
  )
  check_config(base, changed, 'x', MODEL_FIELDS)


def test_a_config_of_another_version_is_refused():
  plain = json.loads(Config().to_json())
  assert plain['format'] == 2
  assert Config.from_json(json.dumps(plain)) == Config()

  def refused(changes, without=()):
    old = {k: v for k, v in {**plain, **changes}.items() if k not in without}
    with pytest.raises(ValueError) as error:
      Config.from_json(json.dumps(old))
    return str(error.value)

  # Configs of the first format had no number.
  for sentence in (refused({}, without=('format',)), refused({'format': 1})):
    assert 'format = 1: the config was written by another version' in sentence
    assert 'this one reads format 2' in sentence
  assert 'format = 3: ' in refused({'format': 3})
  tokenizer = {**plain['tokenizer'], 'image_height': 64}
  assert 'tokenizer.image_height: no config has such a field' in refused(
    {'tokenizer': tokenizer}
  )
  assert 'name: no config has such a field' in refused({'name': 'x'})


def test_a_phase_is_bound_by_the_models_it_holds():
  tokenizer = ('vectors', 'tokenizer')
  assert model_fields('tokenizer') == tokenizer
  assert model_fields('dynamics') == (*tokenizer, 'actions', 'dynamics')
  assert model_fields('finetune') == MODEL_FIELDS
  assert model_fields('imagination') == MODEL_FIELDS


def test_prompts_of_baselines_make_another_model():
  def config(share):
    return Config().edit({'phases.finetune.baseline_share': share})

  check_config(config(0.1), config(0.2), 'x', model_fields('finetune'))
  for saved, current in ((0.0, 0.1), (0.1, 0.0)):
    pair = config(saved), config(current)
    check_config(*pair, 'x', model_fields('dynamics'))
    with pytest.raises(
      ValueError,
      match=f'baseline_share = {current}: .* in x was made with {saved}',
    ):
      check_config(*pair, 'x', model_fields('finetune'))


def test_tasks_make_another_model_by_names_and_order():
  base = Config().edit({'tasks': ('key', 'door')})
  for tasks in (('axe', 'door'), ('door', 'key')):
    other = base.edit({'tasks': tasks})
    check_config(base, other, 'x', model_fields('dynamics'))
    with pytest.raises(ValueError, match='give the same in the same order'):
      check_config(base, other, 'x', model_fields('finetune'))
    # Tasks that are vectors are told apart by these.
    vectors = {'agent.task_vector_size': 3, 'data.task_vectors': 'x.npy'}
    check_config(
      base.edit(vectors), other.edit(vectors), 'x', model_fields('finetune')
    )
  more = base.edit({'tasks': ('key', 'door', 'goal')})
  check_config(base, more, 'x', model_fields('dynamics'))
  with pytest.raises(
    ValueError, match=r"^tasks = .*'goal'\): .* in x was made with \('key'"
  ):
    check_config(base, more, 'x', model_fields('finetune'))
