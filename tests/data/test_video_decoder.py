"""Videos with more than 8 bits: all bits arrive, or one line says that they cannot."""

import os
import sys

import cv2
import numpy as np
import pytest
from video_files import write_y4m

from danet.data.frame_sources import open_source
from danet.data.video_decoder import bits_per_channel, count_packets, open_decoder, states_frame_count
from danet.utils.errors import UserError


def raw_frames(bits: int, count: int = 3) -> list[np.ndarray]:
    """A drone of a few counts above a sky of a few counts, in the middle of the range."""
    rng = np.random.default_rng(0)
    frames = [(1 << (bits - 1)) + rng.integers(0, 5, (48, 64)) for _ in range(count)]
    for frame in frames:
        frame[20:24, 30:36] += 9
    return [frame.astype(np.uint16) for frame in frames]


def write_ffv1(path, frames):
    parameters = [cv2.VIDEOWRITER_PROP_DEPTH, cv2.CV_16U, cv2.VIDEOWRITER_PROP_IS_COLOR, 0]
    fourcc = cv2.VideoWriter.fourcc(*"FFV1")
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, fourcc, 30.0, frames[0].shape[::-1], parameters)
    assert writer.isOpened()
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


@pytest.fixture
def without_pyav(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)


@pytest.mark.parametrize("name", ["clip.mkv", "clip.avi", "clip.y4m"])
def test_16_bit_grey_video_has_the_values_of_its_frames(tmp_path, without_pyav, name):
    frames = raw_frames(14)
    path = tmp_path / name
    write_y4m(path, frames, "mono", bits=16) if name.endswith("y4m") else write_ffv1(path, frames)
    source = open_source(path)
    assert source.total == 3
    for _ in range(2):  # a file can be read again
        read = [frame.image for frame in source]
        assert read[0].dtype == np.uint16 and np.array_equal(read, frames)


@pytest.mark.parametrize("bits", [9, 10, 12])
def test_grey_video_of_other_depths_is_refused_without_pyav(tmp_path, without_pyav, bits):
    path = write_y4m(tmp_path / "clip.y4m", raw_frames(bits), "mono", bits=bits)
    with pytest.raises(
        UserError, match=rf"clip\.y4m: a grey video with {bits} bits per pixel, of which OpenCV reads only 8"
    ):
        open_source(path)


@pytest.mark.parametrize("layout, bits", [("420", 10), ("422", 10), ("444", 12), ("420", 16)])
def test_colour_video_of_more_bits_is_read_with_8_and_a_warning_without_pyav(
    tmp_path, without_pyav, capfd, layout, bits
):
    source = open_source(write_y4m(tmp_path / "clip.y4m", raw_frames(bits), layout, bits=bits))
    images = [frame.image for frame in source]
    assert len(images) == 3 and images[0].dtype == np.uint8
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith(
        f"clip.y4m: warning: only 8 of {bits} bits per channel are read; install PyAV to read all (pip install av)"
    )


@pytest.mark.parametrize(
    "layout, bits", [("mono", 9), ("mono", 10), ("mono", 12), ("420", 10), ("422", 10), ("444", 12), ("420", 16)]
)
def test_video_of_more_bits_has_the_values_of_its_frames_with_pyav(tmp_path, capfd, layout, bits):
    pytest.importorskip("av")
    frames = raw_frames(bits)
    source = open_source(write_y4m(tmp_path / "clip.y4m", frames, layout, bits=bits))
    read = list(source)
    assert source.total == 3 and source.fps == 30 and source.trouble is None
    assert [round(frame.time, 3) for frame in read] == [0.0, 0.033, 0.067]
    assert all(np.array_equal(frame.image, image) for frame, image in zip(read, frames, strict=True))
    assert capfd.readouterr().err == ""


def test_pyav_goes_on_behind_damaged_frames(tmp_path, capfd):
    av = pytest.importorskip("av")
    path, frames = tmp_path / "clip.mov", raw_frames(16, count=20)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=30)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape, "gray16be"  # not read by OpenCV
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="gray16le").reformat(format="gray16be")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    content = path.read_bytes()
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0)]
    for number in (6, 7, 12):
        assert content.count(packets[number]) == 1
        content = content.replace(packets[number], bytes(len(packets[number])))
    path.write_bytes(content)
    source = open_source(path)
    read = list(source)
    assert [frame.index for frame in read] == [i for i in range(20) if i not in (6, 7, 12)]
    assert all(np.array_equal(frame.image, frames[frame.index]) for frame in read)
    assert [round(frame.time * 30) for frame in read] == [frame.index for frame in read]
    assert (
        capfd.readouterr().err.splitlines()
        == [f"{path}: 3 of 20 frames cannot be decoded"]
        == [f"{path}: {source.trouble}"]
    )


def test_pyav_opens_names_that_are_not_utf_8(tmp_path):
    pytest.importorskip("av")
    path = tmp_path / os.fsdecode(b"t\xe9l\xe9.y4m")
    assert len(list(open_source(write_y4m(path, raw_frames(10), "mono", bits=10)))) == 3


def test_colour_video_of_more_bits_has_three_channels_with_pyav(tmp_path):
    pytest.importorskip("av")
    path = write_y4m(tmp_path / "clip.y4m", raw_frames(10), "420", bits=10, chroma=700)
    (frame, *_) = open_source(path)
    assert frame.image.dtype == np.uint16 and frame.image.shape == (48, 64, 3)
    assert frame.image[..., 0].mean() > frame.image[..., 1].mean() + 5000, "blue, and scaled to 16 bits"


def test_8_bit_video_is_decoded_as_before(tmp_path, capfd):
    for layout in ("mono", "420"):
        frames = [np.full((48, 64), 40 * index + 50, np.uint16) for index in range(3)]
        read = [frame.image for frame in open_source(write_y4m(tmp_path / "clip.y4m", frames, layout))]
        assert all(image.dtype == np.uint8 and image.shape == (48, 64) for image in read)
        assert np.all(np.diff([image.mean() for image in read]) > 35)
    assert capfd.readouterr().err == ""


def test_bits_per_channel_reads_the_tags_of_ffmpeg():
    eight = [
        b"I420",
        b"Y800",
        b"NV12",
        b"YUY2",
        b"Y422",
        b"Y42B",
        b"RGB\x18",
        b"RGB\x10",
        b"BGR\x0f",
        b"PAL\x08",
        bytes(4),
    ]
    assert {bits_per_channel(tag) for tag in eight} == {8}
    deep = {
        b"Y1\0\x10": 16,
        b"\x10\x001Y": 16,
        b"Y1\0\x0a": 10,
        b"\x0c\x001Y": 12,
        b"Y3\x0b\x0a": 10,
        b"\x0a\x0b3Y": 10,
    }
    deep |= {b"\x0a\x0b3Y": 10, b"Y4\0\x10": 16, b"G3\0\x0a": 10, b"P010": 10, b"P216": 16, b"RGB0": 16, b"0BGR": 16}
    assert {tag: bits_per_channel(tag) for tag in deep} == deep


def write_h264(path, options):
    av = pytest.importorskip("av")
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "5"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for value in range(0, 200, 10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), value, np.uint8))))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


def test_count_packets_counts_damaged_frames(tmp_path):
    packets = write_h264(tmp_path / "clip.mp4", {})
    content = bytearray((tmp_path / "clip.mp4").read_bytes())
    for position, size in packets[5:8]:
        content[position : position + size] = b"\xff" * size
    (tmp_path / "clip.mp4").write_bytes(content)
    assert count_packets(str(tmp_path / "clip.mp4")) == 20


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("clip.mp4", {}, True),
        ("clip.mov", {"movflags": "faststart"}, True),
        ("clip.mp4", {"movflags": "frag_keyframe+empty_moov"}, False),
        ("clip.mp4", {"movflags": "frag_keyframe"}, False),
        ("clip.mkv", {}, False),
    ],
)
def test_only_mp4_without_fragments_states_its_frame_count(tmp_path, name, options, expected):
    write_h264(tmp_path / name, options)
    assert states_frame_count(str(tmp_path / name)) == expected
    assert not states_frame_count(str(tmp_path / "missing.mp4"))


def test_count_packets_counts_the_stored_frames(tmp_path):
    assert count_packets(str(write_ffv1(tmp_path / "clip.mkv", raw_frames(16, count=7)))) == 7
    assert count_packets(str(tmp_path / "missing.mkv")) is None
    assert open_decoder(str(tmp_path / "missing.mkv")) is None
