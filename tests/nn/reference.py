"""The transformer of section 2 in float64 NumPy loops, from the text alone."""

import numpy as np


def attention(q, k, v, allowed, soft_cap):
  """One head at a time: `q [Q, heads, h]`, `k, v [S, groups, h]`.

  `allowed` is `[Q, S]`. Neighbouring heads share a key/value head.
  """
  out = np.zeros(q.shape)
  heads, per_group = q.shape[1], q.shape[1] // k.shape[1]
  for i in range(q.shape[0]):
    for head in range(heads):
      keys = [s for s in range(k.shape[0]) if allowed[i, s]]
      g = head // per_group
      logits = np.array([q[i, head] @ k[s, g] for s in keys])
      logits = logits / np.sqrt(q.shape[-1])
      if soft_cap is not None:
        logits = soft_cap * np.tanh(logits / soft_cap)
      weights = np.exp(logits - logits.max())
      weights /= weights.sum()
      out[i, head] = sum(w * v[s, g] for w, s in zip(weights, keys))  # noqa: B905
  return out


def slopes(fn, *args, step=1e-6):
  """Gradients of a number by central differences, one for each argument."""
  found = []
  for arg in args:
    slope = np.zeros(arg.shape)
    for i in np.ndindex(arg.shape):
      kept = arg[i]
      arg[i] = kept + step
      above = fn(*args)
      arg[i] = kept - step
      slope[i] = (above - fn(*args)) / (2 * step)
      arg[i] = kept
    found.append(slope)
  return found


def rms(x, scale):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


def turn(x, position, base):
  """Rotates `[..., heads, h]` by `position`, pair i at base^(-i / pairs)."""
  pairs = x.shape[-1] // 2
  angle = position * base ** (-np.arange(pairs) / pairs)
  z = (x[..., :pairs] + 1j * x[..., pairs:]) * np.exp(1j * angle)
  return np.concatenate([z.real, z.imag], axis=-1)


def layer(p, x, allowed, positions, base, soft_cap):
  """Pre-norm attention and SwiGLU over the tokens of `x [S, D]`."""
  a = p['attention']
  y = rms(x, p['attention_norm']['scale'])
  project = lambda name: np.tensordot(y, a[name]['kernel'], 1)
  q = rms(project('query'), a['query_norm']['scale'])
  k = rms(project('key'), a['key_norm']['scale'])
  if positions is not None:
    q = np.stack([turn(row, n, base) for row, n in zip(q, positions)])  # noqa: B905
    k = np.stack([turn(row, n, base) for row, n in zip(k, positions)])  # noqa: B905
  mixed = attention(q, k, project('value'), allowed, soft_cap)
  x = x + mixed.reshape(len(x), -1) @ a['out']['kernel']
  y = rms(x, p['mlp_norm']['scale'])
  gate = y @ p['mlp']['gate']['kernel']
  hidden = gate / (1 + np.exp(-gate)) * (y @ p['mlp']['up']['kernel'])
  return x + hidden @ p['mlp']['down']['kernel']


def transformer(p, x, space_mask, segment_ids, config):
  """`x [B, T, N, D]`, `p` as made by `SpaceTimeTransformer.init`."""
  x = np.array(x, np.float64)
  batch, frames, tokens, _ = x.shape
  clock = range(frames)
  for period in range(config.depth // config.time_every):
    weights = slice_tree(p['periods'], period)
    for name in [f'space_{i}' for i in range(config.time_every - 1)]:
      for b in range(batch):
        for t in clock:
          x[b, t] = layer(
            weights[name], x[b, t], space_mask, None, 0, config.soft_cap
          )
    for b in range(batch):
      ids = segment_ids[b]
      allowed = [
        [
          s <= t and t - s < config.context_length and ids[s] == ids[t]
          for s in clock
        ]
        for t in clock
      ]
      for n in range(tokens):
        x[b, :, n] = layer(
          weights['time'],
          x[b, :, n],
          np.array(allowed),
          clock,
          config.rope_base,
          config.soft_cap,
        )
  return rms(x, p['norm']['scale'])


def slice_tree(tree, i):
  if isinstance(tree, dict):
    return {k: slice_tree(v, i) for k, v in tree.items()}
  return np.asarray(tree[i], np.float64)


def reach(space_mask, segment_ids, config):
  """Which inputs can influence which outputs, `[T, N, T, N]` bool.

  `segment_ids [T]` of one clip. A product of the layers' adjacencies.
  """
  frames, tokens = len(segment_ids), len(space_mask)
  size = frames * tokens
  space, time = np.eye(size, dtype=int), np.eye(size, dtype=int)
  for t in range(frames):
    for n in range(tokens):
      for m in range(tokens):
        if space_mask[n, m]:
          space[t * tokens + n, t * tokens + m] = 1
      for s in range(max(0, t - config.context_length + 1), t + 1):
        if segment_ids[s] == segment_ids[t]:
          time[t * tokens + n, s * tokens + n] = 1
  total = np.eye(size, dtype=int)
  for i in range(config.depth):
    layer = time if (i + 1) % config.time_every == 0 else space
    total = ((layer @ total) > 0).astype(int)
  return total.reshape(frames, tokens, frames, tokens) > 0
