import functools
import http.server
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from fractions import Fraction

import cv2
import numpy as np
import pytest
from tiff_files import encode_tiff
from video_files import write_matroska

from danet.data import video, video_writer
from danet.data.frame_sources import ImageFiles, ImageStack, SourceList, open_source, open_sources
from danet.data.video import Video
from danet.data.video_decoder import count_packets
from danet.data.video_writer import DiskFullError, VideoWriter, fit_picture
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


def test_images_of_a_folder_are_in_the_order_of_their_numbers(tmp_path):
    ordered = ["a1.png", "a2.png", "a02b.png", "a10.png", "frame.png", "frame1.jpg", "frame9.png", "frame10.bmp"]
    for folder in ("run10", "run9"):
        (tmp_path / folder).mkdir()
        for name in ordered:
            cv2.imwrite(str(tmp_path / folder / name), np.zeros((40, 50), np.uint8))
    assert [path.name for path in open_source(tmp_path / "run9").paths] == ordered
    paths = open_source(f"{tmp_path}/run*/*").paths
    assert paths == [tmp_path / folder / name for folder in ("run9", "run10") for name in ordered]
    assert [os.path.basename(frame.name) for frame in open_source(tmp_path / "run10")] == ordered


def test_images_are_in_the_order_of_their_times(tmp_path):
    ordered = ["1700000000.123456.png", "1700000000.5.png", "1700000001.25.png"]
    ordered += ["202401011230.2.png", "202401011230.10.png"]  # a date is no number of seconds
    for name in ordered:
        cv2.imwrite(str(tmp_path / name), np.zeros((40, 50), np.uint8))
    assert [path.name for path in open_source(tmp_path).paths] == ordered


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


def damage_jpegs(path, numbers, end=None):
    """Overwrites frames of a Motion JPEG video with zeros, and cuts it at the start of frame ``end``."""
    content = path.read_bytes()
    starts = [match.start() for match in re.finditer(b"\xff\xd8\xff", content)] + [len(content)]
    content = bytearray(content[: None if end is None else starts[end]])
    for number in numbers:
        content[starts[number] : starts[number] + 500] = bytes(500)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damaged", "end", "trouble"),
    [
        ([15], None, "1 of 30 frames cannot be decoded"),
        ([0, 7, 8, 9, 20], None, "5 of 30 frames cannot be decoded"),
        ([29], None, "1 of 30 frames cannot be decoded"),
        ([3, 4], 16, "ends early at frame 16 of 30; 2 earlier frames cannot be decoded, either"),
        ([3], 16, "ends early at frame 16 of 30; 1 earlier frame cannot be decoded, either"),
        ([*range(12, 30)], None, "ends early: frame 12 of 30 cannot be decoded"),
    ],
)
def test_frames_behind_damaged_ones_keep_their_numbers_and_times(tmp_path, capfd, damaged, end, trouble):
    path = make_video(tmp_path / "clip.avi", frames=30, codec="MJPG", noise=True)
    whole = list(open_source(path))
    damage_jpegs(path, damaged, end)
    source = open_source(path)
    for _ in range(2):  # a file can be read again
        frames = list(source)
        assert [frame.index for frame in frames] == [i for i in range(30)[:end] if i not in damaged]
        for frame in frames:
            assert frame.time == whole[frame.index].time and np.array_equal(frame.image, whole[frame.index].image)
        assert source.trouble == trouble
        assert capfd.readouterr().err.splitlines() == [f"{path}: {trouble}"]


def test_video_without_a_decodable_frame_is_refused(tmp_path):
    path = make_video(tmp_path / "clip.avi", frames=30, codec="MJPG", noise=True)
    damage_jpegs(path, range(30))
    with pytest.raises(UserError, match=r"clip\.avi: no frame of this video can be decoded"):
        open_source(path)


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


def test_open_source_takes_the_images_and_the_videos_of_a_folder(tmp_path):
    make_video(tmp_path / "b.mp4")
    make_video(tmp_path / "a.avi", codec="MJPG", frames=3)
    cv2.imwrite(str(tmp_path / "z.png"), np.zeros((40, 50), np.uint8))
    (tmp_path / "stack.tif").write_bytes(encode_tiff([np.full((20, 30), value, np.uint16) for value in (7, 8)]))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    source = open_source(tmp_path)
    assert isinstance(source, SourceList) and source.total == 1 + 3 + 12 + 2 and source.trouble is None
    frames = list(source)
    assert [os.path.basename(frame.name) for frame in frames] == ["z.png"] + 3 * ["a.avi"] + 12 * ["b.mp4"] + 2 * [
        "stack.tif"
    ]
    assert [type(part) for part in open_sources([tmp_path])] == [ImageFiles, Video, Video, ImageStack]
    (tmp_path / "z.png").unlink()
    assert [type(part) for part in open_sources([tmp_path])] == [Video, Video, ImageStack]


@pytest.mark.parametrize(
    "pattern, count", [("clips/*.mp4", 2), ("clips/[b]*", 1), ("**/*.mp4", 3), ("*/", 3), ("cl*", 3)]
)
def test_open_source_takes_quoted_patterns(tmp_path, monkeypatch, pattern, count):
    (tmp_path / "clips" / "deep").mkdir(parents=True)
    for name in ("a.mp4", "b.mp4", "deep/c.mp4"):
        make_video(tmp_path / "clips" / name, frames=2)
    cv2.imwrite(str(tmp_path / "clips" / "d.png"), np.zeros((40, 50), np.uint8))
    monkeypatch.chdir(tmp_path)
    assert len(open_sources([pattern])) == count
    with pytest.raises(UserError, match=r"none/\*\.mp4: no file or folder matches this pattern"):
        open_source("none/*.mp4")


def test_open_source_prefers_a_file_whose_name_is_also_a_pattern(tmp_path):
    cv2.imwrite(str(tmp_path / "a[1].png"), np.zeros((40, 50), np.uint8))
    assert open_source(tmp_path / "a[1].png").total == 1


def test_open_source_skips_and_names_broken_files_of_a_folder(tmp_path, capfd):
    for index in range(3):
        cv2.imwrite(
            str(tmp_path / f"{index}.png"), np.random.default_rng(index).integers(80, 99, (48, 64)).astype(np.uint8)
        )
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:900])
    (tmp_path / "clip.mp4").write_bytes(b"not a video")
    source = open_source(tmp_path)
    assert [os.path.basename(frame.name) for frame in source] == ["0.png", "2.png"]
    assert capfd.readouterr().err.splitlines() == [
        f"{tmp_path / 'clip.mp4'}: not a readable image or video; it is skipped",
        f"{tmp_path / '1.png'}: not a readable image; it is skipped",
    ]
    assert source.trouble is not None
    source.check()
    for name in ("0.png", "2.png"):
        (tmp_path / name).write_bytes(b"broken")
    with pytest.raises(UserError, match=r"0\.png: not a readable image"):
        open_source(tmp_path).check()


def test_image_stack_yields_its_pages_like_a_video(tmp_path, capfd):
    pages = [np.full((20, 30), 100 * value, np.uint16) for value in range(4)]
    content = bytearray(encode_tiff(pages))
    path = tmp_path / "stack.tif"
    path.write_bytes(content)
    stack = open_source(path)
    assert isinstance(stack, Video) and stack.total == 4 and not stack.live
    frames = list(stack)
    assert [frame.index for frame in frames] == [0, 1, 2, 3] and {frame.name for frame in frames} == {str(path)}
    assert all(np.array_equal(frame.image, page) for frame, page in zip(frames, pages, strict=True))
    # Damage the third page: its strip lies behind the end of the file.
    position = content.index(struct.pack("<HHI", 273, 4, 1), content.index(pages[2].tobytes()))
    struct.pack_into("<I", content, position + 8, len(content) + 1000)
    path.write_bytes(content)
    stack = open_source(path)
    assert [frame.index for frame in stack] == [0, 1]
    assert stack.trouble == "ends early: page 2 of 4 cannot be decoded"
    assert capfd.readouterr().err.splitlines() == [
        f"{path}, page 2: not a readable image; the rest of the file is skipped"
    ]


def test_open_source_applies_the_pixel_limit(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((48, 64), np.uint8))
    make_video(tmp_path / "clip.mp4")
    for name in ("a.png", "clip.mp4"):
        with pytest.raises(UserError, match=rf"{name}: the image is too large, got 64 x 48 pixels, the limit is 3000"):
            list(open_source(tmp_path / name, max_pixels=3000))


@pytest.fixture
def web_server(tmp_path):
    """Serves the files of tmp_path; yields the address."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    handler.func.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize(
    ("url", "is_recording"),
    [
        ("http://host/a.gif", True),
        ("https://host/folder/a.MP4?token=1", True),
        ("file:///folder/a.mpg", True),
        ("rtsp://camera/video.mp4", False),
        ("http://camera/stream.ts", False),
        ("http://camera/video.mjpg", False),
    ],
)
def test_scheme_and_suffix_tell_recordings_from_cameras(url, is_recording):
    assert video._is_recording(url) == is_recording


@pytest.mark.parametrize("name, codec", [("clip.mp4", "mp4v"), ("clip.avi", "MJPG"), ("clip.mkv", "FFV1")])
def test_video_by_url_ends_with_its_last_frame(tmp_path, web_server, name, codec):
    make_video(tmp_path / name, codec=codec)
    for url in (f"http://user:s3cret@{web_server}/{name}?token=s3cret", f"file://{tmp_path}/{name}"):
        source = open_source(url)
        assert not source.live and source.total == 12 and source.stem == "clip"
        frames = list(source)
        assert len(frames) == 12 and source.trouble is None
        assert "s3cret" not in frames[0].name + source.name
    with pytest.raises(UserError, match=r"\*\*\*@.*/none\.mp4: this stream cannot be opened"):
        open_source(f"http://user:s3cret@{web_server}/none.mp4")


@pytest.mark.parametrize("name", [b"t\xe9l\xe9.mp4", b"\xff\xfe.mkv", b"a.\xe9"])
def test_videos_have_names_that_are_not_utf_8(tmp_path, name):
    folder = tmp_path / os.fsdecode(b"d\xe9")
    folder.mkdir()
    path = folder / os.fsdecode(name)
    make_video(tmp_path / "clip.mkv", codec="FFV1").rename(path)
    source = open_source(path)
    assert [frame.name for frame in source] == [str(path)] * 12 and source.trouble is None
    assert count_packets(str(path)) == 12


@pytest.mark.parametrize("name, codec", [(b"t\xe9l\xe9.mp4", "mp4v"), (b"\xff.mp4", "libx264"), (b"\xff.avi", "MJPG")])
def test_video_writer_takes_names_that_are_not_utf_8(tmp_path, name, codec):
    if codec == "libx264":
        pytest.importorskip("av")
    path = tmp_path / os.fsdecode(name)
    with VideoWriter(path, codec=codec) as writer:
        writer.write(np.full((48, 64), 90, np.uint8))
    assert len(list(open_source(path))) == 1 and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "url, stem",
    [
        ("http://***@h:1/a/cam.mjpeg?token=***", "cam"),
        ("rtsp://***@10.0.0.5:554", "10.0.0.5_554"),
        ("rtsp://h/../", "stream"),
        ("rtsp://h/user=***?x", "user"),
        ("clips/night.1.mkv", "night.1"),
        ("camera0", "camera0"),
    ],
)
def test_video_stem_is_a_file_name(url, stem):
    source = Video.__new__(Video)
    source.name = url
    assert source.stem == stem


def noise(count):
    return [np.random.default_rng(index).integers(0, 255, (48, 64)).astype(np.uint8) for index in range(count)]


STEADY_MS = [round(index * 1000 / 30) for index in range(20)]
VARIABLE_TIMES_MS = {
    "a pause of a second, as of a shutter": [time + 1000 * (index >= 10) for index, time in enumerate(STEADY_MS)],
    "a pause before the last frame": [*STEADY_MS, 2500],
    "slow": [700 * index for index in range(20)],
    "irregular": np.cumsum([0, *[20, 60, 33, 100, 5] * 4]).tolist(),
    "a start after 5 s": [5000 + time for time in STEADY_MS],
}


@pytest.mark.parametrize("times_ms", VARIABLE_TIMES_MS.values(), ids=VARIABLE_TIMES_MS)
def test_variable_frame_rate_ends_normally_and_has_its_times(tmp_path, capfd, times_ms):
    """Matroska states a duration, from which OpenCV estimates the number of frames at 30 per second."""
    path = write_matroska(tmp_path / "clip.mkv", noise(len(times_ms)), times_ms, duration_ms=times_ms[-1] + 33)
    source = open_source(path)
    frames = list(source)
    assert source.total > len(frames) == len(times_ms) and source.trouble is None
    assert np.allclose([frame.time for frame in frames], (np.array(times_ms) - times_ms[0]) / 1000, atol=0.002)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", VARIABLE_TIMES_MS)
def test_damaged_frames_of_variable_frame_rate_are_counted(tmp_path, name):
    times_ms = VARIABLE_TIMES_MS[name]
    damaged = (2, 3) if name == "a pause before the last frame" else (12, 13)  # a pause soon behind damage is missing
    path = write_matroska(tmp_path / "clip.mkv", noise(len(times_ms)), times_ms, duration_ms=times_ms[-1] + 33)
    times = [frame.time for frame in open_source(path)]
    damage_jpegs(path, damaged)
    source = open_source(path)
    frames = list(source)
    assert [frame.index for frame in frames] == [i for i in range(len(times)) if i not in damaged]
    assert [frame.time for frame in frames] == [times[frame.index] for frame in frames]
    assert source.trouble == f"2 of {len(times)} frames cannot be decoded"


@pytest.mark.parametrize(
    ("reads", "numbers"),
    [
        pytest.param([0, 1, "x", 4, 5], [0, 1, 4, 5], id="one failed read costs two frames"),
        pytest.param([0, "x", "x", 1, 2, 4, 5], [0, 1, 2, 4, 5], id="a decoder fails before the gap"),
        pytest.param(["x", 8, 9, 10], [8, 9, 10], id="damage at the start"),
        pytest.param([0, "x", 1, 5, 2, 3, 6, 7], [0, 1, 5, 6, 7], id="wrong order"),
        pytest.param([0, 1.7, 2.1, "x", 9, 10.3], [0, 1, 2, 4, 5], id="variable"),
        pytest.param([0, 1.7, "x", 9, 4, 10, 11], [0, 1, 3, 5, 6], id="variable in wrong order"),
        pytest.param(["x", 1, 2.2, 2.5, 6, 7], [1, 2, 3, 4, 5], id="variable with damage at the start"),
        pytest.param([0, "x", *range(2, 18), 90, 91], [0, *range(2, 20)], id="a pause long behind damage"),
        pytest.param([0, "x", 900, *range(2, 30)], [0, 900, *range(916, 929)], id="damaged time"),
        pytest.param([0, 2, 1, 1, 90, 91], [0, 1, 2, 3, 4, 5], id="no damage"),
        pytest.param([40, 41, "x", 43], [0, 1, 3], id="a late start"),
    ],
)
def test_frame_numbering(reads, numbers):
    """``reads``: the times of decoded frames in frame durations, and x for a failed read."""
    numbering, failed, got = video.FrameNumbering(fps=30.0), 0, []
    for read in reads:
        if read == "x":
            failed += 1
            continue
        if numbering.advance(read / 30.0, failed):
            got.append(numbering.number)
            assert numbering.time == read / 30.0
        failed = 0
    assert got == numbers


def write_h264(path, times_ms, b_frames=2):
    """An H.264 video of a moving pattern with a keyframe every 10 frames; returns position and size of each packet."""
    av = pytest.importorskip("av")
    pattern = cv2.resize(np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8), (128, 96))
    with av.open(str(path), "w") as container:
        options = {"g": "10", "bf": str(b_frames), "sc_threshold": "0", "threads": "1"}
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, time_ms in enumerate(times_ms):
            picture = av.VideoFrame.from_ndarray(np.roll(pattern, 3 * number, axis=1), format="bgr24")
            picture.pts, picture.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


def overwrite(path, packets, numbers):
    content = bytearray(path.read_bytes())
    for position, size in (packets[number] for number in numbers):
        content[position : position + size] = b"\xff" * size
    path.write_bytes(content)


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize("damaged", [10, 30, 50])
def test_h264_frames_behind_a_damaged_keyframe_keep_numbers_and_times(tmp_path, capfd, b_frames, damaged):
    path = tmp_path / "clip.mp4"
    packets = write_h264(path, range(0, 2400, 40), b_frames)
    whole = list(open_source(path))
    assert [frame.index for frame in whole] == list(range(60))
    overwrite(path, packets, [damaged])
    source = open_source(path)
    frames = list(source)
    assert all(frame.time == whole[frame.index].time for frame in frames)
    assert np.all(np.diff([frame.index for frame in frames]) > 0) and 50 <= len(frames) < 60
    for frame in frames:  # those between the damaged keyframe and the next are concealed
        if not damaged - 3 <= frame.index < damaged + 10:
            assert np.array_equal(frame.image, whole[frame.index].image)
    assert source.trouble == f"{60 - len(frames)} of 60 frames cannot be decoded"
    assert capfd.readouterr().err.splitlines() == [f"{path}: {source.trouble}"]


@pytest.mark.parametrize("b_frames", [0, 2])
def test_h264_with_variable_frame_rate_is_counted(tmp_path, capfd, b_frames):
    times_ms = np.cumsum([0, *np.random.default_rng(1).integers(20, 120, 49)]).tolist()
    packets = write_h264(tmp_path / "clip.mp4", times_ms, b_frames)
    frames = list(open_source(tmp_path / "clip.mp4"))
    assert [frame.index for frame in frames] == list(range(50)) and capfd.readouterr().err == ""
    assert np.allclose([frame.time for frame in frames], np.array(times_ms) / 1000, atol=0.002)
    overwrite(tmp_path / "clip.mp4", packets, [30])
    source = open_source(tmp_path / "clip.mp4")
    damaged = list(source)
    assert {frame.time for frame in damaged} < {frame.time for frame in frames}
    assert np.all(np.diff([frame.time for frame in damaged]) > 0)
    assert source.trouble == f"{50 - len(damaged)} of 50 frames cannot be decoded"


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_damaged_last_packet_of_h264_is_reported(tmp_path, capfd, suffix, b_frames):
    path = tmp_path / f"clip{suffix}"
    packets = write_h264(path, range(0, 2000, 40), b_frames)
    assert len(list(open_source(path))) == 50
    capfd.readouterr()
    overwrite(path, packets, [49])
    source = open_source(path)
    assert len(list(source)) == 49 and source.trouble == "1 of 50 frames cannot be decoded"
    assert capfd.readouterr().err.splitlines() == [f"{path}: {source.trouble}"]


def test_matroska_that_breaks_off_is_reported(tmp_path, capfd):
    path = write_matroska(tmp_path / "clip.mkv", noise(60), [33 * index for index in range(60)], duration_ms=1980)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    source = open_source(path)
    count = len(list(source))
    assert 20 < count < 32 and source.trouble.startswith(f"ends early: frame {count} of ")
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_recording_of_unknown_length_ends_with_its_last_frame(tmp_path, web_server):
    write_matroska(tmp_path / "clip.mkv", noise(5), STEADY_MS[:5], duration_ms=None)
    for place in (tmp_path / "clip.mkv", f"http://{web_server}/clip.mkv?user=me"):
        source = open_source(place)
        assert source.total is None and not source.live
        assert len(list(source)) == 5 and source.trouble is None


@pytest.mark.parametrize("name, codec", [("a.mp4", "mp4v"), ("a.avi", "MJPG"), ("a.mkv", "FFV1"), ("a.webm", "VP80")])
def test_video_frames_have_the_times_of_the_container(tmp_path, name, codec):
    times = [frame.time for frame in open_source(make_video(tmp_path / name, codec=codec))]
    assert np.allclose(times, np.arange(12) / 30, atol=0.001)


def test_images_have_no_time(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((48, 64), np.uint8))
    assert [frame.time for frame in open_source(tmp_path)] == [None]


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
from danet.data.video_writer import VideoWriter
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
    monkeypatch.setattr(video_writer.shutil, "disk_usage", lambda path: usage)
    end = pytest.raises(DiskFullError, match="the disk is full; the video ends after 5 frames")
    with end, VideoWriter(tmp_path / "a.mp4") as writer:
        for _ in range(9):
            writer.write(np.full((48, 64), 90, np.uint8))
    assert len(list(open_source(tmp_path / "a.mp4"))) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
