"""The transformer alone: its config, and models that are not ours."""

import dataclasses
import subprocess
import sys

import pytest

from dreamer4_jax import nn as ours
from dreamer4_jax.config import DynamicsConfig, TokenizerConfig
from dreamer4_jax.nn import LayersConfig, TransformerConfig


def test_a_config_has_defaults_and_refuses_what_cannot_work():
  assert TransformerConfig() == TransformerConfig(depth=4, time_every=4)
  text = 'TransformerConfig.depth = 6: must be a positive multiple .* = 4'
  with pytest.raises(ValueError, match=text):
    TransformerConfig(depth=6)
  assert TransformerConfig(depth=6, time_every=3).depth == 6
  with pytest.raises(ValueError, match='width = 20: must be divisible'):
    TransformerConfig(width=20)


@pytest.mark.parametrize('kind', [TokenizerConfig, DynamicsConfig])
def test_models_take_every_field_of_the_layers(kind):
  # No field has a default of its own, and all reach the transformer.
  changed = kind(
    width=64, num_kv_heads=2, time_every=2, soft_cap=30.0, unroll=2
  )
  for config in (kind(), changed):
    stack = config.stack(8)
    assert stack.depth == 8
    for field in dataclasses.fields(LayersConfig):
      assert getattr(stack, field.name) == getattr(config, field.name)
  assert kind().stack(4) == TransformerConfig()


def test_every_name_is_there_and_a_config_needs_no_jax():
  assert all(hasattr(ours, name) for name in ours.__all__)
  with pytest.raises(AttributeError, match="no attribute 'attent'"):
    ours.attent  # noqa: B018
  code = 'import sys\nfrom dreamer4_jax.nn import TransformerConfig\n'
  code += "print(TransformerConfig().width, 'jax' in sys.modules)"
  child = subprocess.run([sys.executable, '-c', code], capture_output=True)
  assert child.stdout == b'128 False\n', child.stderr
