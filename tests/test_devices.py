"""What is said where an accelerator is installed but not used."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from dreamer4_jax.runtime import devices

ROOT = pathlib.Path(__file__).parents[1]
JAX = jax.__version__


@pytest.fixture
def machine(monkeypatch):
  """Sets what is installed and what JAX was asked for; returns its sentence."""

  def pretend(plugins, asked=None, driver=False, platform='cpu'):
    def start():
      if platform is None:
        raise AssertionError
      return platform

    monkeypatch.setattr(devices, '_plugins', lambda: plugins)
    monkeypatch.setattr(devices, '_has_nvidia_driver', lambda: driver)
    monkeypatch.setattr(devices.jax, 'default_backend', start)
    monkeypatch.setattr(devices, '_asked', lambda: asked or '')
    return devices.check_devices

  monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
  return pretend


FITS = jax.lib.__version__


@pytest.mark.parametrize(
  'plugins, driver, sentence',
  [
    (
      {'jax-cuda12-plugin': '0.1.2'},
      True,
      f'jax-cuda12-plugin 0.1.2 does not fit jaxlib {FITS}: run pip install -U '
      f"'jax[cuda12]=={JAX}'; until then JAX runs on the CPU",
    ),
    (
      {'jax-cuda13-plugin': '0.1.2'},
      True,
      f"run pip install -U 'jax[cuda13]=={JAX}'; until then",
    ),
    ({'jax-cuda12-plugin': FITS}, False, 'the NVIDIA driver is not: install'),
    (
      {'jax-cuda12-plugin': FITS},
      True,
      'does not start (it found no GPU)',
    ),
    ({'jax-rocm7-plugin': '0.1.2'}, False, 'finds no GPU: run rocm-smi'),
    (
      {'libtpu': '0.0.50'},
      False,
      'libtpu 0.0.50 is installed but finds',
    ),
    (
      {},
      True,
      "without a plugin for it: run pip install -U 'jax[cud",
    ),
  ],
)
def test_an_unused_accelerator_is_one_sentence(
  machine, plugins, driver, sentence
):
  said = machine(plugins, driver=driver)()
  assert sentence in said and '\n' not in said


def test_hidden_gpus_are_named(machine, monkeypatch):
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '-1')
  said = machine({'jax-cuda12-plugin': FITS}, driver=True)()
  assert said.startswith("CUDA_VISIBLE_DEVICES = '-1' hides all GPUs")


def test_nothing_is_said_where_all_is_as_wished(machine):
  old = {'jax-cuda12-plugin': '0.1.2'}
  assert machine(old, platform='gpu')() == ''
  assert machine(old, asked='cpu')() == ''
  assert machine({})() == ''


@pytest.mark.parametrize(
  'plugins, asked, sentence',
  [
    ({}, 'cuda', f"not installed: run pip install -U 'jax[cuda12]=={JAX}', or"),
    ({}, 'tpu', f"not installed: run pip install -U 'jax[tpu]=={JAX}', or"),
    ({'libtpu': '0.0.50'}, 'cuda,cpu', 'its plugin is not installed'),
    ({'jax-cuda12-plugin': '0.1.2'}, 'cuda', 'does not fit jaxlib'),
    ({}, 'abacus', "cannot start 'abacus' here; unset it, or choose among cpu"),
  ],
)
def test_a_platform_that_cannot_be_had_is_refused(
  machine, plugins, asked, sentence
):
  with pytest.raises(ValueError) as info:
    machine(plugins, asked=asked, platform=None)()
  said = str(info.value)
  assert said.startswith(f"JAX_PLATFORMS = '{asked}': ") and sentence in said


def run_info(tmp_path, **env):
  return subprocess.run(
    [sys.executable, '-m', 'dreamer4_jax.cli.main', 'info'],
    cwd=ROOT,
    env={k: v for k, v in os.environ.items() if k != 'JAX_PLATFORMS'} | env,
    capture_output=True,
    text=True,
  )


def test_jax_itself_without_a_plugin_and_with_one_that_does_not_fit(tmp_path):
  # Metadata is all that JAX and we need to see of a plugin that is too old.
  dist = tmp_path / 'jax_cuda12_plugin-0.1.2.dist-info'
  dist.mkdir()
  text = 'Metadata-Version: 2.1\nName: jax-cuda12-plugin\nVersion: 0.1.2\n'
  (dist / 'METADATA').write_text(text)
  child = run_info(tmp_path, PYTHONPATH=str(tmp_path))
  assert child.returncode == 0, child.stderr
  assert 'cpu (cpu)' in child.stdout
  assert 'jax-cuda12-plugin 0.1.2 does not fit' in child.stdout
  child = run_info(tmp_path, JAX_PLATFORMS='abacus')
  assert child.returncode == 0, child.stderr
  assert "JAX cannot start 'abacus' here" in child.stdout
  assert 'Traceback' not in child.stderr
