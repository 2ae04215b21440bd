"""Decodes videos with all bits of their pixels: with OpenCV, and with PyAV where OpenCV would drop bits."""

import re
import sys
from collections import deque
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from danet.utils.errors import UserError
from danet.utils.files import encodable_path
from danet.utils.image_io import silent_stderr, squeeze_grey
from danet.utils.urls import mask_url

DEFAULT_FPS = 25.0
"""Frames per second of a source that does not state its frame rate."""
MAX_FPS = 1000.0
"""A higher frame rate is the clock of a container that states none."""
MAX_FAILED_READS = 1000
"""How many times in succession a file may give no frame before the rest of it counts as undecodable. Behind the end of
a file, so many attempts take 10 to 20 milliseconds."""
MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
"""Types of the first box of an MP4 or QuickTime file."""

_GRAY16 = b"Y1\x00\x10"
"""FFmpeg's tag of 16-bit little-endian grey, the only format of more than 8 bits that OpenCV returns unchanged."""
_RGB16 = {b"RGB0", b"BGR0", b"0RGB", b"0BGR", b"RBA@", b"BRA@", b"@RBA", b"@BRA"}
"""FFmpeg's tags of RGB with 16 bits per channel."""


class Decoder(Protocol):
    """Decodes the frames of a video in order.

    Attributes:
        total: number of frames that the container states; 0 if it is unknown, as for a camera. It is exact in MP4
            (see states_frame_count). In AVI it includes frames that are empty, because nothing changes. In other
            containers it is duration times frame rate.
        fps: frames per second that the container states, or DEFAULT_FPS.
        duration: seconds that the container states; 0 if it is unknown.
    """

    total: int
    fps: float
    duration: float

    def read(self) -> np.ndarray | None:
        """Decodes the next frame; None at the end, or if it cannot be decoded. The next call goes on behind it."""

    def time(self) -> float:
        """Presentation time of the frame that was read last, in seconds from the start of the video."""

    def container_time(self) -> float:
        """Like ``time``, but from the zero of the container, which may lie before the start of the video."""

    def close(self) -> None:
        """Closes the file or the device."""


def open_decoder(source: str | int, *, quiet: bool = False) -> Decoder | None:
    """Opens a video file, a stream or a camera; None if it cannot be opened.

    Frames with more than 8 bits per channel are decoded with all their bits: 16-bit grey with OpenCV, all other formats
    with PyAV, if it is installed. Without it, colour formats are read with 8 bits, and a warning on stderr says so
    unless ``quiet`` is set.

    Raises:
        UserError: the video is grey with more than 8 bits, which OpenCV alone would reduce to the upper 8.
    """
    decoder = OpenCVDecoder(source)
    if not decoder.is_open:
        decoder.close()
        return None
    tag = decoder.pixel_format
    bits = bits_per_channel(tag)
    if bits <= 8 or (tag == _GRAY16 and decoder.keep_16_bits()):
        return decoder
    try:
        import av.error
    except ImportError:
        name = mask_url(str(source))
        if tag[:2] in (b"Y1", b"Y2") or tag[2:] in (b"1Y", b"2Y"):
            decoder.close()
            raise UserError(
                f"{name}: a grey video with {bits} bits per pixel, of which OpenCV reads only 8; install PyAV to read "
                "all (pip install av), or convert it to 16 bits (ffmpeg -i IN -c:v ffv1 -pix_fmt gray16le OUT.mkv)"
            ) from None
        if not quiet:
            remedy = "install PyAV to read all (pip install av)"
            print(f"{name}: warning: only 8 of {bits} bits per channel are read; {remedy}", file=sys.stderr)
        return decoder
    decoder.close()
    return PyAVDecoder(av, str(source))


def bits_per_channel(tag: bytes) -> int:
    """Bits of a channel in a pixel format.

    Args:
        tag: 4 bytes, FFmpeg's tag of the format, which OpenCV returns as CAP_PROP_CODEC_PIXEL_FORMAT.

    Example:
        >>> bits_per_channel(b"Y3\\x0b\\x0a"), bits_per_channel(b"I420"), bits_per_channel(b"P010")  # yuv420p10le
        (10, 8, 10)
    """
    if tag in _RGB16:
        return 16
    if packed := re.fullmatch(rb"P[024](10|12|16)", tag):
        return int(packed[1])
    # Grey, YUV and planar RGB: two letters, the subsampling and the bits; big-endian formats have them backwards.
    planar = re.fullmatch(rb"[YG][1-4][\x00-\x0f]([\x09-\x20])|([\x09-\x20])[\x00-\x0f][1-4][YG]", tag, re.DOTALL)
    return ord(planar[1] or planar[2]) if planar else 8


def open_capture(source: str | int) -> cv2.VideoCapture:
    """Opens a source with OpenCV, silently and whatever its name is; ``isOpened`` of the result tells whether it could.

    Example:
        >>> open_capture("missing.mkv").isOpened()
        False
    """
    with silent_stderr:  # not all of OpenCV's readers use its log
        if isinstance(source, int):
            return cv2.VideoCapture(source)
        with encodable_path(source) as name:
            return cv2.VideoCapture(name)


class OpenCVDecoder:
    """Decodes with OpenCV, see ``Decoder``; ``is_open`` tells whether the source could be opened."""

    def __init__(self, source: str | int) -> None:
        self._capture = open_capture(source)
        self.is_open = self._capture.isOpened()
        self.total = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self._rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = self._rate if 0.0 < self._rate <= MAX_FPS else DEFAULT_FPS
        self.duration = self.total / self._rate if self._rate > 0.0 else 0.0

    @property
    def pixel_format(self) -> bytes:
        """FFmpeg's tag of the pixel format, 4 bytes."""
        return (int(self._capture.get(cv2.CAP_PROP_CODEC_PIXEL_FORMAT)) & 0xFFFFFFFF).to_bytes(4, "little")

    def keep_16_bits(self) -> bool:
        """Switches the conversion to 8 bits off; False if this OpenCV cannot."""
        return self._capture.set(cv2.CAP_PROP_CONVERT_RGB, 0)

    def read(self) -> np.ndarray | None:
        found, image = self._capture.read()
        return image if found else None

    def time(self) -> float:
        return max(0.0, self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000.0)

    def container_time(self) -> float:
        return self._capture.get(cv2.CAP_PROP_PTS) / self._rate if self._rate > 0.0 else self.time()

    def close(self) -> None:
        self._capture.release()


class PyAVDecoder:
    """Decodes with PyAV, see ``Decoder``; frames are ``[H, W]`` or ``[H, W, 3]`` (BGR) of uint16.

    A grey frame has the values of its file; a colour frame is scaled to 16 bits.
    """

    def __init__(self, av: Any, source: str) -> None:
        self._error = av.error.FFmpegError
        try:
            with encodable_path(source) as name:
                self._container = av.open(name)
        except self._error as error:
            raise UserError(f"{mask_url(source)}: PyAV cannot open this video ({error.strerror})") from error
        stream = self._container.streams.video[0]
        rate = float(stream.average_rate or 0)
        self.fps = rate if 0 < rate <= MAX_FPS else DEFAULT_FPS
        self.duration = (self._container.duration or 0) / 1e6  # PyAV counts in microseconds
        self.total = stream.frames or round(self.duration * self.fps)
        self._time = 0.0
        self._stream = stream
        self._packets = self._container.demux(stream)
        self._frames: deque[Any] = deque()
        self._start = float(stream.start_time * stream.time_base) if stream.start_time else 0.0

    def read(self) -> np.ndarray | None:
        # Decode packet by packet: PyAV's iterator over frames ends at the first error.
        while not self._frames:
            try:
                packet = next(self._packets, None)
            except self._error:  # a damaged container
                self._packets = self._container.demux(self._stream)
                return None
            if packet is None:
                return None
            try:
                self._frames.extend(packet.decode())
            except self._error:  # damaged data
                return None
        frame = self._frames.popleft()
        self._time = (frame.time or 0.0) - self._start
        return np.ascontiguousarray(np.rot90(to_array(frame), round(getattr(frame, "rotation", 0) / 90)))

    def time(self) -> float:
        return max(0.0, self._time)

    def container_time(self) -> float:
        return self._time + self._start

    def close(self) -> None:
        self._container.close()


def to_array(frame: Any) -> np.ndarray:
    """Converts a frame of PyAV with more than 8 bits to uint16: ``[H, W]`` with its own values, or ``[H, W, 3]`` (BGR).

    A YUV frame without colour is grey.
    """
    components = frame.format.components
    if not frame.format.is_rgb and len(frame.planes) == len(components):
        luma, *chroma = (_plane(frame, component) for component in components if not component.is_alpha)
        if all((plane == 1 << (components[0].bits - 1)).all() for plane in chroma):
            return luma
    return squeeze_grey(np.ascontiguousarray(frame.reformat(format="bgr48le").to_ndarray()))


def _plane(frame: Any, component: Any) -> np.ndarray:
    """The values of a plane that holds one component, uint16 in the byte order of this machine."""
    plane = frame.planes[component.plane]
    order = ">u2" if frame.format.is_big_endian else "<u2"
    rows = np.frombuffer(plane, order).reshape(plane.height, -1)
    return rows[:, : plane.width].astype(np.uint16)


def count_packets(path: str) -> int | None:
    """Number of frames that are stored in a video file, found without decoding; None if it cannot be determined.

    Damaged frames are counted, but in H.264 and HEVC those at the end of the file may not be: if such a frame is so
    damaged that OpenCV cannot unpack it, it looks like the end. VP8 is not counted: some of its packets hold no frame
    that is shown.

    Raises:
        Nothing: a file that cannot be opened gives None.
    """
    capture = open_capture(path)
    try:
        if capture.get(cv2.CAP_PROP_FOURCC) == cv2.VideoWriter.fourcc(*"VP80"):
            return None
        if not capture.isOpened() or not capture.set(cv2.CAP_PROP_FORMAT, -1):
            return None
        count = failed = 0
        while failed < MAX_FAILED_READS:
            if capture.grab():
                count, failed = count + failed + 1, 0
            else:
                failed += 1
        return count
    finally:
        capture.release()


def states_frame_count(path: str) -> bool:
    """Whether a video file states exactly how many frames it stores: MP4 and QuickTime do, unless they are fragmented.

    Example:
        >>> states_frame_count(__file__)
        False
    """
    if not Path(path).is_file():  # a pipe, or a pattern of image files
        return False
    with open(path, "rb") as file:
        start = file.read(1 << 16)
    return start[4:8] in MP4_BOXES and b"mvex" not in start  # the box of a fragmented file
