"""Tables of what was measured, and the report of a list of programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import importlib.metadata
import json
import pathlib

import jax

from dreamer4_jax.aot.analysis import Measured
from dreamer4_jax.aot.chips import CHIPS
from dreamer4_jax.aot.jobs import Job, compile_job, describe_job
from dreamer4_jax.config import MeshConfig

_ONE = MeshConfig(data=1, fsdp=1, tensor=1)
_PLAIN = MeshConfig(data=1, fsdp=-1, tensor=1)


def _cut(fsdp: int) -> MeshConfig:
  """Shards over no more chips than needed (see docs/tpu.md), by whole sides."""
  return MeshConfig(data=-1, fsdp=fsdp, tensor=1)


STANDARD: tuple[Job, ...] = (
  *(
    Job(topology=topology, length=length, mesh=_cut(fsdp))
    for topology, fsdp in (('v5p:8x8x4', 32), ('v5p:8x8x16', 64))
    for length in (64, 256)
  ),
  Job(topology='v5p:8x8x4', length=64, mesh=_PLAIN),
  Job(topology='v5p:8x8x4', length=64, mesh=_cut(32), remat='dots'),
  Job(topology='v6e:16x16', length=64, mesh=_cut(16)),
  *(
    Job(program=program, topology=topology, length=64, mesh=_ONE)
    for program in ('frame', 'imagination')
    for topology in ('v5p:2x2x1', 'v6e:2x2')
  ),
  Job(program='tokenizer', topology='v5p:8x8x4', length=64, mesh=_cut(32)),
)
"""What the report holds: the paper's model, on its hardware and on less."""

GPU_STANDARD: tuple[Job, ...] = (
  *(
    Job(program='frame', topology='h100:1', mesh=_ONE, steps=steps)
    for steps in (1, 2, 4, 8)
  ),
  *(
    Job(program='frame', topology=topology, mesh=_ONE, rows=rows)
    for topology, most in (('h100:1', 12), ('h200:1', 24))
    for rows in (1, 4, most)
    if (topology, rows) != ('h100:1', 1)
  ),
  *(
    Job(preset=p, program=x, topology='h100:1', mesh=_ONE, rows=n, length=t)
    for p, x, n, t in (
      ('base', 'dynamics', 32, 64),
      ('paper', 'dynamics', 4, 64),
      ('base', 'tokenizer', 16, 32),
      ('paper', 'tokenizer', 1, 8),
      ('base', 'imagination', 64, 16),
    )
  ),
  Job(topology='h100:8', mesh=_PLAIN, rows=4),
)
"""The same for GPUs: a frame of play, and train steps."""

_GPU_HEAD = """# What the compiler and a roofline say of GPUs

Made by `dreamer4 compile --report {path} --topology h100:1`, with jax {jax}.
The programs are the real ones, compiled for GPUs on a machine without one; none
of them has run. All is bfloat16; the dynamics and imagination read latents, the
tokenizer pixels. A **frame** is one of interactive play: K passes of the
dynamics and the picture, for *rows* games side by side.

**ms** is the sum over all kernels: the longer of moving a kernel's bytes and of
computing its FLOPs, plus what a kernel costs by itself. The constants were
fitted to an H100 (`dreamer4_jax/aot/kernels.py`) and are compared with
measurements in [gpu](gpu.md). Other GPUs are scaled by their data sheets, and
what several send each other is added, over NVLink at best. Memory is in GiB;
*share of peak* counts the model's products once, against the data sheet.

"""
_HEAD = """# What the compiler says of TPUs that we do not have

Made by `dreamer4 compile --report {path}`, with jax {jax} and
libtpu {libtpu}. The programs are the real ones, compiled by libtpu for the
named topology on a machine without a TPU; none of them has run. Every row is
one program of the `paper` preset, in bfloat16, on pre-tokenised data, with one
row of the batch for each chip.

- **mesh**: sizes of data, fsdp and tensor; -1 takes the chips that are left.
- **memory**: state and batch, temporaries at the worst moment, and the program
  itself, of one chip, in GiB; *spare* is the share of its HBM left over.
- **TFLOP**: matrix products of one chip in one step. *Model* counts nothing
  twice; *executed* has what the backward pass computes again. A step that
  bootstraps is counted; with one row a chip, one step in four does.
- **computing**: the compiler's estimate, from the cycles of every operation
  times how often its loop runs. Collectives have no estimate: **moving** is
  their bytes over the data sheet's rate of all links, at best; those of an
  all-reduce travel twice.
- **utilisation**: model FLOPs over the chip's peak, if the two take turns, and
  if the longer hides the other.

"""


def describe(measured: Measured) -> str:
  """Returns what was measured as a human-readable Markdown table."""
  m, gib = measured, 2**30
  rows = [
    ('parameters', f'{m.parameters / 1e6:,.1f} M'),
    ('devices', f'{m.devices:,}'),
    ('model TFLOP a step and chip', f'{m.model_flops / 1e12:,.3f}'),
    ('executed TFLOP a step and chip', f'{m.executed_flops / 1e12:,.3f}'),
    ('state and batch', f'{m.arguments / gib:,.2f} GiB'),
    ('results beside the state', f'{m.outputs / gib:,.2f} GiB'),
    ('temporaries', f'{m.temporaries / gib:,.2f} GiB'),
    ('program', f'{m.code / gib:,.2f} GiB'),
    ('memory in use', f'{m.used / gib:,.2f} of {m.memory / gib:,.0f} GiB'),
    ('spare', f'{m.spare:.0%}'),
  ]
  for kind, (count, size) in m.collectives.items():
    rows.append((kind, f'{count:,} times, {size / gib:,.2f} GiB'))
  rows += [
    ('computing', f'{m.computing:.4g} s'),
    ('moving, at best', f'{m.moving:.4g} s'),
    (
      'utilisation if they take turns',
      f'{m.utilisation(overlapped=False):.1%}',
    ),
    (
      'utilisation if one hides the other',
      f'{m.utilisation(overlapped=True):.1%}',
    ),
    ('compiling took', f'{m.seconds_to_compile:.0f} s'),
  ]
  if m.kernels:
    rows.append(('kernels', f'{m.num_kernels:,}'))
  width = max(len(name) for name, _ in rows)
  text = '\n'.join(f'| {n:<{width}} | {v:>22} |' for n, v in rows)
  return text + (_describe_kernels(m) if m.kernels else '')


def _describe_kernels(measured: Measured) -> str:
  """Tables of a GPU's kernels: by kind, and those that take longest."""
  lines = [
    '',
    '',
    '| kind | kernels | ms | GB | TFLOP |',
    '|---|---|---|---|---|',
  ]
  for kind, sums in measured.kernels.items():
    lines.append(
      f'| {kind} | {sums["count"]:,.0f} | {sums["seconds"] * 1e3:.2f} '
      f'| {sums["bytes"] / 1e9:.2f} | {sums["flops"] / 1e12:.3f} |'
    )
  lines += [
    '',
    '| takes longest | times | us each | MB | from |',
    '|---|---|---|---|---|',
  ]
  for k in measured.costliest:
    where = ' '.join(x for x in (_tail(k['op']), k['source']) if x)
    lines.append(
      f'| {k["kind"]} {k["name"]} | {k["count"]:,} '
      f'| {k["seconds"] * 1e6:.1f} | {k["bytes"] / 1e6:.1f} | {where} |'
    )
  return '\n'.join(lines)


def _tail(op: str, parts: int = 3) -> str:
  """The last parts of an operation's name, `space_0/mlp/gate`."""
  return '/'.join(op.split('/')[-1 - parts : -1])


def standard(topology: str) -> tuple[Job, ...]:
  """Returns the list of the report for chips of this kind."""
  chip = CHIPS.get(topology.partition(':')[0])
  return GPU_STANDARD if chip and chip.gpu else STANDARD


def write_report(
  path: str | pathlib.Path,
  jobs: Sequence[Job] = STANDARD,
  *,
  say: Callable[[str], None] = print,
  measure: Callable[[Job, Callable[[str], None]], Measured] = compile_job,
) -> None:
  """Compiles what is not yet in the report, and writes it.

  Measurements are kept in a JSON file beside the report, with versions, so that
  an interrupted command resumes; delete the file to measure again.

  Args:
    path: Markdown file.
    jobs: what to compile; programs that do not fit get a row that says so.
    say: called with what is being done.
    measure: compiles a job.
  """
  path = pathlib.Path(path)
  kept = path.with_suffix('.json')
  known = json.loads(kept.read_text()) if kept.exists() else {}
  path.parent.mkdir(parents=True, exist_ok=True)
  for job in jobs:
    key = _key(job)
    if key not in known:
      try:
        known[key] = dataclasses.asdict(measure(job, say))
      except RuntimeError as error:
        known[key] = {'error': str(error).splitlines()[0][:300]}
      kept.write_text(json.dumps(known, indent=1))
    path.write_text(_render(path, jobs, known))


def _versions() -> dict[str, str]:
  try:
    libtpu = importlib.metadata.version('libtpu')
  except importlib.metadata.PackageNotFoundError:
    libtpu = 'of TPU_LIBRARY_PATH'
  return {'jax': jax.__version__, 'libtpu': libtpu}


def _key(job: Job) -> str:
  """Includes the versions: jobs measured with others are measured again."""
  return json.dumps({**dataclasses.asdict(job), **_versions()})


def _render(
  path: pathlib.Path, jobs: Sequence[Job], known: Mapping[str, dict]
) -> str:
  if CHIPS[jobs[0].topology.partition(':')[0]].gpu:
    return _render_gpus(path, jobs, known)
  text = _HEAD.format(path=path, **_versions())
  overview = [
    '| program | frames | topology | mesh | memory | spare | computing '
    '| moving | utilisation |',
    '|---|---|---|---|---|---|---|---|---|',
  ]
  details = []
  for job in jobs:
    found = known.get(_key(job))
    if found is None:
      continue
    mesh = f'{job.mesh.data}, {job.mesh.fsdp}, {job.mesh.tensor}'
    name = f'{job.program}, remat {job.remat}' if job.remat else job.program
    lead = f'| {name} | {job.length} | {job.topology} | {mesh} '
    if 'error' in found:
      what = 'fit' if 'RESOURCE_EXHAUSTED' in found['error'] else 'compile'
      overview.append(f'{lead}| does not {what}: {found["error"]} | | | | |')
      continue
    m = Measured(**found)
    overview.append(
      f'{lead}| {m.used / 2**30:.1f} of {m.memory / 2**30:.0f} GiB '
      f'| {m.spare:.0%} | {m.computing:.4g} s | {m.moving:.4g} s '
      f'| {m.utilisation(overlapped=False):.1%} '
      f'to {m.utilisation(overlapped=True):.1%} |'
    )
    details.append(
      f'## {describe_job(job)}\n\n| | |\n|---|---|\n{describe(m)}\n'
    )
  return text + '\n'.join(overview) + '\n\n' + '\n'.join(details)


def _render_gpus(
  path: pathlib.Path, jobs: Sequence[Job], known: Mapping[str, dict]
) -> str:
  lines = [
    '| program | rows | topology | memory | temporaries | kernels | ms '
    '| frames/s | share of peak |',
    '|---|---|---|---|---|---|---|---|---|',
  ]
  details = []
  for job in jobs:
    found = known.get(_key(job))
    if found is None:
      continue
    of = (
      f'K = {job.steps}' if job.program == 'frame' else f'{job.length} frames'
    )
    name = f'{job.preset} {job.program}, {of}'
    lead = f'| {name} | {job.rows} | {job.topology} '
    if 'error' in found:
      lines.append(f'{lead}| does not fit: {found["error"]} | | | | | |')
      continue
    m = Measured(**found)
    frames = job.rows * (1 if job.program == 'frame' else job.length)
    seconds = m.computing + m.moving
    lines.append(
      f'{lead}| {m.used / 2**30:.1f} of {m.memory / 2**30:.0f} '
      f'| {m.temporaries / 2**30:.2f} | {m.num_kernels:,} '
      f'| {seconds * 1e3:.1f} | {m.devices * frames / seconds:,.0f} '
      f'| {m.utilisation(overlapped=False):.0%} |'
    )
    details.append(
      f'## {name}, {job.rows} rows, {job.topology}\n\n'
      f'| | |\n|---|---|\n{describe(m)}\n'
    )
  head = _GPU_HEAD.format(path=path, **_versions())
  return head + '\n'.join(lines) + '\n\n' + '\n'.join(details)
