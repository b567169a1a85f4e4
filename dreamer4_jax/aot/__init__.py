"""Compiles programs for absent accelerators, and analyses the result."""

from dreamer4_jax.aot.analysis import Measured, measure
from dreamer4_jax.aot.chips import CHIPS, Chip, open_topology
from dreamer4_jax.aot.jobs import PROGRAMS, Job, compile_job
from dreamer4_jax.aot.report import (
  STANDARD,
  describe,
  standard,
  write_report,
)

__all__ = [
  'CHIPS',
  'PROGRAMS',
  'STANDARD',
  'Chip',
  'Job',
  'Measured',
  'compile_job',
  'describe',
  'measure',
  'open_topology',
  'standard',
  'write_report',
]
