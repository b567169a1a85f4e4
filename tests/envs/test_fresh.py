"""Each adapter, used first thing in a new process.

Elsewhere in the suite another import may have registered what an adapter needs;
a user's process has no other import.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FIRST = """
import sys
from dreamer4_jax.config import EnvConfig
from dreamer4_jax.envs import make_env
env = make_env(EnvConfig(name=sys.argv[1]))
print(env.spec.frame_shape, sorted(env.spec.labels))
"""
WITHOUT = f"""
import sys
for name in sys.argv.pop().split(','):
  sys.modules[name] = None
{FIRST}"""


def python(code, *args):
  # Without a directory of its own, SDL complains on a machine without a user.
  private = os.environ.get('XDG_RUNTIME_DIR', tempfile.gettempdir())
  return subprocess.run(
    [sys.executable, '-c', code, *args],
    cwd=ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'XDG_RUNTIME_DIR': private},
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.parametrize(
  ('name', 'package', 'shows'),
  [
    ('navix:Navix-DoorKey-Random-5x5-v0', 'navix', "(40, 40, 3) ['action']"),
    ('craftax:Craftax-Classic-Pixels-v1', 'craftax', "(63, 63, 3) ['action']"),
    ('gymnasium:ALE/Pong-v5', 'ale_py', "(210, 160, 3) ['action']"),
    ('gymnasium:CartPole-v1', 'pygame', '(400, 600, 3) []'),
    ('dm_control:cartpole-swingup', 'dm_control', '(64, 64, 3) []'),
  ],
)
def test_an_adapter_needs_nobody_before_it(name, package, shows):
  pytest.importorskip(package)
  if package == 'dm_control' and 'MUJOCO_GL' not in os.environ:
    pytest.skip('MUJOCO_GL is not set: nothing can be drawn without a screen')
  found = python(FIRST, name)
  assert found.returncode == 0, found.stderr
  assert found.stdout.strip() == shows
  # Engines may print greetings, but not when an environment is made.
  assert not found.stderr, found.stderr


@pytest.mark.parametrize(
  ('name', 'missing', 'extra'),
  [
    ('navix:Navix-DoorKey-Random-5x5-v0', 'navix', 'navix'),
    ('craftax:Craftax-Classic-Pixels-v1', 'craftax', 'craftax'),
    ('gymnasium:CartPole-v1', 'gymnasium', 'gymnasium'),
    ('gymnasium:ALE/Pong-v5', 'ale_py', 'gymnasium'),
    ('dm_control:cartpole-swingup', 'dm_control', 'dm_control'),
  ],
)
def test_a_missing_engine_is_named_with_its_extra(name, missing, extra):
  found = python(WITHOUT, name, missing)
  assert found.returncode == 1
  last = found.stderr.strip().splitlines()[-1]
  assert last == (
    f'ImportError: EnvConfig.name = {name!r} needs the package {missing}, '
    f"which is not installed: run `pip install 'dreamer4_jax[{extra}]'`"
  )
