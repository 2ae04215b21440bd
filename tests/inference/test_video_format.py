import os
import subprocess
import sys

import numpy as np
import pytest

from danet.data import h264_writer
from danet.data.frame_sources import open_source
from danet.data.video_writer import VideoWriter
from danet.inference import video_format
from danet.inference.video_format import CODECS, PLAYED_BY_BROWSERS, choose_codec, choose_suffix
from danet.utils.errors import UserError


@pytest.mark.parametrize(
    ("available", "suffix", "codec"),
    [
        ({"avc1", "mp4v", "VP80", "VP90"}, ".mp4", "avc1"),
        ({"libx264", "mp4v", "VP80", "VP90"}, ".mp4", "libx264"),
        ({"mp4v", "VP80", "VP90"}, ".webm", "VP80"),
        ({"mp4v", "VP90"}, ".webm", "VP90"),
        ({"mp4v"}, ".mp4", "mp4v"),
    ],
)
def test_choose_suffix_prefers_what_browsers_play(monkeypatch, available, suffix, codec):
    monkeypatch.setattr(video_format, "_can_write", lambda _, codec: codec in available)
    assert choose_suffix() == suffix and choose_codec(suffix) == codec
    assert choose_suffix("mp4") == ".mp4" and choose_suffix("webm") == ".webm"


def test_video_of_the_chosen_format_reads_back(tmp_path):
    path = tmp_path / f"a{choose_suffix()}"
    codec = choose_codec(path)
    assert codec in CODECS[path.suffix]
    with VideoWriter(path, 12, codec) as writer:
        for index in range(6):
            writer.write(np.full((48, 64, 3), 40 * index, np.uint8))
    frames = list(open_source(path))
    assert len(frames) == 6 and abs(float(frames[3].image.mean()) - 120) < 6
    if codec in PLAYED_BY_BROWSERS and path.suffix == ".webm":
        assert path.read_bytes()[:4] == b"\x1a\x45\xdf\xa3", "a Matroska file"


def test_video_writer_of_every_codec_prints_nothing(tmp_path):
    """OpenCV prints a line for some codecs, also for those that it can write."""
    program = """
import sys, cv2, numpy
from danet.data.video_writer import VideoWriter
from danet.inference.video_format import choose_codec, choose_suffix
from danet.utils.image_io import quiet_opencv
quiet_opencv()
path = f"{sys.argv[1]}/a{choose_suffix()}"
with VideoWriter(path, 25, choose_codec(path)) as writer:
    writer.write(numpy.zeros((48, 64), numpy.uint8))
"""
    environment = {**os.environ, "OPENCV_LOG_LEVEL": "SILENT"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0 and done.stderr == "" == done.stdout


@pytest.mark.parametrize("shape", [(48, 64), (48, 64, 3), (47, 63, 3)])
def test_h264_by_pyav_reads_back(tmp_path, shape):
    pytest.importorskip("av")
    path = tmp_path / "a.mp4"
    with VideoWriter(path, 29.97, "libx264") as writer:
        for index in range(6):
            writer.write(np.full(shape, 40 * index, np.uint8))
    source = open_source(path)
    frames = list(source)
    assert len(frames) == 6 and abs(source.fps - 29.97) < 0.01
    assert frames[3].image.shape[:2] == (48, 64)
    inner = frames[3].image[:46, :62]
    assert np.abs(inner.astype(float) - 120).max() < 6, "grey stays grey"


@pytest.mark.parametrize("fps", [0.0, -5.0, 90_000.0, float("nan"), float("inf")])
def test_rate_that_h264_does_not_have_is_an_error(tmp_path, fps):
    pytest.importorskip("av")
    error = pytest.raises(UserError, match=r"a\.mp4: the video cannot be written")
    with error, VideoWriter(tmp_path / "a.mp4", fps, "libx264") as writer:
        writer.write(np.zeros((48, 64), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_errors_of_the_h264_encoder_name_the_video(tmp_path, monkeypatch):
    pytest.importorskip("av")
    limit = (
        r"a\.mp4: the video cannot be written \(H\.264 has at most 16384 pixels in a row or column, got 16400 x 16\)"
    )
    for error in (limit, r"a\.mp4: the video cannot be written \(Generic error in an external library\)"):
        with pytest.raises(UserError, match=error), VideoWriter(tmp_path / "a.mp4", 25, "libx264") as writer:
            writer.write(np.zeros((16, 16_400), np.uint8))
        assert list(tmp_path.iterdir()) == []
        monkeypatch.setattr(h264_writer, "MAX_SIDE_PIXELS", 20_000)  # the encoder itself refuses the size


def test_file_that_pyav_cannot_write_is_named(tmp_path):
    """A limit of the file size stands for a full disk."""
    pytest.importorskip("av")
    program = """
import resource, sys, numpy
from danet.data.video_writer import VideoWriter
from danet.utils.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
noise = numpy.random.default_rng(0)
try:
    with VideoWriter(f"{sys.argv[1]}/a.mp4", 25, "libx264") as writer:
        for _ in range(200):
            writer.write(noise.integers(0, 255, (96, 96, 3), numpy.uint8))
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/a.mp4: cannot be written (File too large)\n"
    assert list(tmp_path.iterdir()) == []


def test_video_is_kept_after_an_error_elsewhere(tmp_path):
    """A full disk may first stop the file of the boxes; the video then ends at that frame."""
    path = tmp_path / f"a{choose_suffix()}"
    with pytest.raises(UserError, match="boxes"), VideoWriter(path, 12, choose_codec(path)) as writer:
        for _ in range(3):
            writer.write(np.zeros((48, 64), np.uint8))
        raise UserError("boxes.csv: cannot be written")
    assert len(list(open_source(path))) == 3
