"""Each line once, ours unchanged, and none of Orbax's chatter."""

import pathlib
import subprocess
import sys

CODE = """
import logging
{before}
from dreamer4_jax.runtime import logs
logs.show(logging.INFO)
logs.show(logging.INFO)
from absl import logging as absl
absl.warning('of absl')
logging.getLogger('dreamer4_jax.x').info('ours')
logging.getLogger('dreamer4_jax.x').debug('hidden')
logging.getLogger('other').warning('of another')
logging.getLogger('other').info('hidden')
for level in (logging.WARNING, logging.ERROR):
  logging.root.handle(logging.LogRecord(
    'absl', level, '/lib/orbax/checkpoint/x.py', 1, f'orbax {{level}}', (), None
  ))
"""


def shown(before):
  root = str(pathlib.Path(__file__).parents[2])
  child = subprocess.run(
    [sys.executable, '-c', CODE.format(before=before)],
    capture_output=True,
    text=True,
    env={'PYTHONPATH': root},
  )
  assert child.returncode == 0, child.stderr
  return child.stderr.splitlines()


EXPECTED = [
  'WARNING: absl: of absl',
  'ours',
  'WARNING: other: of another',
  'ERROR: absl: orbax 40',
]


def test_lines_of_a_command():
  assert shown('') == EXPECTED


def test_absl_may_have_spoken_before():
  early = "from absl import logging as a; a.warning('early')"
  assert shown(early) == ['WARNING:absl:early', *EXPECTED]


def test_handlers_that_somebody_chose_are_left_alone():
  chosen = "logging.basicConfig(format='mine %(message)s')"
  assert shown(chosen) == [
    'mine of absl',
    'mine ours',
    'mine of another',
    'mine orbax 30',
    'mine orbax 40',
  ]
