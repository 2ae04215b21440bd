import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from danet.data import video
from danet.data.video import DiskFullError, VideoWriter, fit_picture, open_source
from danet.utils.errors import UserError


def make_video(path, frames=12, size=(64, 48), codec="mp4v", noise=False):
    """A video whose frame i is grey 10 * i (or noise)."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 30, size, isColor=False)
    assert writer.isOpened()
    rng = np.random.default_rng(0)
    for index in range(frames):
        grey = rng.integers(0, 255, size[::-1]) if noise else np.full(size[::-1], 10 * index)
        writer.write(grey.astype(np.uint8))
    writer.release()
    return path


def test_video_frames_are_grey_and_in_order(tmp_path):
    source = open_source(make_video(tmp_path / "clip.mp4"))
    assert source.total == 12 and source.fps == 30
    frames = list(source)
    assert [frame.index for frame in frames] == list(range(12))
    assert all(frame.name == str(tmp_path / "clip.mp4") for frame in frames)
    assert all(frame.image.shape == (48, 64) and frame.image.dtype == np.uint8 for frame in frames)
    assert np.allclose([frame.image.mean() for frame in frames], 10.0 * np.arange(12), atol=3)


def test_open_source_reads_a_folder_of_several_image_types(tmp_path):
    cv2.imwrite(str(tmp_path / "b.png"), np.full((40, 50), 3000, np.uint16))
    cv2.imwrite(str(tmp_path / "a.JPG"), np.full((30, 20), 80, np.uint8))
    (tmp_path / "notes.txt").write_text("no image")
    source = open_source(tmp_path)
    assert source.total == 2
    frames = list(source)
    assert [os.path.basename(frame.name) for frame in frames] == ["a.JPG", "b.png"]
    assert frames[1].image.dtype == np.uint16 and frames[1].image.shape == (40, 50)
    assert [frame.index for frame in frames] == [0, 0]
    (single,) = open_source(tmp_path / "b.png")
    assert np.array_equal(single.image, frames[1].image)


def test_video_that_ends_early_gives_its_frames_and_one_line(tmp_path, capfd):
    whole = make_video(tmp_path / "whole.avi", frames=30, codec="MJPG", noise=True)
    path = tmp_path / "cut.avi"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    frames = list(open_source(path))
    assert 10 <= len(frames) < 20
    original = [frame.image for frame in open_source(whole)]
    assert np.array_equal(frames[5].image, original[5])
    (line,) = capfd.readouterr().err.splitlines()
    assert line == f"{path}: ends early: frame {len(frames)} of 30 cannot be decoded"


def test_damaged_video_prints_no_lines_of_opencv(tmp_path, capfd):
    content = bytearray(make_video(tmp_path / "whole.mp4", frames=30, noise=True).read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = bytes(400)
    (tmp_path / "damaged.mp4").write_bytes(content)
    frames = list(open_source(tmp_path / "damaged.mp4"))
    assert 10 <= len(frames) <= 30
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == (len(frames) < 30)


@pytest.mark.parametrize(
    "name, content",
    [("clip.mp4", b""), ("clip.mp4", b"not a video at all"), ("notes.txt", b"words"), ("image.png", b"\x89PNG broken")],
)
def test_open_source_names_an_unreadable_file(tmp_path, capfd, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        list(open_source(tmp_path / name))
    assert capfd.readouterr().err == ""


def test_open_source_names_a_video_without_index(tmp_path):
    content = make_video(tmp_path / "whole.mp4", noise=True).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"cut\.mp4"):
        open_source(tmp_path / "cut.mp4")


def test_open_source_missing_file_empty_folder_missing_camera(tmp_path):
    with pytest.raises(UserError, match=r"missing\.mp4: no such file"):
        open_source(tmp_path / "missing.mp4")
    with pytest.raises(UserError, match="no images in this folder"):
        open_source(tmp_path)
    with pytest.raises(UserError, match="97: no such camera"):
        open_source("97")


def test_video_writer_round_trip(tmp_path):
    path = tmp_path / "deep" / "out.mp4"
    with VideoWriter(path, fps=10) as writer:
        for index in range(8):
            writer.write(np.full((48, 64), 20 * index, np.uint8))
        assert not path.exists(), "the file appears at the end"
    source = open_source(path)
    assert source.fps == 10
    frames = list(source)
    assert np.allclose([frame.image.mean() for frame in frames], 20.0 * np.arange(8), atol=4)
    assert all(frame.image.shape == (48, 64) for frame in frames), "grey stays grey"
    assert [p.name for p in path.parent.iterdir()] == ["out.mp4"]


def test_video_writer_keeps_colour(tmp_path):
    with VideoWriter(tmp_path / "out.mp4") as writer:
        writer.write(np.full((48, 64, 3), (30, 60, 220), np.uint8))
    (frame,) = open_source(tmp_path / "out.mp4")
    assert np.allclose(frame.image.mean((0, 1)), (30, 60, 220), atol=8)


def test_video_writer_pads_odd_sizes_and_letterboxes_others(tmp_path):
    with VideoWriter(tmp_path / "out.mp4") as writer:
        writer.write(np.full((47, 63, 3), 200, np.uint8))
        writer.write(np.full((24, 126, 3), 200, np.uint8))
        writer.write(np.full((20, 20), 40000, np.uint16))
    frames = [frame.image for frame in open_source(tmp_path / "out.mp4")]
    assert [frame.shape[:2] for frame in frames] == [(48, 64)] * 3
    assert frames[0][:46, :62].min() > 180
    assert frames[1][20:28, 4:60].min() > 170 and frames[1][:14].max() < 40


def test_fit_picture_keeps_the_aspect_ratio():
    fitted = fit_picture(np.full((100, 50, 3), 9, np.uint8), 40, 40)
    assert fitted.shape == (40, 40, 3)
    assert (fitted[:, 10:30] == 9).all() and (fitted[:, :10] == 0).all() and (fitted[:, 30:] == 0).all()
    small = fit_picture(np.full((10, 10, 3), 9, np.uint8), 40, 40)
    assert (small == 9).all(2).sum() == 100, "small frames are not enlarged"


def test_video_writer_keeps_the_old_file_after_an_error(tmp_path):
    path = make_video(tmp_path / "out.mp4", frames=3)
    before = path.read_bytes()
    with pytest.raises(RuntimeError), VideoWriter(path) as writer:
        writer.write(np.zeros((48, 64), np.uint8))
        raise RuntimeError
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]
    with VideoWriter(tmp_path / "empty.mp4"):
        pass
    assert not (tmp_path / "empty.mp4").exists()


def test_video_writer_names_an_unknown_format(tmp_path):
    path = tmp_path / "out.unknown"
    with pytest.raises(UserError, match=r"out\.unknown: OpenCV cannot write"), VideoWriter(path) as writer:
        writer.write(np.zeros((48, 64), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_video_writer_finishes_the_video_after_ctrl_c(tmp_path):
    path = tmp_path / "out.mp4"
    code = f"""
import numpy as np
from danet.data.video import VideoWriter
with VideoWriter({str(path)!r}) as writer:
    index = 0
    while True:
        writer.write(np.full((48, 64), index % 200, np.uint8))
        index += 1
        if index == 50:
            print("go", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout.readline() == b"go\n"
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) != 0
    frames = list(open_source(path))
    assert len(frames) >= 50
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]


class Camera:
    """Replaces cv2.VideoCapture: the number of images after each opening; None if it cannot be opened."""

    def __init__(self, *counts):
        self.times = list(counts)
        self.left = 0

    def __call__(self, source):
        count = self.times.pop(0) if self.times else None
        self.opened, self.left = count is not None, count or 0
        return self

    def isOpened(self):
        return self.opened

    def read(self):
        self.left -= 1
        return (True, np.full((48, 64, 3), 90, np.uint8)) if self.left >= 0 else (False, None)

    def get(self, _):
        return 0.0

    def release(self):
        self.left = 0


def test_video_reconnects_to_a_camera(monkeypatch, capfd):
    monkeypatch.setattr(video, "RECONNECT_INTERVAL_S", 0.01)
    monkeypatch.setattr(cv2, "VideoCapture", Camera(3, None, None, 2, *[None] * 1000))
    monkeypatch.setattr(video, "RECONNECT_TIMEOUT_S", 0.3)
    source = open_source("0")
    assert source.live and source.total is None
    assert [frame.index for frame in source] == [0, 1, 2, 3, 4]
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "camera0: no image after frame 2, trying to reconnect for 0 s"
    assert lines[1].startswith("camera0: reconnected after 0.")
    assert lines[-1] == "camera0: connection lost after frame 4" and source.trouble == "connection lost after frame 4"


def test_open_source_names_a_stream_that_cannot_be_opened(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Camera())
    with pytest.raises(UserError, match="rtsp://nowhere/1: this stream cannot be opened"):
        open_source("rtsp://nowhere/1")


def test_video_writer_finishes_the_video_on_a_full_disk(tmp_path, monkeypatch):
    free = iter([1 << 30] * 5 + [1 << 20] * 5)
    usage = type("Usage", (), {"free": property(lambda self: next(free))})()
    monkeypatch.setattr(video.shutil, "disk_usage", lambda path: usage)
    end = pytest.raises(DiskFullError, match="the disk is full; the video ends after 5 frames")
    with end, VideoWriter(tmp_path / "a.mp4") as writer:
        for _ in range(9):
            writer.write(np.full((48, 64), 90, np.uint8))
    assert len(list(open_source(tmp_path / "a.mp4"))) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
