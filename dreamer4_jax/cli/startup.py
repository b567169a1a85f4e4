"""What a command does before it computes."""

from __future__ import annotations

import logging
import os
import pathlib
import sys
import warnings


def prepare() -> None:
  """Shows the log, checks the devices, and keeps compiled programs."""
  import jax  # Slow, and not for --help.

  from dreamer4_jax.runtime import logs
  from dreamer4_jax.runtime.devices import check_devices

  # Our own message is shorter, and says what to do.
  warnings.filterwarnings('ignore', 'JAX plugin .* is not compatible')
  if problem := check_devices():
    print(f'dreamer4: {problem}', file=sys.stderr)
  first = jax.process_index() == 0
  logs.show(logging.INFO if first else logging.WARNING)
  enable_compilation_cache()


def enable_compilation_cache() -> None:
  """Keeps compiled programs on disk, so that the next run starts at once.

  They are kept in `$JAX_COMPILATION_CACHE_DIR`, by default
  `~/.cache/dreamer4_jax/xla`.
  """
  import jax

  default = pathlib.Path('~/.cache/dreamer4_jax/xla').expanduser()
  directory = os.environ.get('JAX_COMPILATION_CACHE_DIR', str(default))
  jax.config.update('jax_compilation_cache_dir', directory)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
