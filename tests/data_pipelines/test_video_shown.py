"""What a container says about its pixels, times and frames, one film each."""

import fractions
import struct

import numpy as np
import pytest

pytest.importorskip('av')

import av

from data_pipelines import video as lib
from dreamer4_jax.data import EpisodeSource
from tests.data_pipelines.test_video import frames, run, write


def film(path, images, codec='ffv1', pix_fmt='bgr0', rate=10, **settings):
  """Writes a lossless video; `settings` are of the stream.

  Args:
    path: of the file.
    images: `[T, H, W, 3]` uint8.
    codec: the encoder.
    pix_fmt: how it stores colours.
    rate: frames per second.
    **settings: `options` of the encoder and of the `container`, the `matrix`
      and the `aspect` that it declares, and the `times` of frames in
      milliseconds.
  """
  times = settings.get('times')
  with av.open(str(path), 'w', options=settings.get('container', {})) as file:
    stream = file.add_stream(
      codec, rate=fractions.Fraction(rate), options=settings.get('options', {})
    )
    stream.height, stream.width = images.shape[1:3]
    stream.pix_fmt = pix_fmt
    if 'matrix' in settings:
      stream.set_display_matrix(settings['matrix'])
    if 'aspect' in settings:
      aspect = fractions.Fraction(*settings['aspect'])
      stream.codec_context.sample_aspect_ratio = aspect
    for i, image in enumerate(images):
      frame = av.VideoFrame.from_ndarray(image, format='rgb24')
      if times is not None:
        frame.time_base = stream.codec_context.time_base = fractions.Fraction(
          1, 1000
        )
        frame.pts = times[i]
      for packet in stream.encode(frame):
        file.mux(packet)
    for packet in stream.encode():
      file.mux(packet)


H264 = {
  'codec': 'libx264rgb',
  'pix_fmt': 'rgb24',
  'options': {'qp': '0', 'bf': '0', 'g': '12', 'sc_threshold': '0'},
}
"""An encoder whose frames need those before them, and still lossless."""


def only(path, out, **kwargs):
  """Converts one file; returns its frames and the report."""
  report = run(path, out, **kwargs)
  return EpisodeSource(out, 'train')[0]['observation'], report


def matrix(a, b, c, d):
  one = 1 << 16
  return [a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30]


TURNS = {
  'phone held upright': ((0, 1, -1, 0), lambda x: np.rot90(x, -1, (1, 2))),
  'phone the other way': ((0, -1, 1, 0), lambda x: np.rot90(x, 1, (1, 2))),
  'upside down': ((-1, 0, 0, -1), lambda x: x[:, ::-1, ::-1]),
  'front camera': ((-1, 0, 0, 1), lambda x: x[:, :, ::-1]),
  'flipped': ((1, 0, 0, -1), lambda x: x[:, ::-1]),
  'front camera held upright': ((0, 1, 1, 0), lambda x: x.swapaxes(1, 2)),
  'across': ((0, -1, -1, 0), lambda x: x[:, ::-1, ::-1].swapaxes(1, 2)),
}


@pytest.mark.parametrize('name', TURNS)
def test_a_film_is_turned_as_players_turn_it(tmp_path, name):
  """PyAV hands out the stored raster, and leaves the matrix to its user.

  github.com/PyAV-Org/PyAV/issues/570, github.com/PyAV-Org/PyAV/issues/1047,
  github.com/datachain-ai/datachain/issues/1823,
  github.com/meta-pytorch/torchcodec/issues/1084
  """
  signs, shown = TURNS[name]
  film(tmp_path / 'x.mkv', frames(3), matrix=matrix(*signs))
  found, report = only(tmp_path / 'x.mkv', tmp_path / 'd')
  np.testing.assert_array_equal(found, shown(frames(3)))
  assert report['skipped'] == {}


def test_another_angle_is_refused(tmp_path):
  film(tmp_path / 'a.mkv', frames(3))
  one = 1 << 16
  slanted = [46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30]
  assert one > 46341
  film(tmp_path / 'b.mp4', frames(3), **H264, matrix=slanted)
  report = run(tmp_path, tmp_path / 'd', extensions=('mkv', 'mp4'))
  assert report['skipped'] == {
    'b.mp4': 'turned by 45 degrees when shown; expected a right angle'
  }


def test_pixels_that_are_not_square_are_stretched(tmp_path):
  """A screenshot of a DVD came out 708 pixels wide instead of 640.

  github.com/arch1t3cht/Aegisub/pull/214,
  github.com/IENT/YUView/issues/283
  """
  images = frames(3).repeat(2, axis=1).repeat(2, axis=2)  # 48 x 64
  film(tmp_path / 'x.mp4', images, **H264, aspect=(2, 1))
  found, _ = only(tmp_path / 'x.mp4', tmp_path / 'd')
  assert found.shape == (3, 48, 128, 3)
  # Twice as wide and half as high again is the film as it was.
  found, _ = only(tmp_path / 'x.mp4', tmp_path / 'e', size=(12, 32))
  assert found.shape == (3, 12, 32, 3)
  wide = np.zeros((3, 48, 48, 3), np.uint8)
  wide[:, :, 12:36] = 255
  film(tmp_path / 'y.mp4', wide, **H264, aspect=(1, 2))
  found, _ = only(tmp_path / 'y.mp4', tmp_path / 'f')
  assert found.shape == (3, 48, 24, 3)
  # Turned, its pixels are stretched the other way.
  film(
    tmp_path / 'z.mp4', wide, **H264, aspect=(1, 2), matrix=matrix(0, 1, -1, 0)
  )
  found, _ = only(tmp_path / 'z.mp4', tmp_path / 'g')
  assert found.shape == (3, 24, 48, 3)
  assert (found[:, 7:17] == 255).all() and not found[:, :5].any()


def declare(path, more):
  """Adds elements to the track of a Matroska file, in place of its name."""
  data = path.read_bytes()
  track = data.index(b'\x73\xc5\x88')  # The track's number, 8 bytes of it.
  video = data.index(b'\xe0', track + 11)
  while data[video + 1] & 0x80 == 0 or data[video + 2] not in (0xB0, 0x9A):
    video = data.index(b'\xe0', video + 1)
  size = data[video + 1] & 0x7F
  middle = data[track + 11 : video]
  language = middle.find(b'\x22\xb5\x9c\x83und')
  free = 7
  if language >= 0:
    middle = middle[:language] + middle[language + 7 :]
    free += 7
  assert len(more) <= free and len(more) != free - 1
  void = free - len(more)
  fill = b'\xec' + bytes([0x80 | (void - 2)]) + b'\0' * (void - 2)
  new = (
    data[:track]
    + b'\x73\xc5\x81\x01'
    + (fill if void else b'')
    + middle
    + b'\xe0'
    + bytes([0x80 | (size + len(more))])
    + data[video + 2 : video + 2 + size]
    + more
    + data[video + 2 + size :]
  )
  assert len(new) == len(data)
  path.write_bytes(new)


def test_edges_that_a_container_cuts_off_are_cut_off(tmp_path):
  """Matroska's PixelCrop hides rows and columns that are in the file.

  github.com/mpv-player/mpv/issues/8037,
  github.com/katajakasa/SDL_kitchensink/issues/154
  """
  film(tmp_path / 'x.mkv', frames(3))
  # PixelCropTop 3, PixelCropLeft 5, PixelCropRight 2.
  declare(
    tmp_path / 'x.mkv',
    b'\x54\xbb\x81\x03' + b'\x54\xcc\x81\x05' + b'\x54\xdd\x81\x02',
  )
  found, _ = only(tmp_path / 'x.mkv', tmp_path / 'd')
  np.testing.assert_array_equal(found, frames(3)[:, 3:, 5:-2])


def test_depth_in_a_film_is_refused(tmp_path):
  """Depth cameras store 16 bits in one channel; shown, all of it is white.

  github.com/huggingface/lerobot/pull/3644
  """
  film(tmp_path / 'a.mkv', frames(3))
  with av.open(str(tmp_path / 'b.mkv'), 'w') as file:
    stream = file.add_stream('ffv1', rate=10)
    stream.height, stream.width, stream.pix_fmt = 24, 32, 'gray16le'
    for t in range(3):
      depth = np.full((24, 32), 900 + t, np.uint16)
      frame = av.VideoFrame.from_ndarray(depth, format='gray16le')
      for packet in stream.encode(frame):
        file.mux(packet)
    for packet in stream.encode():
      file.mux(packet)
  report = run(tmp_path, tmp_path / 'd')
  assert 'gray16le, one channel of 16 bits' in report['skipped']['b.mkv']


def cut(source, target, first, shift=0.0, **options):
  """Copies the packets of a film from one on, `shift` seconds earlier."""
  with (
    av.open(str(source)) as old,
    av.open(str(target), 'w', options=options) as new,
  ):
    stream = old.streams.video[0]
    copy = new.add_stream_from_template(stream)
    early = int(shift / stream.time_base)
    for number, packet in enumerate(old.demux(stream)):
      if packet.dts is None or number < first:
        continue
      packet.pts, packet.dts = packet.pts - early, packet.dts - early
      packet.stream = copy
      new.mux(packet)


CODECS = {
  'h264': H264,
  'hevc': {
    'codec': 'libx265',
    'pix_fmt': 'gbrp',
    'options': {
      'x265-params': 'lossless=1:log-level=none:keyint=12:min-keyint=12:'
      'scenecut=0:open-gop=0:bframes=0'
    },
  },
  'vp9': {
    'codec': 'libvpx-vp9',
    'pix_fmt': 'gbrp',
    'options': {'lossless': '1', 'g': '12', 'lag-in-frames': '0'},
  },
}


@pytest.mark.parametrize('codec', CODECS)
def test_a_recording_may_start_between_keyframes(tmp_path, codec):
  """What lies before the first keyframe is left out and counted.

  github.com/Kitware/kwiver/pull/1401,
  github.com/meta-pytorch/torchcodec/issues/1502
  """
  images = frames(30)
  film(tmp_path / 'whole.mkv', images, **CODECS[codec])
  (tmp_path / 'in').mkdir()
  cut(tmp_path / 'whole.mkv', tmp_path / 'in/x.mkv', first=5)
  found, report = only(tmp_path / 'in', tmp_path / 'd')
  np.testing.assert_array_equal(found, images[12:])
  assert report['notes'] == {lib.EARLY: 7}


def test_pictures_made_of_nothing_are_left_out(tmp_path):
  """MPEG-4 before its first keyframe gives grey mud, without any error."""
  images = np.stack([np.roll(frames(1)[0], i, 1) for i in range(30)])
  settings = {
    'codec': 'mpeg4',
    'pix_fmt': 'yuv420p',
    'options': {'qscale': '1', 'g': '12', 'sc_threshold': '1000000000'},
  }
  film(tmp_path / 'whole.mkv', images, **settings)
  (tmp_path / 'in').mkdir()
  cut(tmp_path / 'whole.mkv', tmp_path / 'in/x.mkv', first=5)
  found, report = only(tmp_path / 'in', tmp_path / 'd')
  whole, _ = only(tmp_path / 'whole.mkv', tmp_path / 'e')
  np.testing.assert_array_equal(found, whole[12:])
  assert report['notes'] == {lib.EARLY: 7}


def test_a_cut_that_hides_frames_lacks_none(tmp_path):
  """The header counts what an edit list hides: 93 samples, 12 frames.

  github.com/vllm-project/vllm/pull/48608
  """
  images = frames(30)
  film(tmp_path / 'whole.mp4', images, **H264)
  cut(
    tmp_path / 'whole.mp4',
    tmp_path / 'x.mp4',
    first=0,
    shift=0.5,
    avoid_negative_ts='disabled',
  )
  found, report = only(tmp_path / 'x.mp4', tmp_path / 'd', steady=True)
  np.testing.assert_array_equal(found, images[5:])
  assert report['notes'] == {}
  # A file whose end is missing is still seen as such.
  cut(tmp_path / 'whole.mp4', tmp_path / 'y.mp4', first=0, movflags='faststart')
  short = (tmp_path / 'y.mp4').read_bytes()[:-300]
  (tmp_path / 'y.mp4').write_bytes(short)
  with pytest.raises(ValueError, match=r'y\.mp4: .*(missing|damaged)'):
    only(tmp_path / 'y.mp4', tmp_path / 'e', steady=True)


def test_folders_and_files_behind_links_are_found(tmp_path):
  """pathlib's rglob enters no folder that is reached by a link.

  github.com/python/cpython/issues/77609,
  github.com/cvg/Hierarchical-Localization/issues/283
  """
  store, folder = tmp_path / 'store', tmp_path / 'in'
  (store / 'deep').mkdir(parents=True)
  folder.mkdir()
  film(store / 'deep/a.mkv', frames(3))
  film(store / 'b.mkv', frames(3))
  film(tmp_path / 'c.m4v', frames(3), **H264)
  (folder / 'linked').symlink_to(store)
  (folder / 'round').symlink_to(folder)
  (folder / 'again').symlink_to(store)
  (folder / 'gone.mkv').symlink_to(tmp_path / 'nothing.mkv')
  (folder / 'c.m4v').symlink_to(tmp_path / 'c.m4v')
  report = run(folder, tmp_path / 'd')
  assert report['splits']['train']['episodes'] == 2
  files = EpisodeSource(tmp_path / 'd', 'train').index.attributes
  assert [a['file'] for a in files] == ['again/b.mkv', 'again/deep/a.mkv']
  assert 'No such file' in report['skipped']['gone.mkv']
  assert report['notes'] == {
    'files not taken, with the ending .m4v (--extensions)': 1
  }


def test_a_jump_in_time_does_not_become_hours_of_one_frame(tmp_path):
  """The fps filter fills any gap with copies.

  github.com/livepeer/lpms/pull/179, github.com/blakeblackshear/frigate/
  issues/6110
  """
  jump = [100 * i + (10_800_000 if i >= 20 else 0) for i in range(40)]
  film(tmp_path / 'jump.mkv', frames(40), times=jump)
  film(tmp_path / 'good.mkv', frames(40))
  report = run(tmp_path, tmp_path / 'd', frame_rate=20.0)
  assert report['splits']['train']['frames'] == 80
  assert report['skipped'] == {
    'jump.mkv': 'the time jumps from 1.900 s to 10802.000 s between two '
    'frames, more than 60 s or backwards'
  }
  # Without a rate nothing is repeated, and all frames are there.
  found, report = only(tmp_path / 'jump.mkv', tmp_path / 'e')
  np.testing.assert_array_equal(found, frames(40))
  assert report['notes'] == {lib.UNEVEN: 1}


def test_a_ribbon_is_no_work_without_end(tmp_path):
  """A slit of a picture, or an absurd shape of pixels, is not blown up."""
  film(tmp_path / 'a.mkv', frames(3))
  ribbon = np.zeros((3, 2, 8000, 3), np.uint8)
  film(tmp_path / 'ribbon.mkv', ribbon)
  report = run(tmp_path, tmp_path / 'd', size=(720, 1280))
  reason = report['skipped']['ribbon.mkv']
  assert reason.startswith("fit = 'crop'") and reason.endswith('use pad')


def test_other_and_uneven_rates_are_said(tmp_path):
  """Variable rates drift, and mixed ones are learned as one.

  github.com/nixxquality/WebMConverter/issues/117,
  github.com/cvat-ai/cvat/issues/32
  """
  film(tmp_path / 'a.mkv', frames(20), rate=10)
  film(tmp_path / 'b.mkv', frames(20), rate=25)
  uneven = np.cumsum([100, 100, 40, 160] * 5).tolist()
  film(tmp_path / 'c.mkv', frames(20), times=uneven)
  report = run(tmp_path, tmp_path / 'd')
  notes = report['notes']
  assert notes[lib.UNEVEN] == 1
  assert notes[lib.OTHER_RATE.format(10)] >= 1
  report = run(tmp_path, tmp_path / 'e', frame_rate=10.0)
  assert report['notes'] == {}


def test_a_film_may_change_its_size_on_the_way(tmp_path):
  """Calls are recorded in whatever size the line allows.

  github.com/bvibber/OGVKit/issues/132, github.com/aiortc/aiortc/issues/1144
  """
  big, small = frames(3), frames(3, height=12, width=16)
  parts = [(tmp_path / 'a.avi', big), (tmp_path / 'b.avi', small)]
  for path, images in parts:
    film(path, images, codec='png', pix_fmt='rgb24')
  with av.open(str(tmp_path / 'x.avi'), 'w') as new:
    copy, at = None, 0
    for path, _ in parts:
      with av.open(str(path)) as old:
        stream = old.streams.video[0]
        copy = copy or new.add_stream_from_template(stream)
        for packet in old.demux(stream):
          if packet.dts is None:
            continue
          packet.pts = packet.dts = at
          at += int(0.1 / stream.time_base)
          packet.stream = copy
          new.mux(packet)
  found, _ = only(tmp_path / 'x.avi', tmp_path / 'd', size=(12, 16))
  assert found.shape == (6, 12, 16, 3)
  np.testing.assert_array_equal(found[3:], small)
  means = big.reshape(3, 12, 2, 16, 2, 3).mean((2, 4))
  np.testing.assert_allclose(found[:3], means, atol=2)


def test_a_file_that_has_grown_is_read_again(tmp_path, monkeypatch, caplog):
  """A recording that goes on while it is converted; and the user is told."""
  folder = tmp_path / 'in'
  folder.mkdir()
  write(folder / 'a.mkv', frames(5))
  write(folder / 'b.mkv', frames(5))
  original = lib.convert_file

  def stops(item, shard, **kwargs):
    if item.name == 'b.mkv':
      raise KeyboardInterrupt
    return original(item, shard, **kwargs)

  monkeypatch.setattr(lib, 'convert_file', stops)
  with pytest.raises(KeyboardInterrupt):
    run(folder, tmp_path / 'd')
  monkeypatch.setattr(lib, 'convert_file', original)
  write(folder / 'a.mkv', frames(9))
  run(folder, tmp_path / 'd')
  source = EpisodeSource(tmp_path / 'd', 'train')
  assert source.index.lengths.tolist() == [9, 5]
  assert 'have changed since this was begun' in caplog.text
  assert 'finished parts, 1 of them, are made again' in caplog.text


def atoms(data):
  """Cuts the content of an MP4 box into the boxes that it holds."""
  found, at = [], 0
  while at < len(data):
    size = int.from_bytes(data[at : at + 4])
    found.append(data[at : at + size])
    at += size
  return found


def test_the_picture_on_the_cover_is_not_the_film(tmp_path):
  """A cover may be the first video of a file.

  github.com/quodlibet/mutagen/issues/661,
  github.com/UltraStar-Deluxe/USDX/pull/948
  """
  path = tmp_path / 'x.mp4'
  with av.open(str(path), 'w') as file:
    cover = file.add_stream('png', rate=1)
    cover.height = cover.width = 16
    cover.pix_fmt = 'rgb24'
    cover.disposition = 0x400
    film_ = file.add_stream('libx264rgb', rate=10, options={'qp': '0'})
    film_.height, film_.width, film_.pix_fmt = 24, 32, 'rgb24'
    for stream, images in ((cover, frames(1, 16, 16)), (film_, frames(5))):
      for image in images:
        frame = av.VideoFrame.from_ndarray(image, format='rgb24')
        for packet in stream.encode(frame):
          file.mux(packet)
      for packet in stream.encode():
        file.mux(packet)
  data = path.read_bytes()
  start = data.index(b'moov') - 4
  size = int.from_bytes(data[start : start + 4])
  inner = atoms(data[start + 8 : start + size])
  # Before the tracks, as other programs write it.
  inner.sort(key=lambda box: box[4:8] != b'udta')
  path.write_bytes(data[: start + 8] + b''.join(inner) + data[start + size :])
  with av.open(str(path)) as file:
    assert file.streams.video[0].width == 16
  found, _ = only(path, tmp_path / 'd')
  np.testing.assert_array_equal(found, frames(5))


def test_an_mp4_s_clean_aperture_is_what_is_shown(tmp_path):
  """Phones encode a few rows more than they show.

  github.com/MediaArea/MediaInfoLib/issues/1771,
  github.com/katajakasa/SDL_kitchensink/issues/154
  """
  path = tmp_path / 'x.mp4'
  film(path, frames(3), **H264)
  data = bytearray(path.read_bytes())
  # 28 x 20 pixels around the middle.
  clap = struct.pack('>I4s8I', 40, b'clap', 28, 1, 20, 1, 0, 1, 0, 1)
  entry = data.index(b'avc1', data.index(b'stsd')) - 4
  end = entry + int.from_bytes(data[entry : entry + 4])
  boxes = [data.index(name) - 4 for name in
           (b'moov', b'trak', b'mdia', b'minf', b'stbl', b'stsd')]  # fmt: skip
  for at in (*boxes, entry):
    size = int.from_bytes(data[at : at + 4]) + len(clap)
    data[at : at + 4] = size.to_bytes(4)
  data[end:end] = clap
  path.write_bytes(data)
  found, _ = only(path, tmp_path / 'd')
  np.testing.assert_array_equal(found, frames(3)[:, 2:-2, 2:-2])
