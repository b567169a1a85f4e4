"""Several processes as one program; the work is done by JAX's runtime.

A process that stops alone must not wait for the others, which wait for it in
a collective: see `leave`. JAX is imported late, because the command line
imports this for `--help` too.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import socket
import sys
import threading
import time

from dreamer4_jax.config import require

_SPARE = 600
"""Seconds by which JAX's own deadline is later. It aborts the process, with a
C++ stack trace and no way to say what to look at."""
_GRACE = 3.0
"""Seconds the process with the coordination service outlives its error. The
others usually have the same error, and are aborted if they lose the service."""
_POLL = 0.2
_joining = False


class JoinError(Exception):
  """The processes did not find each other; end this one with `leave`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
  """How the processes of a run find each other; alone by default."""

  auto: bool = False
  """Ask Cloud TPU, GKE, Slurm or Open MPI, whichever started the process."""
  coordinator: str = ''
  """HOST:PORT of process 0, where there is no cluster to ask."""
  processes: int | None = None
  """Number of processes, with `coordinator`."""
  process: int | None = None
  """Number of this process, with `coordinator`."""
  timeout: int = 300
  """Seconds to wait for the others."""

  def __post_init__(self):
    host, _, port = self.coordinator.rpartition(':')
    others = (self.processes, self.process)
    explicit = bool(self.coordinator)
    require(
      not (self.auto and (explicit or others != (None, None))),
      '--coordinator',
      self.coordinator,
      'must be left out with --distributed, and so must --num-processes and '
      '--process-id: the cluster is asked',
    )
    require(
      explicit == (None not in others) and (explicit or others == (None, None)),
      '--coordinator',
      self.coordinator,
      'must be given together with --num-processes and --process-id; leave '
      'out all three for one process, or where --distributed finds them',
    )
    if explicit:
      require(
        bool(host) and port.isdecimal() and 0 < int(port) < 65536,
        '--coordinator',
        self.coordinator,
        'must be HOST:PORT of process 0, for example 10.0.0.2:8476',
      )
      require(
        self.processes >= 1,
        '--num-processes',
        self.processes,
        'must be at least 1',
      )
      require(
        0 <= self.process < self.processes,
        '--process-id',
        self.process,
        f'must lie in [0, --num-processes = {self.processes})',
      )
    require(
      self.timeout >= 1,
      '--join-timeout',
      self.timeout,
      'must be at least 1 second',
    )


def join(cluster: Cluster) -> None:
  """Joins the other processes; call it before any other use of JAX.

  Does nothing for one process alone.

  Raises:
    JoinError: no cluster was found, or not all processes arrived in time. JAX
      then still waits in a thread: end the process, with `leave`.
  """
  global _joining
  if not (cluster.auto or cluster.coordinator):
    return
  if cluster.process == 0:
    _check_port(cluster.coordinator)
  import jax

  _joining = True
  failed: list[BaseException] = []

  def initialize() -> None:
    try:
      jax.distributed.initialize(
        coordinator_address=cluster.coordinator or None,
        num_processes=cluster.processes,
        process_id=cluster.process,
        initialization_timeout=cluster.timeout + _SPARE,
        cluster_detection_method='deactivate' if cluster.coordinator else None,
      )
    except BaseException as error:
      failed.append(error)

  # In a thread, because it does not return when time is up.
  thread = threading.Thread(target=initialize, name='join', daemon=True)
  deadline = time.monotonic() + cluster.timeout
  thread.start()
  while thread.is_alive() and time.monotonic() < deadline:
    thread.join(_POLL)
  if thread.is_alive():
    raise JoinError(_too_late(cluster))
  if failed:
    raise JoinError(_refused(cluster, failed[0])) from failed[0]


def joined() -> bool:
  """Whether this process has tried to join others, and has to `leave` them."""
  return _joining


def leave(code: int, *, together: bool) -> int:
  """Ends this process's part in the run.

  Does nothing for one process alone.

  Args:
    code: the exit code.
    together: whether all processes come here, as they do at the end of a run
      and when they are preempted: then they wait for each other. Otherwise
      this process ends here and now, and the others notice: at once if they
      wait for its data, at the latest after JAX's 100 seconds.

  Returns:
    The code, if the process is not ended here.
  """
  global _joining
  if not joined():
    return code
  if together:
    import jax

    _joining = False
    jax.distributed.shutdown()
    return code
  sys.stdout.flush()
  sys.stderr.flush()
  if _state().service is not None:
    time.sleep(_GRACE)
  # No cleaning up: that waits five minutes for the others, and then aborts.
  os._exit(code)


def _check_port(address: str) -> None:
  """Raises `JoinError` if the port is taken; JAX would abort the process."""
  port = int(address.rpartition(':')[2])
  try:
    with socket.socket(socket.AF_INET6) as listener:
      listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      listener.bind(('::', port))
  except OSError as error:
    if error.errno == errno.EADDRINUSE:
      raise JoinError(
        f'--coordinator = {address!r}: another program listens at port {port} '
        'of this host, perhaps an earlier run; end it, or give all processes '
        'another port'
      ) from error


def _state():
  """Returns JAX's record. Nothing public has it before there are devices."""
  from jax._src import distributed

  return distributed.global_state


def _too_late(cluster: Cluster) -> str:
  state = _state()
  address = cluster.coordinator or state.coordinator_address
  if address is None:
    return (
      f'this process could not find the cluster within {cluster.timeout} s; '
      'look whether the metadata server and the name of the first host can be '
      'reached, or raise --join-timeout'
    )
  count = cluster.processes or state.num_processes
  me = state.process_id if cluster.process is None else cluster.process
  if me == 0:
    return (
      f'process 0 of {count} waited {cluster.timeout} s at {address} and not '
      'all of the others came; look whether every host runs the same command, '
      'with a --process-id of its own, and can reach this address, or raise '
      '--join-timeout'
    )
  return (
    f'process {me} of {count} could not join at {address} within '
    f'{cluster.timeout} s; look whether process 0 runs there, whether a '
    'firewall closes the port, and whether every other host runs the same '
    'command, or raise --join-timeout'
  )


def _refused(cluster: Cluster, error: BaseException) -> str:
  reason = (str(error).splitlines() or [''])[0][:300]
  if cluster.auto and _state().coordinator_address is None:
    return (
      '--distributed: found no Cloud TPU, GKE, Slurm or Open MPI that has '
      f'started this process ({reason}); give --coordinator HOST:PORT '
      '--num-processes N --process-id I'
    )
  return (
    f'cannot join at {_state().coordinator_address} '
    f'({type(error).__name__}: {reason}); look whether the port is free on '
    'process 0, and whether JAX was used before'
  )
