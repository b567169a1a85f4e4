"""What simulators draw is kept exactly, or refused in one sentence."""

import numpy as np
import pytest

from dreamer4_jax.config import EnvConfig
from dreamer4_jax.envs import host, make_env


@pytest.mark.parametrize('dtype', [np.uint8, np.int64, np.uint16, np.float64])
def test_whole_numbers_are_kept_in_any_dtype(dtype):
  """PyBullet's render is no uint8.

  github.com/bulletphysics/bullet3/issues/2562
  """
  image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
  found = host.as_picture(image.astype(dtype))
  assert found.dtype == np.uint8
  np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize(
  ('frame', 'said'),
  [
    (np.full((4, 6, 3), 0.5), 'float64 from 0.5 to 0.5'),
    (np.eye(4)[..., None].repeat(3, -1), 'float64 from 0.0 to 1.0'),
    (np.full((4, 6, 3), 300), 'int64 from 300 to 300'),
    (np.full((4, 6, 3), -1), 'int64 from -1 to -1'),
    (np.ones((4, 6, 3), bool), 'bool from True to True'),
    (np.full((4, 6, 3), np.nan), 'float64 from nan to nan'),
    (np.zeros((2, 4, 6, 3), np.uint8), r'uint8 of shape \(2, 4, 6, 3\)'),
    (np.zeros((4, 6, 2), np.uint8), r'uint8 of shape \(4, 6, 2\)'),
    (np.zeros((0, 6, 3), np.uint8), r'uint8 of shape \(0, 6, 3\)'),
    (np.zeros((4, 6, 4), np.uint8), 'transparent pixels'),
  ],
)
def test_what_is_no_picture_is_refused(frame, said):
  """Floats of 0 to 1 gave black films.

  github.com/Farama-Foundation/Gymnasium/pull/956
  """
  with pytest.raises(ValueError, match=f'the environment draws {said}'):
    host.as_picture(frame)


def test_opaque_pixels_lose_their_opacity():
  frame = np.full((4, 6, 4), 255, np.uint8)
  frame[..., :3] = 9
  assert host.as_picture(frame).shape == (4, 6, 3)


@pytest.fixture
def world():
  """Makes environments that see or draw as asked."""
  gymnasium = pytest.importorskip('gymnasium')
  spaces = gymnasium.spaces

  class Odd(gymnasium.Env):
    action_space = spaces.Discrete(2)
    metadata = {'render_modes': ['rgb_array']}  # noqa: RUF012

    def __init__(self, render_mode, seen=None, drawn=None):
      self.render_mode, self.seen, self.drawn = render_mode, seen, drawn
      self.observation_space = spaces.Box(0, 255, np.shape(seen), np.uint8)

    def reset(self, *, seed=None, options=None):
      return self.seen, {}

    def step(self, action):
      return self.seen, 0.0, False, False, {}

    def render(self):
      return self.drawn

  class Text(Odd):
    metadata = {'render_modes': ['ansi']}  # noqa: RUF012

    def __init__(self, render_mode):
      assert render_mode in self.metadata['render_modes']

  class Blind(Odd):
    def __init__(self):
      super().__init__(None, np.zeros(3, np.uint8))

  made = []

  def make(kind='Odd', **kwargs):
    name = f'{kind}-v{len(made)}'
    gymnasium.register(
      name,
      entry_point={'Odd': Odd, 'Text': Text, 'Blind': Blind}[kind],
      kwargs=kwargs,
      disable_env_checker=True,
    )
    made.append(name)
    return f'gymnasium:{name}'

  yield make
  for name in made:
    gymnasium.registry.pop(name)


def test_a_grey_observation_can_be_resized(world):
  seen = np.arange(48, dtype=np.uint8).reshape(6, 8, 1) // 2 * 2
  env = make_env(EnvConfig(name=world(seen=seen), image_size=(3, 4)))
  assert env.spec.frame_shape == (3, 4, 1)


def test_floats_are_refused_by_name(world):
  name = world(seen=np.zeros(3, np.uint8), drawn=np.full((4, 6, 3), 0.5))
  with pytest.raises(ValueError, match=rf"name = '{name}': .*float64"):
    make_env(EnvConfig(name=name))


@pytest.mark.parametrize('kind', ['Text', 'Blind'])
def test_an_environment_without_pictures_says_so(world, kind):
  """github.com/stepjam/RLBench/issues/46, github.com/damat-le/gym-simplegrid/
  issues/8
  """
  name = world(kind)
  with pytest.raises(ValueError, match=rf"{name}': .*draws no pictures; its"):
    make_env(EnvConfig(name=name))


def test_nothing_drawn_is_named(world):
  name = world(seen=np.zeros(3, np.uint8), drawn=None)
  with pytest.raises(ValueError, match=r'render_modes must have rgb_array and'):
    make_env(EnvConfig(name=name))
