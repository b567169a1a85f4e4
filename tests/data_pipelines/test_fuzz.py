"""Three hundred malformed inputs: each is skipped by name, or changes nothing.

The seed is fixed. What a converter lets pass is compared with what was
recorded, so that nothing wrong gets into a dataset unnoticed.
"""

import json
import os
import shutil

import numpy as np
import pytest

pytest.importorskip('av')
pytest.importorskip('pyarrow')

from data_pipelines import convert, minari_datasets, video, vpt, writer
from dreamer4_jax.data import EpisodeSource
from tests.data_pipelines import test_lerobot, test_rlds, test_vpt, test_writer
from tests.data_pipelines.test_video import frames, write
from tests.data_pipelines.test_vpt import lines

SEED = 20_260_101
VIDEOS, RECORDINGS, FILES, EPISODES = 96, 64, 48, 92
RLDS, MINARI = 24, 20


def damaged(data, kind, rng):
  """Returns damaged bytes: cut, filled, shifted, flipped or replaced."""
  size = len(data)
  a, b = sorted(rng.integers(0, size, 2).tolist())
  b = min(b, a + 400) + 1
  if kind == 'cut':
    return data[:a]
  if kind == 'zeros':
    return data[:a] + bytes(b - a) + data[b:]
  if kind == 'noise':
    return data[:a] + rng.bytes(b - a) + data[b:]
  if kind == 'hole':
    return data[:a] + data[b:]
  if kind == 'flip':
    flipped = bytearray(data)
    for at in rng.integers(0, size, 20):
      flipped[at] ^= 1 << int(rng.integers(8))
    return bytes(flipped)
  return {
    'empty': b'',
    'text': b'{"not": "a video"}\n',
    'alien': rng.bytes(999),
  }[kind]


def film(path, images):
  """Writes a video of PNG pictures, whose checksums leave no damage unseen."""
  path.parent.mkdir(parents=True, exist_ok=True)
  write(path.with_suffix('.avi'), images, codec='png', pix_fmt='rgb24', rate=20)
  path.with_suffix('.avi').rename(path)


def record(directory, name, texts, images):
  film(directory / f'{name}.mp4', images)
  (directory / f'{name}.jsonl').write_text('\n'.join(texts) + '\n')
  return f'{name}.mp4'


KINDS = ('cut', 'zeros', 'noise', 'hole', 'flip', 'empty', 'text', 'alien')


def test_video_files(tmp_path):
  rng = np.random.default_rng(SEED)
  truth = frames(20)
  folder = tmp_path / 'in'
  folder.mkdir()
  film(folder / 'good.mkv', truth)
  whole = (folder / 'good.mkv').read_bytes()
  for i in range(VIDEOS):
    name = os.fsencode(f'bad{i:03d}') + (b'\xff\xfe' if i % 7 == 0 else b'')
    path = os.fsencode(folder) + b'/' + name + b'.mkv'
    with open(path, 'wb') as file:
      file.write(damaged(whole, KINDS[i % len(KINDS)], rng))
  config = video.VideoConfig(
    inputs=(str(folder),), out=str(tmp_path / 'd'), workers=1, eval_share=0.0,
    steady=True,
  )  # fmt: skip
  report = video.convert_videos(config, progress=False)
  source = EpisodeSource(tmp_path / 'd', 'train')
  assert len(source) + len(report['skipped']) == VIDEOS + 1
  assert len(report['skipped']) > VIDEOS // 2
  for name, reason in report['skipped'].items():
    assert reason and 'Traceback' not in reason and name
  for i, attributes in enumerate(source.index.attributes):
    found = source[i]['observation']
    np.testing.assert_array_equal(
      found, truth[: len(found)], err_msg=attributes['file']
    )


def broken_line(text, rng):
  """Returns a line with something wrong in it."""
  data = json.loads(text)
  kind = int(rng.integers(9))
  if kind == 0:
    return text[: int(rng.integers(1, len(text)))]
  if kind == 1:
    del data[str(rng.choice(['mouse', 'keyboard', 'isGuiOpen']))]
  elif kind == 2:
    del data['mouse'][str(rng.choice(['x', 'dx', 'buttons', 'newButtons']))]
  elif kind == 3:
    data['mouse']['dx'] = str(rng.choice(['a', '', '--1']))
  elif kind == 4:
    data['mouse']['dy'] = float('nan')
  elif kind == 5:
    data['hotbar'] = int(rng.choice([-1, 9, 1000]))
  elif kind == 6:
    data['keyboard'] = [1, 2, 3]
  elif kind == 7:
    data['stats'] = {'minecraft.mine_block:minecraft.stone': None}
  else:
    return '\x00\x01' + text
  return json.dumps(data)


def test_vpt_recordings(tmp_path):
  rng = np.random.default_rng(SEED + 1)
  truth, names, expected = frames(40), [], {}
  for i in range(RECORDINGS):
    texts = lines(40, seed=i)
    kind = i % 4
    name = f'bad{i:03d}'
    if kind == 0:  # A few broken lines: unknown actions.
      bad = rng.choice(40, 3, replace=False)
      for at in bad:
        texts[at] = broken_line(texts[at], rng)
      expected[f'{name}.mp4'] = set(bad.tolist())
    elif kind == 1:  # Many of them: skipped.
      for at in rng.choice(40, 10, replace=False):
        texts[at] = broken_line(texts[at], rng)
    elif kind == 2:  # Fewer lines than frames.
      texts = texts[: int(rng.integers(0, 39))]
    names.append(record(tmp_path, name, texts, truth))
    if kind == 3:  # A damaged video.
      path = tmp_path / f'{name}.mp4'
      path.write_bytes(
        damaged(path.read_bytes(), KINDS[i // 4 % len(KINDS)], rng)
      )
  report = test_vpt.run(
    test_vpt.index(tmp_path, names), tmp_path, tmp_path / 'd'
  )
  source = EpisodeSource(tmp_path / 'd', 'train')
  assert len(source) + len(report['skipped']) == RECORDINGS
  skipped = set(report['skipped'])
  assert skipped >= {f'bad{i:03d}.mp4' for i in range(1, RECORDINGS, 4)}
  for i, attributes in enumerate(source.index.attributes):
    steps, name = source[i], attributes['file']
    count = len(steps['reward'])
    np.testing.assert_array_equal(steps['observation'], truth[:count], name)
    unknown = set(np.flatnonzero(~steps['action_known']).tolist())
    assert unknown == expected.get(name, set())


def test_lerobot_files(tmp_path, request):
  rng = np.random.default_rng(SEED + 2)
  root = request.getfixturevalue('v2')
  parquet = root / 'data/chunk-000/episode_000000.parquet'
  clip = root / f'videos/chunk-000/{test_lerobot.CAMERA}/episode_000000.mp4'
  film(clip, frames(test_lerobot.LENGTHS[0], seed=0))
  info, rows = root / 'meta/info.json', root / 'meta/episodes.jsonl'
  for i in range(FILES):
    target = (parquet, clip, info, rows)[i % 4]
    whole = target.read_bytes()
    target.write_bytes(damaged(whole, KINDS[i // 4 % len(KINDS)], rng))
    out = tmp_path / f'd{i}'
    try:
      report = test_lerobot.run(root, out)
    except (ValueError, FileNotFoundError) as error:
      assert str(root) in str(error) or 'image = ' in str(error)
      assert not out.exists()
    else:
      source = EpisodeSource(out, 'train')
      assert len(source) + len(report['skipped']) >= 1
      for e, attributes in enumerate(source.index.attributes):
        number = attributes['number']
        found = source[e]['observation']
        full = frames(test_lerobot.LENGTHS[number], seed=number)
        np.testing.assert_array_equal(found, full[: len(found)])
    target.write_bytes(whole)


v2 = test_lerobot.v2


def some_damage(root, targets, convert, out, rng, count):
  """Damages one file at a time; yields datasets that were made nevertheless.

  Args:
    root: of the input, which errors must name.
    targets: files, each with the kinds of damage to do to it.
    convert: `out -> report`.
    out: where datasets go.
    rng: of the damage.
    count: how often.
  """
  for i in range(count):
    target, kinds = targets[i % len(targets)]
    whole = target.read_bytes()
    kind = kinds[i // len(targets) % len(kinds)]
    target.write_bytes(damaged(whole, kind, rng))
    try:
      report = convert(out / f'd{i}')
    except (ValueError, FileNotFoundError) as error:
      assert str(root) in str(error)
      assert not (out / f'd{i}').exists()
    else:
      yield EpisodeSource(out / f'd{i}', 'train'), report
    target.write_bytes(whole)


dataset = test_rlds.dataset


def test_rlds_files(dataset, tmp_path):
  root = tmp_path / 'in'
  shutil.copytree(dataset, root)
  records = next(root.glob('*.array_record*'))
  convert_to = lambda out: test_rlds.run(root, out)
  made = 0
  for source, report in some_damage(
    root,
    [
      (f, KINDS)
      for f in (records, root / 'features.json', root / 'dataset_info.json')
    ],
    convert_to,
    tmp_path,
    np.random.default_rng(SEED + 4),
    RLDS,
  ):
    made += 1
    truth = [
      np.array(
        [test_rlds.step(t, n, seed)['observation']['image_0'] for t in range(n)]
      )
      for seed, n in enumerate(test_rlds.LENGTHS)
    ]
    assert len(source) + len(report['skipped']) <= len(truth)
    for e in range(len(source)):
      found = source[e]['observation']
      assert any(np.array_equal(found, x) for x in truth)
  assert 0 < made < RLDS / 2


def test_minari_files(tmp_path, monkeypatch):
  pytest.importorskip('minari')
  from tests.data_pipelines import test_minari

  root, _ = test_minari.make(tmp_path / 'in', 'image', monkeypatch)
  data, about = next(root.rglob('*.hdf5')), next(root.rglob('metadata.json'))
  # HDF5 as Minari writes it has no checksums: changes within a frame cannot be
  # detected.
  visible = ('cut', 'hole', 'empty', 'text', 'alien')

  def convert_to(out):
    minari_datasets.open_dataset.cache_clear()
    return test_minari.run(root, out)

  for source, _ in some_damage(
    root, [(data, visible), (about, KINDS)], convert_to, tmp_path,
    np.random.default_rng(SEED + 5), MINARI,
  ):  # fmt: skip
    for e, length in enumerate(source.index.lengths):
      frames_of = 20 * e + np.arange(test_minari.LENGTHS[e] + 1)
      assert length == len(frames_of)
      np.testing.assert_array_equal(
        source[e]['observation'][:, 0, 0, 0], frames_of
      )


def spoilt(steps, rng):
  """Returns steps with something wrong in one field."""
  flat = {**{k: v for k, v in steps.items() if k != 'action'}}
  flat |= {f'action/{k}': v for k, v in steps['action'].items()}
  name = str(rng.choice(sorted(flat)))
  value, kind = flat[name], int(rng.integers(7))
  if kind == 0:
    del flat[name]
  elif kind == 1:
    flat[name] = value[:-1]
  elif kind == 2:
    flat[name] = value.astype(str)
  elif kind == 3:
    flat[name] = value[..., None].repeat(2, -1)
  elif kind == 4:
    flat[name] = value.astype(np.complex64)
  elif kind == 5:
    flat[name] = np.full(value.shape, np.nan)
  else:
    flat[name] = np.full(value.shape, 10**6)
  return writer.fmt.unflatten(flat)


def test_episodes(tmp_path):
  rng = np.random.default_rng(SEED + 3)
  with writer.Shard(tmp_path / 's', test_writer.DESCRIPTION) as shard:
    for i in range(EPISODES):
      steps = test_writer.steps(10, seed=i)
      wrong = writer.Episode(steps=spoilt(steps, rng), terminal=False)
      with pytest.raises(writer.EpisodeError) as error:
        shard.add(wrong)
      assert len(str(error.value)) > 10
    shard.add(writer.Episode(steps=steps, terminal=False))
  assert shard.index.lengths == [10]


def test_there_are_three_hundred():
  assert VIDEOS + RECORDINGS + FILES + EPISODES == 300


def test_converters_never_print_a_traceback(tmp_path, capsys, monkeypatch):
  (tmp_path / 'x.mp4').write_bytes(b'nothing')
  monkeypatch.setattr(
    'sys.argv',
    ['video', '--inputs', str(tmp_path), '--out', str(tmp_path / 'd')],
  )
  with pytest.raises(SystemExit) as stop:
    convert.main_of(video.VideoConfig, video.convert_videos)
  assert stop.value.code == 2
  error = capsys.readouterr().err
  assert error.startswith('video: ') and 'Traceback' not in error
  monkeypatch.setattr('sys.argv', ['vpt', '--out', str(tmp_path / 'd')])
  with pytest.raises(SystemExit):
    convert.main_of(vpt.VptConfig, vpt.convert_vpt)
  assert "root = ''" in capsys.readouterr().err
