import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.models import World
from dreamer4_jax.objectives import patch_mask
from dreamer4_jax.training.tokenizer_step import (
  frame_noise,
  init_tokenizer_state,
  latent_statistics,
  make_tokenizer_step,
  tokenizer_objective,
)
from tests.models.tiny_world import CONFIG, make_batch, world_and_params

FIELDS = {
  'phases.tokenizer.learning_rate': 1e-2,
  'optimizer.warmup_steps': 1,
  'optimizer.decay_share': 0.0,
  'optimizer.ema_decay': 0.5,
}
LOW = CONFIG.edit({**FIELDS, 'compute.dtype': 'bfloat16'})
BATCH = jax.tree.map(jnp.asarray, make_batch(2, 3))


def lpips(pred, target):
  """Stands for the perceptual distance: the error of the red channel."""
  return jnp.abs(pred - target)[..., 0].mean((2, 3))


@functools.cache
def trained():
  """Overfits one batch in bfloat16; returns states and metrics."""
  world = World.from_config(LOW)
  state = jax.jit(lambda key: nn.unbox(init_tokenizer_state(world, key)))(
    jax.random.key(0)
  )
  step = jax.jit(make_tokenizer_step(world, lpips))
  states, metrics = [state], []
  for i in range(25):
    state, m = step(state, BATCH, jax.random.key(i))
    states.append(state)
    metrics.append(jax.device_get(m))
  return states, metrics


def test_overfitting_one_batch_lowers_the_error():
  _, metrics = trained()
  errors = [m['tokenizer/mse'] for m in metrics]
  assert np.mean(errors[-3:]) < 0.8 * np.mean(errors[:3])
  assert np.mean(errors[-3:]) < 0.1
  for m in metrics:
    assert np.isfinite(list(m.values())).all()
    np.testing.assert_allclose(
      m['tokenizer/psnr'], -10 * np.log10(m['tokenizer/mse']), rtol=1e-5
    )


def test_the_first_loss_is_the_sum_of_the_weights():
  # Each term is divided by itself at first: 1 + 0.2.
  states, metrics = trained()
  np.testing.assert_allclose(metrics[0]['loss'], 1.2, rtol=1e-5)
  for name in ('mse', 'lpips'):
    x = metrics[0][f'tokenizer/{name}']
    square = states[1].rms[name].mean_square
    np.testing.assert_allclose(square, 0.01 * x**2, rtol=1e-5)
    np.testing.assert_allclose(states[1].rms[name].weight, 0.01, rtol=1e-5)


def test_state_stays_float32_under_bfloat16():
  states, _ = trained()
  last = states[-1]
  assert last.step == 25
  for tree in (last.params, last.ema, last.opt_state, last.rms):
    for x in jax.tree.leaves(tree):
      assert x.dtype in (jnp.float32, jnp.int32)
  shapes = lambda s: jax.tree.map(lambda x: (x.shape, x.dtype), s)
  assert shapes(states[0]) == shapes(last)


def test_the_average_follows_the_parameters():
  # decay = min(0.5, (1 + n) / (10 + n)): 0.1 on the first, 2/11 on the second.
  states, _ = trained()
  leaf = lambda tree: np.asarray(tree['tokenizer']['patch_in']['kernel'])
  first = 0.1 * leaf(states[0].params) + 0.9 * leaf(states[1].params)
  np.testing.assert_allclose(leaf(states[1].ema), first, rtol=1e-5, atol=1e-7)
  second = 2 / 11 * first + 9 / 11 * leaf(states[2].params)
  np.testing.assert_allclose(leaf(states[2].ema), second, rtol=1e-5, atol=1e-7)
  late = 0.5 * leaf(states[20].ema) + 0.5 * leaf(states[21].params)
  np.testing.assert_allclose(leaf(states[21].ema), late, rtol=1e-5, atol=1e-7)


def test_the_terms_match_a_loop():
  # In float32, from the modules and the key; row 1 has two episodes.
  world, params = world_and_params()
  batch = jax.tree.map(jnp.asarray, make_batch(2, 3, starts=[(1, 2)]))
  key = jax.random.key(0)
  objective = tokenizer_objective(world, lpips)

  @jax.jit
  def compute(batch):
    data = objective.prepare(None, batch, key)
    return objective.terms({'tokenizer': params['tokenizer']}, None, data)

  terms, others = jax.device_get(compute(batch))
  assert set(terms) == {'mse', 'lpips'} and not others
  mask = patch_mask(jax.random.split(key)[0], (2, 3), 6, 0.9)
  assert 0 < mask.sum() < 36

  @jax.jit
  def apply(mask, segment_ids):
    return world.tokenizer.apply(
      {'params': params['tokenizer']},
      batch.frames,
      mask=mask,
      segment_ids=segment_ids,
    )[1]

  images = apply(mask, batch.segment_ids)
  squares, reds = [], []
  for row in range(2):
    for t in range(3):
      off = np.asarray(images[row, t], float) - batch.frames[row, t] / 255.0
      squares.append(np.mean(off**2))
      reds.append(np.mean(np.abs(off[..., 0])))
  for name, values in (('mse', squares), ('lpips', reds)):
    np.testing.assert_allclose(terms[name].value(), np.mean(values), rtol=1e-4)
    assert terms[name].weight == 6
  # And the mask and the segments matter.
  for other in (
    apply(~mask, batch.segment_ids),
    apply(mask, batch.segment_ids * 0),
  ):
    assert np.abs(other - images).max() > 1e-3


def test_latent_statistics_match_numpy():
  world, params = world_and_params()
  batches = [make_batch(2, 3, seed=i) for i in range(3)]
  got = latent_statistics(world, params, batches)
  encode = jax.jit(
    lambda frames: world.tokenizer.apply(
      {'params': params['tokenizer']}, frames, method='encode'
    )[0]
  )
  z = np.concatenate([encode(jnp.asarray(b.frames)) for b in batches])
  np.testing.assert_allclose(got['mean'], z.mean((0, 1)), atol=1e-5)
  np.testing.assert_allclose(got['std'], z.std((0, 1)), atol=1e-4)


def test_each_frame_has_an_amount_of_noise_of_its_own():
  noise = frame_noise(jax.random.key(0), (8, 64, 16, 16), 0.8)
  amounts = np.asarray(noise).std((2, 3)).ravel()
  levels = np.linspace(0.1, 0.9, 9)
  np.testing.assert_allclose(
    np.quantile(amounts, levels), 0.8 * levels, atol=0.06
  )
  np.testing.assert_allclose(noise.mean((2, 3)), 0, atol=0.2)
