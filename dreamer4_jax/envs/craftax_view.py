"""Draws Craftax-Classic tile by tile: the package's pictures, but faster.

The package paints every kind of block over the whole picture and draws mobs and
numbers one by one, which takes more time than the game itself. Here tiles come
from tables made of the package's textures, and the noise of the night is drawn
only when it is night in some episode. The pictures are the same; tests compare
them.
"""

from __future__ import annotations

from collections.abc import Mapping
import functools

from craftax.craftax_classic import constants
from craftax.craftax_classic.envs.craftax_state import EnvState
from einops import rearrange
import jax
import jax.numpy as jnp
import numpy as np

from dreamer4_jax.types import Array

_ROWS, _COLUMNS = constants.OBS_DIM
_SIDE = constants.BLOCK_PIXEL_SIZE_AGENT
_OUTSIDE = constants.BlockType.OUT_OF_BOUNDS.value
_LUMINANCE = (0.299, 0.587, 0.114)

_TURNED = ('left', 'right', 'up', 'down', 'asleep')
"""How the player stands, in the order of its pictures."""

# What the two rows of the inventory show.
_INVENTORY = (
  'player_health', 'player_food', 'player_drink', 'player_energy', 'sapling',
  'wood', 'stone', 'coal', 'iron',
  'diamond', 'wood_pickaxe', 'stone_pickaxe', 'iron_pickaxe', 'wood_sword',
  'stone_sword', 'iron_sword',
)  # fmt: skip
_BLOCK_ICONS = ('wood', 'stone', 'coal', 'iron', 'diamond')
_STATUS_ICONS = {
  'player_health': 'health', 'player_food': 'hunger', 'player_drink': 'thirst',
  'player_energy': 'energy',
}  # fmt: skip


def draw(game: EnvState) -> Array:
  """Draws a batch of games.

  Args:
    game: Craftax-Classic's state, batched over `B`.

  Returns:
    `[B, 63, 63, 3]` float32 in 0..255.
  """
  return jnp.concatenate([_world(game), _inventory(game)], axis=1)


def _world(game: EnvState) -> Array:
  """`[B, 49, 63, 3]` float32: what is around the player."""
  sprites = tables()
  tiles = jnp.asarray(sprites['blocks'])[_blocks_around(game)]
  player = jnp.where(game.is_sleeping, 4, game.player_direction - 1)
  middle = jnp.zeros_like(game.player_position)
  tiles = _overlay(tiles, middle, True, sprites['players'], player)
  for name in ('zombies', 'cows', 'skeletons', 'arrows'):
    mobs = getattr(game, name)
    for i in range(mobs.mask.shape[1]):
      kind = jnp.zeros_like(game.player_direction)
      if name == 'arrows':
        row, column = game.arrow_directions[:, i].T
        flipped = (row > 0) | (column > 0)
        kind = 2 * (column != 0).astype(jnp.int32) + flipped
      offset = mobs.position[:, i] - game.player_position
      tiles = _overlay(tiles, offset, mobs.mask[:, i], sprites[name], kind)
  pixels = rearrange(
    tiles, 'b (r c) (h w k) -> b (r h) (c w) k', r=_ROWS, h=_SIDE, w=_SIDE
  )
  return _asleep(game, _dark(game, pixels))


def _blocks_around(game: EnvState) -> Array:
  """`[B, rows * columns]` int32 kinds of the blocks in sight."""
  position = game.player_position
  rows = position[:, :1] + (jnp.arange(_ROWS) - _ROWS // 2)[None]
  columns = position[:, 1:] + (jnp.arange(_COLUMNS) - _COLUMNS // 2)[None]
  rows, columns = rows[:, :, None], columns[:, None, :]
  height, width = game.map.shape[1:]
  inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
  batch = jnp.arange(len(position))[:, None, None]
  # Out-of-bounds indices are clipped; the blocks they find are not used.
  found = game.map.at[batch, rows, columns].get(mode='clip')
  blocks = jnp.where(inside, found, _OUTSIDE)
  return rearrange(blocks, 'b r c -> b (r c)')


def _overlay(
  tiles: Array, offset: Array, shown: Array, table: np.ndarray, kind: Array
) -> Array:
  """Blends a sprite into one tile of each picture.

  Args:
    tiles: `[B, rows * columns, tile]`.
    offset: `[B, 2]` rows and columns from the player.
    shown: `[B]` bool.
    table: `[kinds, 2, tile]` colours times opacity, and transparency.
    kind: `[B]` entry of the table.
  """
  row, column = offset[:, 0] + _ROWS // 2, offset[:, 1] + _COLUMNS // 2
  shown &= (row >= 0) & (row < _ROWS) & (column >= 0) & (column < _COLUMNS)
  place = jnp.where(shown, row * _COLUMNS + column, 0)
  batch = jnp.arange(len(tiles))
  old = tiles[batch, place]
  sprite = jnp.asarray(table)[kind]
  new = sprite[:, 1] * old + sprite[:, 0]
  return tiles.at[batch, place].set(jnp.where(shown[:, None], new, old))


def _dark(game: EnvState, pixels: Array) -> Array:
  textures = tables()
  light = game.light_level[:, None, None, None]

  def with_noise(pixels: Array) -> Array:
    draw_one = lambda key: jax.random.uniform(key, pixels.shape[1:3])
    noise = jax.vmap(draw_one)(game.state_rng)[..., None] * 95 + 32
    share = jnp.maximum(2 * (0.5 - light), 0.0) * textures['night_noise'][None]
    return jnp.where(light < 0.5, (1 - share) * pixels + share * noise, pixels)

  night = jax.lax.cond(
    (game.light_level < 0.5).any(), with_noise, lambda x: x, pixels
  )
  night = 0.4 * night + 0.6 * _grey(night)
  night = 0.5 * night + 0.5 * textures['night'][None]
  return light * pixels + (1 - light) * night


def _asleep(game: EnvState, pixels: Array) -> Array:
  dim = 0.5 * _grey(pixels) + jnp.array([[[[0.0, 0.0, 8.0]]]])
  return jnp.where(game.is_sleeping[:, None, None, None], dim, pixels)


def _grey(pixels: Array) -> Array:
  r, g, b = (w * pixels[..., i] for i, w in enumerate(_LUMINANCE))
  return (r + g + b)[..., None]


def _inventory(game: EnvState) -> Array:
  """`[B, 14, 63, 3]` float32: what the player has."""
  has = lambda name: getattr(
    game if name in _STATUS_ICONS else game.inventory, name
  )
  counts = jnp.stack([has(name) for name in _INVENTORY], axis=-1)
  # As the package does: numbers below 0 count from the end.
  digit = jnp.minimum(jnp.where(counts < 0, counts + 10, counts), 9)
  items = jnp.arange(len(_INVENTORY))
  icons = jnp.asarray(tables()['icons'])
  tiles = icons[items[None], (counts > 0).astype(jnp.int32), digit]
  tiles = jnp.pad(tiles, [(0, 0), (0, 2 * _COLUMNS - len(items)), (0, 0)])
  return rearrange(
    tiles, 'b (r c) (h w k) -> b (r h) (c w) k', r=2, h=_SIDE, w=_SIDE
  )


@functools.cache
def by_day() -> tuple[np.ndarray, tuple[str, ...]]:
  """Returns what tiles look like in full light, and their names.

  Blocks are named by their kind, such as `tree`, what stands on one `cow on
  grass` or `player left on path`, and items by their count, `wood 3`; there is
  one `nothing` for all that one does not have.

  Returns:
    Pictures `[n, side, side, 3]` uint8, and n names.
  """
  sprites = tables()
  blocks = {b.name.lower(): sprites['blocks'][b.value]
            for b in constants.BlockType if b.value}  # fmt: skip
  found = dict(blocks)
  movers = {f'player {name}': sprites['players'][i]
            for i, name in enumerate(_TURNED)}  # fmt: skip
  movers |= {name: sprites[f'{name}s'][0]
             for name in ('zombie', 'cow', 'skeleton')}  # fmt: skip
  for name, (colour, clear) in movers.items():
    for ground in ('grass', 'sand', 'path'):
      found[f'{name} on {ground}'] = clear * blocks[ground] + colour
  found['nothing'] = sprites['icons'][0, 0, 0]
  for item, icons in zip(_INVENTORY, sprites['icons'], strict=True):
    name = item.removeprefix('player_').replace('_', ' ')
    found |= {f'{name} {count}': icons[1, count] for count in range(1, 10)}
  flat = np.round(np.stack([*found.values()])).astype(np.uint8)
  pictures = rearrange(flat, 'n (h w k) -> n h w k', h=_SIDE, w=_SIDE)
  return pictures, tuple(found)


@functools.cache
def tables() -> Mapping[str, np.ndarray]:
  """Returns tiles as rows of numbers, from the package's textures."""
  # As numpy arrays: this may run while a program is traced.
  textures = jax.tree.map(np.asarray, constants.load_all_textures()[_SIDE])
  f32 = lambda x: np.asarray(x, np.float32)
  flat = lambda x: rearrange(f32(x), '... h w k -> ... (h w k)')

  def sprite(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return flat(np.stack([f32(colour) * f32(alpha), 1 - f32(alpha)]))

  def arrow(turned: bool, flipped: bool) -> np.ndarray:
    layers = [textures['arrow_texture'], textures['arrow_texture_alpha']]
    layers = [x[::-1] if flipped else x for x in layers]
    layers = [np.swapaxes(x, 0, 1) if turned else x for x in layers]
    return sprite(*layers)

  made = {
    'blocks': flat(textures['block_textures']),
    'players': np.stack(
      [
        sprite(x[..., :3], x[..., 3:].repeat(3, -1) / 255)
        for x in textures['player_textures']
      ]
    ),
    'arrows': np.stack(
      [
        arrow(turned, flip)
        for turned in (False, True)
        for flip in (False, True)
      ]
    ),
    'night': f32(textures['night_texture']),
    'night_noise': f32(textures['night_noise_intensity_texture']),
    'icons': flat(np.stack([_icon(textures, name) for name in _INVENTORY])),
  }
  for name in ('zombie', 'cow', 'skeleton'):
    colour = textures[f'{name}_texture']
    alpha = textures[f'{name}_texture_alpha']
    made[f'{name}s'] = sprite(colour, alpha)[None]
  return made


def _icon(textures: Mapping[str, np.ndarray], name: str) -> np.ndarray:
  """`[absent or present, digit, side, side, 3]` float32 tiles of one item."""
  if name in _BLOCK_ICONS:
    block = constants.BlockType[name.upper()].value
    texture = textures['smaller_block_textures'][block]
  else:
    texture = textures[f'{_STATUS_ICONS.get(name, name)}_texture']
  size = texture.shape[0]
  tiles = np.zeros((2, 10, _SIDE, _SIDE, 3), np.float32)
  tiles[1, :, :size, :size] = texture
  number = textures['number_textures'].shape[1]
  area = slice(_SIDE - number - 1, _SIDE - 1)
  tiles[:, :, area, area] *= 1 - textures['number_textures_alpha']
  tiles[:, :, area, area] += textures['number_textures']
  return tiles
