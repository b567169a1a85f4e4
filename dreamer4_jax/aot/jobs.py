"""The programs that can be compiled ahead of time, from shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import functools
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax import sharding
from dreamer4_jax.aot.analysis import Measured, measure
from dreamer4_jax.aot.chips import CHIPS, open_topology
from dreamer4_jax.aot.flops import count_flops
from dreamer4_jax.config import (
  PHASES,
  ActionComponent,
  AgentConfig,
  ComputeConfig,
  Config,
  MeshConfig,
  Phases,
  experiments,
  presets,
  require,
)
from dreamer4_jax.models import World, no_action
from dreamer4_jax.rollout import compiler_options, empty_stream, next_frame
from dreamer4_jax.training.loop import jit_step
from dreamer4_jax.training.phases import init_and_step
from dreamer4_jax.types import Array, Batch, PyTree

PROGRAMS = (*PHASES, 'frame')
"""Train steps by phase, and one frame of interactive play."""
# As in the contractor data of Minecraft: keys, and the binned camera.
_ACTIONS = (
  ActionComponent(name='buttons', kind='binary', size=20),
  ActionComponent(name='camera', kind='categorical', size=121),
)
_TASKS = tuple(f'task_{i}' for i in range(20))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """One program for one piece of hardware."""

  preset: str = 'paper'
  """Sizes; one of `presets.PRESETS`."""
  experiment: str = ''
  """File or name of an experiment, whose models, batches, short clips and
  horizon are taken instead: of the fields below, only those of the topology,
  `remat` and `attention` then count, and `rows` and `steps` of a frame."""
  program: str = 'dynamics'
  """One of `PROGRAMS`."""
  topology: str = 'v5p:8x8x4'
  """Chip and torus."""
  mesh: MeshConfig = dataclasses.field(
    default_factory=lambda: MeshConfig(data=1, fsdp=-1)
  )
  """How the chips are used. If the sizes multiply to fewer chips than the
  topology has, its first ones are used."""
  length: int = 64
  """Frames of a clip; context frames in imagination."""
  rows: int = 1
  """Rows of the batch for each device that holds rows."""
  accumulate: int = 1
  """Parts of the batch that are processed one after another."""
  pixels: bool = False
  """Encode frames in the step instead of reading latents."""
  remat: str = ''
  """What the backward pass recomputes, instead of the preset's choice."""
  attention: str = ''
  """What computes attention, instead of the preset's choice."""
  horizon: int = 15
  """Imagined frames."""
  steps: int = 4
  """Denoising steps of a frame, K."""

  def __post_init__(self):
    require(
      self.preset in presets.PRESETS, 'preset', self.preset,
      f'must be one of {", ".join(presets.PRESETS)}',
    )  # fmt: skip
    require(
      self.program in PROGRAMS, 'phase', self.program,
      f'must be one of {", ".join(PROGRAMS)}',
    )  # fmt: skip
    for name in ('length', 'rows', 'accumulate', 'horizon'):
      value = getattr(self, name)
      require(value >= 1, name, value, 'must be at least 1')

  def config(self, rows: int) -> Config:
    """Returns the run's config, with a batch of `rows` rows.

    An experiment's own batch is of the size that it says.
    """
    if self.experiment:
      changes = {'remat': self.remat, 'attention': self.attention}
      return experiments.load(self.experiment).edit(
        {f'compute.{name}': x for name, x in changes.items() if x}
      )
    sizes, replace = presets.PRESETS[self.preset], dataclasses.replace
    own = {'remat': self.remat, 'attention': self.attention}
    own = {name: value for name, value in own.items() if value}
    shape = {'batch_size': rows, 'clip_lengths': (self.length,)}
    p = Phases()
    return Config(
      actions=_ACTIONS,
      tasks=_TASKS,
      tokenizer=sizes.tokenizer,
      dynamics=sizes.dynamics,
      compute=ComputeConfig(**{**sizes.compute, **own}),
      agent=AgentConfig(hidden=(sizes.dynamics.width // 2,) * 2),
      accumulate=self.accumulate,
      phases=Phases(
        tokenizer=replace(p.tokenizer, **shape),
        dynamics=replace(p.dynamics, **shape),
        finetune=replace(p.finetune, **shape),
        imagination=replace(
          p.imagination,
          **shape,
          horizon=self.horizon,
          sampling_steps=self.steps,
        ),
      ),
    )


def compile_job(
  job: Job,
  say: Callable[[str], None] = lambda text: None,
  text: pathlib.Path | None = None,
) -> Measured:
  """Compiles a program and measures what it needs.

  Args:
    job: which program, for which hardware.
    say: called with what is being done; compiling takes minutes.
    text: file to write the compiled program to.

  Raises:
    ValueError: the topology is unknown, or the mesh does not fit the topology
      or the model.
    RuntimeError: the program does not fit the chip; the message is XLA's.
  """
  devices, chip = open_topology(job.topology)
  mesh = sharding.make_mesh(job.mesh, devices)
  say(f'{describe_job(job)}: tracing')
  with sharding.use_mesh(mesh):
    traced, parameters = _trace(job, mesh)
    # What a kernel computes again, and its whole blocks, are not the model's.
    model = dataclasses.replace(job, remat='none', attention='xla')
    flops = count_flops(_trace(model, mesh)[0].jaxpr)
    executed = count_flops(traced.jaxpr)
    say(f'{describe_job(job)}: compiling')
    begin = time.perf_counter()
    try:
      options = _compiler_options(job, CHIPS[chip].platform)
      compiled = traced.lower().compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
      raise RuntimeError(f'{describe_job(job)}: {error}') from error
    seconds = time.perf_counter() - begin
  if text:
    text.write_text(compiled.as_text())
  return measure(
    compiled,
    chip=chip,
    devices=mesh.size,
    parameters=parameters,
    model_flops=flops / mesh.size,
    executed_flops=executed / mesh.size,
    seconds_to_compile=seconds,
  )


def _compiler_options(job: Job, platform: str) -> dict[str, Any]:
  """What the program is compiled with; no GPU is there to try kernels on."""
  options = compiler_options(platform) if job.program == 'frame' else {}
  alone = {'xla_gpu_autotune_level': 0} if platform == 'gpu' else {}
  return {**alone, **options}


def describe_job(job: Job) -> str:
  """Describes a job in one line."""
  sizes = ','.join(f'{a}={getattr(job.mesh, a)}' for a in sharding.AXES)
  own = {'remat': job.remat, 'attention': job.attention}
  changed = ''.join(f' {name}={value}' for name, value in own.items() if value)
  if job.experiment:
    name = pathlib.Path(job.experiment).stem
    return f'{name} {job.program} {job.topology} {sizes}{changed}'
  return (
    f'{job.preset} {job.program} {job.length} frames {job.topology} {sizes}'
    f'{changed}'
  )


def _trace(job: Job, mesh: jax.sharding.Mesh) -> tuple[Any, int]:
  """Returns the traced program, and the parameters of its networks."""
  config = job.config(job.rows * sharding.batch_shards(mesh))
  platform = CHIPS[job.topology.partition(':')[0]].platform
  world = World.from_config(config, platform=platform)
  if job.program == 'frame':
    return _trace_frame(world, job, mesh)
  init, step = init_and_step(world, job.program)
  before = PHASES[: PHASES.index(job.program)]
  # Keys are made while tracing: there is no device to make them on.
  boxed = jax.eval_shape(
    lambda: init(jax.random.key(0), _params(world, job, before))
  )
  state = sharding.place_abstract(mesh, boxed)
  jitted = jit_step(step, job.program, config.seed, mesh, state)
  number = jax.ShapeDtypeStruct((), jnp.uint32)
  traced = jitted.trace(state, _batch(world, job, mesh), number)
  networks = jax.tree.leaves((state.params, state.frozen))
  return traced, sum(x.size for x in networks)


def _trace_frame(
  world: World, job: Job, mesh: jax.sharding.Mesh
) -> tuple[Any, int]:
  """Traces one frame of play: K passes and the decoder."""
  whole = sharding.replicated(mesh)
  place = lambda tree: jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), tree
  )
  boxed = jax.eval_shape(
    lambda: _params(world, dataclasses.replace(job, pixels=True), PHASES[:2])
  )
  placed = sharding.place_abstract(mesh, boxed)
  where = {path: x.sharding for path, x in jax.tree.leaves_with_path(placed)}
  # As a player holds them; what is joined for a GPU is whole on each.
  params = jax.tree.map_with_path(
    lambda path, x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=where.get(path, whole)
    ),
    jax.eval_shape(world.for_inference, placed),
  )
  rows = job.rows * sharding.batch_shards(mesh)
  stream = place(jax.eval_shape(lambda: empty_stream(world, rows)))
  action = place(jax.eval_shape(lambda: no_action(world.space, (rows,))))

  def frame(params: PyTree, stream: PyTree, action: PyTree, number: Array):
    key = jax.random.fold_in(jax.random.key(0), number)
    return next_frame(world, params, stream, action, key, steps=job.steps)

  number = jax.ShapeDtypeStruct((), jnp.uint32)
  traced = jax.jit(frame, donate_argnums=1).trace(
    params, stream, action, number
  )
  return traced, sum(x.size for x in jax.tree.leaves(params))


def _params(world: World, job: Job, phases: Sequence[str]) -> PyTree:
  """Returns parameters that phases leave behind, freshly initialised."""
  modules = {
    'tokenizer': ('tokenizer',) if job.pixels else (),
    'dynamics': ('dynamics',),
    'finetune': ('task', 'policy', 'reward', 'continuation'),
  }
  names = tuple(name for phase in phases for name in modules[phase])
  found = world.init(jax.random.key(0), names)
  found.setdefault('tokenizer', {})
  t = world.config.tokenizer
  shape = (t.num_latents, t.bottleneck_dim)
  found['latents'] = {'mean': jnp.zeros(shape), 'std': jnp.ones(shape)}
  return found


def _batch(world: World, job: Job, mesh: jax.sharding.Mesh) -> Batch:
  """Returns the shapes of a batch."""
  config = world.config
  settings = getattr(config.phases, job.program)
  rows = settings.batch_size
  lead = (rows, settings.clip_length)
  where = sharding.batch_sharding(mesh)
  t = config.tokenizer
  array = lambda shape, dtype: jax.ShapeDtypeStruct(
    shape, dtype, sharding=where
  )
  frames = array((*lead, t.num_latents, t.bottleneck_dim), jnp.float16)
  if job.pixels or job.program == 'tokenizer':
    shape = (*lead, *t.frame_shape)
    frames = array(shape, jnp.uint8)
  action = jax.tree.map(
    lambda x: array(x.shape, x.dtype),
    jax.eval_shape(functools.partial(no_action, world.space, lead)),
  )
  numbers, flags = array(lead, jnp.float32), array(lead, np.bool_)
  return Batch(
    frames=frames,
    action=action,
    action_mask=flags,
    prev_action=action,
    prev_action_mask=flags,
    cloned=flags,
    reward=array((*lead, len(config.tasks)), jnp.float32),
    cont=numbers,
    task=array(lead, jnp.int32),
    segment_ids=array(lead, jnp.int32),
    relevant=array((rows,), np.bool_),
    vectors={
      v.name: array((*lead, v.size), jnp.float32) for v in config.vectors
    },
  )
