"""Words and pictures of results, made by hand."""

import numpy as np
import pytest

from dreamer4_jax import evals
from dreamer4_jax.evals import drawing, report

FRAMES = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1) + np.zeros(
  (3, 4, 5, 3), np.uint8
)


def reconstructions():
  return evals.Reconstructions(
    errors=None,
    worst=FRAMES + 10,
    worst_decoded=FRAMES + 20,
    names=None,
    names_decoded=None,
  )


def test_the_worst_frames_above_what_became_of_them():
  sheet = drawing.worst_sheet(reconstructions(), columns=2)
  # Two rows of two cards, a border of two pixels and a line between the frames,
  # 96 // 5 times as large.
  assert sheet.shape == (2 * (2 * 4 + 1 + 4) * 19, 2 * (5 + 4) * 19, 3)
  small = sheet[::19, ::19, 0]
  assert (small[2:6, 2:7] == 10).all() and (small[7:11, 2:7] == 20).all()
  assert (small[2:6, 11:16] == 11).all() and (small[7:11, 11:16] == 21).all()
  assert (small[15:19, 2:7] == 12).all() and (small[20:24, 2:7] == 22).all()
  assert (small[6] == 255).all()
  assert (small[13:, 9:] == 255).all()  # no fourth one


def make_results(tiles):
  figures = {'psnr': 34.44, 'psnr_worst_1pct': 26.2, 'psnr_changed': None}
  dynamics = {}
  for h in (1, 4):
    for end in ('', '_repeat_last', '_shuffled_actions'):
      dynamics[f'psnr_{h}{end}'] = 20.0 + h
    dynamics |= {f'psnr_worst_1pct_{h}': 18.0, f'psnr_changed_{h}': None}
  if tiles:
    figures |= {'exact': 0.82, 'tiles': 0.99, 'rare_tiles': None}
    figures['player'] = {'doorway': {'right': 0.25, 'frames': 8}}
    for h in (1, 4):
      dynamics |= {
        f'exact_{h}': 0.5,
        f'exact_{h}_repeat_last': 0.26,
        f'exact_{h}_shuffled_actions': 0.3,
        f'changed_{h}': None,
      }
  agent = {
    'success': 0.5,
    'episodes': 8,
    'mean_return': 0.5,
    'mean_length': 9.0,
    'events': {'goal': 0.5},
  }
  compared = {
    'measure': 'success',
    'test': 'McNemar',
    'difference': 0.0,
    'ci95': None,
    'p_value': 1.0,
  }
  return {
    'tokenizer': figures | {'psnr_worst_regions': 21.0},
    'dynamics': dynamics,
    'agents': {name: agent for name in ('random', 'bc', 'rl')},
    'best_clone': 'bc',
    'rl_vs_bc': compared,
    'rl_vs_best_clone': compared,
    'rl_vs_best_clone_steps': None,
    'reality': None,
    'seconds': {'total': 1.0},
    'versions': {},
    'device': 'one',
    'seed': 0,
    'config': {'env': {'name': 'toy:x'}, 'eval': {}},
  }


@pytest.mark.parametrize('tiles', [False, True])
def test_figures_are_told_where_there_are_any(tiles):
  results = make_results(tiles)
  if tiles:
    results['recordings'] = {'recorded_0.5': results['agents']['rl']}
  text = report.markdown(results, (1, 4))
  assert ('Episodes: 8 of recorded_0.5.' in text) == tiles
  lines = text.splitlines()
  assert lines[0] == '# toy:x, seed 0'
  assert 'Tokenizer: 34.4 dB on held-out episodes; 26.2 dB on the' in text
  assert ' - where pixels changed, 21.0 dB in the worst region' in text
  assert '(worst.png)' in text
  assert '| 4 | 24.0 dB | 24.0 dB | 24.0 dB | 18.0 dB | - |' in lines
  told = (
    'Tile by tile: 0.820 of the frames are exact, 0.990 of the tiles are '
    'right, of rare ones -.',
    '| doorway | 0.250 | 8 |',
    '| 4 | 0.500 | 0.260 | 0.300 | - |',
  )
  assert [line in lines for line in told] == [tiles] * 3
