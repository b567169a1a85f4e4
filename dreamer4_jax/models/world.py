"""All modules of an agent, built from one config.

Parameters live outside, in one flat dictionary with the keys `tokenizer`,
`latents` (statistics of the tokenizer's output), `dynamics`, `task`,
`task_vectors` (given, for tasks that are vectors), `policy`, `reward`,
`continuation`, `value` and `prior`; a phase has those it needs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.config import Config
from dreamer4_jax.models import dynamics as dynamics_lib
from dreamer4_jax.models import heads
from dreamer4_jax.models.actions import ActionSpace, no_action
from dreamer4_jax.models.tokenizer import Tokenizer
from dreamer4_jax.nn import fuse, logical_axes, resolve_backend
from dreamer4_jax.types import Actions, Array, Batch, Levels

Params = dict[str, Any]
_CAST = ('kernel', 'table')  # Scales of norms are used in float32.


@dataclasses.dataclass(frozen=True)
class World:
  """The Flax modules; hashable, so it can be closed over by jitted code."""

  config: Config
  tokenizer: Tokenizer
  dynamics: dynamics_lib.Dynamics
  task: heads.TaskEmbedding
  policy: heads.PolicyHead
  reward: heads.TwoHotHead
  continuation: heads.ContinuationHead
  value: heads.TwoHotHead

  @classmethod
  def from_config(cls, config: Config, platform: str | None = None) -> World:
    """Builds the modules.

    Args:
      config: sizes.
      platform: `cpu`, `gpu` or `tpu`, by default that of the process; decides
        what computes attention.

    Raises:
      ValueError: the platform lacks the attention backend that is asked for.
    """
    compute = dataclasses.replace(
      config.compute,
      attention=resolve_backend(
        config.compute.attention, platform, 'compute.attention'
      ),
    )
    values = math.prod(config.tokenizer.latent_shape)
    channels = values // config.dynamics.num_spatial_tokens
    agent = config.agent
    return cls(
      config=config,
      tokenizer=Tokenizer(config.tokenizer, config.vectors, compute),
      dynamics=dynamics_lib.Dynamics(
        config.dynamics, config.actions, channels, compute
      ),
      task=heads.TaskEmbedding(
        config.num_tasks + len(config.baselines),
        config.dynamics.width,
        agent.task_vector_size,
      ),
      policy=heads.PolicyHead(agent, config.actions),
      reward=heads.TwoHotHead(agent, agent.distances),
      continuation=heads.ContinuationHead(agent),
      value=heads.TwoHotHead(agent, 1),
    )

  @property
  def space(self) -> ActionSpace:
    """The action space."""
    return self.config.actions

  def init(self, key: Array, modules: tuple[str, ...]) -> Params:
    """Initialises the named modules, with logical-axis metadata boxes."""
    keys = dict(zip(modules, jax.random.split(key, len(modules)), strict=True))
    with logical_axes():
      return {name: self._init(name, k) for name, k in keys.items()}

  def _init(self, name: str, key: Array) -> Any:
    c = self.config
    hidden = jnp.zeros((1, 1, c.dynamics.width))
    if name == 'tokenizer':
      t = c.tokenizer
      variables = self.tokenizer.init(
        key,
        jnp.zeros((1, 1, *t.frame_shape), jnp.uint8),
        vectors={v.name: jnp.zeros((1, 1, v.size)) for v in c.vectors},
      )
    elif name == 'dynamics':
      z = jnp.zeros((1, 1, c.dynamics.num_spatial_tokens, self.channels))
      levels = Levels(0, 0, c.dynamics.max_steps).broadcast((1, 1))
      action = no_action(self.space, (1, 1))
      known = jnp.zeros((1, 1), bool)
      variables = self.dynamics.init(key, z, levels, action, known)
    elif name == 'task':
      task = jnp.zeros((1, 1), jnp.int32)
      if size := c.agent.task_vector_size:
        task = jnp.zeros((1, 1, size))
      variables = self.task.init(key, task)
    else:
      variables = getattr(self, name).init(key, hidden)
    return variables['params']

  def for_inference(self, params: Params) -> Params:
    """Returns parameters as the passes use them, for use without training.

    A pass casts the weights of tokenizer and dynamics to its compute dtype.
    Cast beforehand, they take half the memory in bfloat16 and are not cast
    again for every frame; the results are the same, bit for bit. On a GPU,
    products that share an input are joined as well (`nn.fuse`), unless heads
    are split over a mesh; then the results differ by rounding.

    Args:
      params: any entries.

    Returns:
      The same, with kernels and tables in the dtype of their config.
    """
    dtype = self.config.compute.dtype
    mesh = jax.sharding.get_abstract_mesh()
    whole = mesh.empty or mesh.shape.get('tensor', 1) == 1
    joins = whole and self.dynamics.compute.attention == 'triton'

    def lay_out(own: Any) -> Any:
      return jax.tree_util.tree_map_with_path(
        lambda path, x: x.astype(dtype) if path[-1].key in _CAST else x,
        fuse(own) if joins else own,
      )

    return {
      name: lay_out(own) if name in ('tokenizer', 'dynamics') else own
      for name, own in params.items()
    }

  @property
  def channels(self) -> int:
    """Channels of a z token."""
    return self.dynamics.channels

  # Thin wrappers: pick the parameters of a module and call it.

  def encode(self, params: Params, frames: Array, **kwargs):
    """Returns standardised packed tokens `[B, T, N_z, C]` and cache entries.

    Args:
      params: entries `tokenizer`, `latents`.
      frames: as in `latents`.
      **kwargs: as in `Tokenizer.encode`.
    """
    z, new = self.latents(params, frames, **kwargs)
    return self.standardise(params, z), new

  def encode_clips(self, params: Params, batch: Batch) -> Array:
    """Returns standardised packed tokens `[B, T, N_z, C]` of whole clips."""
    z, _ = self.encode(
      params,
      batch.frames,
      vectors=batch.vectors,
      segment_ids=batch.segment_ids,
    )
    return z

  def latents(self, params: Params, frames: Array, **kwargs):
    """Returns the tokenizer's latents `[B, T, L, b]` and cache entries.

    Args:
      params: entry `tokenizer`.
      frames: `[B, T, H, W, C]` uint8; or `[B, T, L, b]` floats, the latents of
        a pre-tokenised dataset, which come back as float32, without entries;
        vectors are in them already.
      **kwargs: as in `Tokenizer.encode`.
    """
    if frames.ndim == 4:
      return frames.astype(jnp.float32), None
    return self.tokenizer.apply(
      {'params': params['tokenizer']}, frames, method='encode', **kwargs
    )

  def fingerprint(self, params: Params) -> str:
    """Names the tokenizer: its config and every bit of its parameters.

    Args:
      params: entry `tokenizer`, as arrays that this process can read.
    """
    t = self.config.tokenizer
    plain = {**dataclasses.asdict(t), 'patch_grid': t.grid}
    if self.config.vectors:
      plain['vectors'] = [dataclasses.asdict(v) for v in self.config.vectors]
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    leaves = jax.tree_util.tree_leaves_with_path(params['tokenizer'])
    for path, leaf in leaves:
      digest.update(jax.tree_util.keystr(path).encode())
      digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]

  def decode(self, params: Params, z: Array, **kwargs):
    """Returns images `[B, T, H, W, C]` of standardised tokens, and entries."""
    return self._decode('decode', params, z, **kwargs)

  def decode_modalities(self, params: Params, z: Array, **kwargs):
    """Returns `Decoded` images and vectors of such tokens, and entries."""
    return self._decode('decode_modalities', params, z, **kwargs)

  def _decode(self, method: str, params: Params, z: Array, **kwargs):
    stats = params['latents']
    latents = dynamics_lib.unpack(z, self.config.tokenizer.num_latents)
    latents = latents * stats['std'][None, None] + stats['mean'][None, None]
    return self.tokenizer.apply(
      {'params': params['tokenizer']}, latents, method=method, **kwargs
    )

  def standardise(self, params: Params, z: Array) -> Array:
    """Latents `[B, T, L, b]` to standardised tokens `[B, T, N_z, C]`."""
    stats = params['latents']
    z = (z - stats['mean'][None, None]) / stats['std'][None, None]
    return dynamics_lib.pack(z, self.config.dynamics.num_spatial_tokens)

  def denoise(
    self,
    params: Params,
    z: Array,
    levels: Levels,
    prev_action: Actions,
    prev_action_mask: Array,
    **kwargs,
  ) -> dynamics_lib.DynamicsOutput:
    """Calls the dynamics; arguments as in `Dynamics.__call__`."""
    return self.dynamics.apply(
      {'params': params['dynamics']},
      z,
      levels,
      prev_action,
      prev_action_mask,
      **kwargs,
    )

  def head(self, params: Params, name: str, h: Array) -> Any:
    """Calls a head; `prior` is the policy with other parameters."""
    module = self.policy if name == 'prior' else getattr(self, name)
    return module.apply({'params': params[name]}, h)

  def agent_token(self, params: Params, task: Array) -> Array:
    """Embeds tasks for the agent token, `[B, T, D]`.

    Args:
      params: entry `task`; with `agent.task_vector_size`, for ids, also
        `task_vectors`, `[num_tasks, E]`.
      task: `[B, T]` ids; or, with `agent.task_vector_size`, any vectors
        `[B, T, E]`, including those of tasks that training has not seen.
    """
    ids = jnp.issubdtype(task.dtype, jnp.integer)
    if self.config.agent.task_vector_size and ids:
      task = params['task_vectors'][task]
    return self.task.apply({'params': params['task']}, task)
