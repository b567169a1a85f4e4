import jax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.objectives import patch_mask

PATCHES = 400
mask_of = jax.jit(patch_mask, static_argnums=(1, 2))


def draw(max_ratio, seed=0, batch=(40, 50)):
  mask = mask_of(jax.random.key(seed), batch, PATCHES, max_ratio)
  assert mask.shape == (*batch, PATCHES) and mask.dtype == jnp.bool_
  return np.asarray(mask)


def test_each_image_has_its_own_uniform_probability():
  # 2000 shares. p ~ U(0, 0.8): mean 0.4, standard error 0.23 / 45 = 0.005.
  # Var = Var(p) + E[p(1-p)] / 400 = 0.64/12 + (0.4 - 0.64/3) / 400 = 0.0538.
  share = draw(0.8).mean(-1).ravel()
  assert abs(share.mean() - 0.4) < 0.02
  assert abs(share.var() - 0.0538) < 0.004
  # Uniform: one image in eight below 0.1 and one in eight above 0.7.
  assert abs((share < 0.1).mean() - 0.125) < 0.03
  assert abs((share > 0.7).mean() - 0.125) < 0.03


def test_neighbouring_images_and_patches_are_independent():
  mask = draw(0.8)
  share = mask.mean(-1)
  for a, b in ((share[1:], share[:-1]), (share[:, 1:], share[:, :-1])):
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.08
  centred = mask - share[..., None]
  assert abs(np.mean(centred[..., 1:] * centred[..., :-1])) < 0.003
  # Every patch position is masked equally often.
  assert np.all(np.abs(mask.mean((0, 1)) - 0.4) < 0.06)


def test_ratio_zero_masks_nothing_and_keys_differ():
  assert not draw(0.0).any()
  assert np.array_equal(draw(0.9, batch=(2, 3)), draw(0.9, batch=(2, 3)))
  assert (draw(0.9, batch=(2, 3)) != draw(0.9, seed=1, batch=(2, 3))).any()
