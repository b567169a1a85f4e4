"""A tiny real training, as a process that can be killed.

The processes are forked from one that has imported everything, so that each
starts in a second. That one has not used JAX; each fork makes its own runtime.
"""

from collections.abc import Callable
import json
import logging
import multiprocessing
import pathlib
import signal
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from data_pipelines import writer
from dreamer4_jax.config import (
  ActionComponent,
  Config,
  DataConfig,
  DynamicsConfig,
  DynamicsPhase,
  OptimizerConfig,
  Phases,
  SavingConfig,
  SourceConfig,
  TokenizerConfig,
  TokenizerPhase,
)
from dreamer4_jax.data.format import Description
from dreamer4_jax.sharding import make_mesh
from dreamer4_jax.training.clips import training_loader
from dreamer4_jax.training.loop import ClipIterator, Work, run_phase
from dreamer4_jax.training.phases import train_phases
from dreamer4_jax.types import PyTree

SIDE, LENGTH = 16, 12
OPTIMIZER = optax.adam(1e-2)
ACTIONS = (ActionComponent(name='action', kind='categorical', size=3),)


def make_config(path: str, steps: int) -> Config:
  """Returns a run whose models have some thousand parameters."""
  sizes = {'width': 16, 'num_heads': 2, 'depth': 2, 'time_every': 2}
  phase = {'steps': steps, 'batch_size': 4}
  return Config(
    actions=ACTIONS,
    tasks=('near', 'far'),
    tokenizer=TokenizerConfig(
      frame_shape=(SIDE, SIDE, 3),
      patch_size=8,
      num_latents=4,
      bottleneck_dim=4,
      context_length=4,
      **sizes,
    ),
    dynamics=DynamicsConfig(
      num_spatial_tokens=4,
      num_registers=1,
      num_kv_heads=2,
      context_length=4,
      **sizes,
    ),
    phases=Phases(
      tokenizer=TokenizerPhase(clip_lengths=(4, 6), **phase),
      dynamics=DynamicsPhase(clip_lengths=(4,), **phase),
    ),
    optimizer=OptimizerConfig(warmup_steps=3),
    saving=SavingConfig(
      log_every=1, checkpoint_every=4, best_metric='tokenizer/mse'
    ),
    data=DataConfig(sources=(SourceConfig(path=path),)),
  )


def write_noise(path: pathlib.Path) -> str:
  """Writes a dataset of noise; returns its directory."""
  rng = np.random.default_rng(0)

  def episode() -> writer.Episode:
    last = np.arange(LENGTH) == LENGTH - 1
    shape = (LENGTH, SIDE, SIDE, 3)
    return writer.Episode(
      steps={
        'observation': rng.integers(0, 256, shape, np.uint8),
        'action': {'action': rng.integers(0, 3, LENGTH, np.int32)},
        'action_known': ~last,
        'reward': np.zeros(LENGTH, np.float32),
        'events': np.zeros((LENGTH, 2), np.uint8),
      },
      terminal=True,
    )

  written = writer.write_dataset(
    str(path),
    description=Description(
      actions=ACTIONS, tasks=('near', 'far'), frame_shape=(SIDE, SIDE, 3)
    ),
    splits={'train': [episode() for _ in range(6)]},
  )
  return str(written)


class Slowly:
  """An iterator that leaves time between steps to be killed in."""

  def __init__(self, iterator: ClipIterator):
    self._iterator = iterator
    self.get_state = iterator.get_state
    self.set_state = iterator.set_state

  def __next__(self) -> PyTree:
    time.sleep(0.02)
    return next(self._iterator)


def slow_loader(*args: Any) -> Slowly:
  """Returns what `training_loader` does, slowly."""
  return Slowly(training_loader(*args))


def run(
  config: Config, directory: str, phases: tuple[str, ...], cache: str
) -> None:
  """What a process does: trains, or goes on where it was.

  Without phases it trains a linear model, which needs no time to compile, in
  the tokenizer's place. All else is the same.
  """
  logging.disable(logging.WARNING)
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_compilation_cache_dir', cache)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  if phases:
    train_phases(config, directory, phases, loaders=slow_loader, progress=False)
    return
  lengths = config.phases.tokenizer.clip_lengths
  work = Work(
    init_state=_linear_state,
    step_fn=_linear_step,
    iterators={n: slow_loader(config, 'tokenizer', n) for n in lengths},
  )
  mesh = make_mesh(config.mesh)
  run_phase('tokenizer', config, directory, work, mesh=mesh, progress=False)


def _linear_state() -> dict[str, Any]:
  params = {'w': jnp.ones((SIDE, 3)) / 50}
  return {'params': params, 'opt_state': OPTIMIZER.init(params)}


def _linear_step(state, batch, key):
  x = batch.frames.astype(jnp.float32) / 255
  target = jax.random.normal(key, x.shape[:2])

  def loss_fn(params):
    y = jnp.einsum('bthwc,wc->bt', x, params['w'])
    return jnp.square(y - target).mean()

  loss, grads = jax.value_and_grad(loss_fn)(state['params'])
  updates, opt_state = OPTIMIZER.update(grads, state['opt_state'])
  params = optax.apply_updates(state['params'], updates)
  return {'params': params, 'opt_state': opt_state}, {'tokenizer/mse': loss}


class Run:
  """A training in a directory, in one process after another."""

  def __init__(self, config, directory, phases, cache):
    self.directory = directory
    self._args = (config, str(directory), phases, cache)
    self._context = multiprocessing.get_context('forkserver')
    self._context.set_forkserver_preload(['tests.killed_run'])

  def start(self) -> None:
    """Starts a process, which goes on where the one before was killed."""
    self._began = time.time()
    self._process = self._context.Process(target=run, args=self._args)
    self._process.start()

  def finish(self) -> None:
    """Waits for the end of the training."""
    self._process.join()
    assert self._process.exitcode == 0

  def kill(self) -> None:
    """Kills the process, which must not have come to its end."""
    self._process.kill()
    self._process.join()
    assert self._process.exitcode == -signal.SIGKILL

  def wait_for(self, what: Callable[[], Any]) -> None:
    """Waits until `what()` is true."""
    while not what():
      assert self._process.is_alive()
      time.sleep(0.001)

  def steps(self) -> int:
    """Returns how many steps this process has logged."""
    return sum(line['time'] >= self._began for line in self.lines())

  def saving(self) -> list[pathlib.Path]:
    """Returns the checkpoints that are not complete."""
    found = self.directory.glob('*/checkpoints/*')
    return [path for path in found if not path.name.isdigit()]

  def lines(self) -> list[dict[str, Any]]:
    """Returns what was logged, with the phase."""
    found = []
    for path in sorted(self.directory.glob('*/metrics.jsonl')):
      for line in path.read_text().splitlines():
        try:
          found.append({'phase': path.parent.name, **json.loads(line)})
        except ValueError:
          continue  # Half written.
    return found
