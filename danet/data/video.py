"""Reads the frames of a video file, a camera or a stream."""

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from danet.data.video_decoder import MAX_FAILED_READS, Decoder, count_packets, open_decoder, states_frame_count
from danet.utils.errors import UserError
from danet.utils.image_io import MAX_IMAGE_PIXELS, check_size, squeeze_grey
from danet.utils.urls import mask_url

RECORDED_SUFFIXES = frozenset(
    {".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mxf", ".webm", ".wmv", ".y4m"}
)
"""A URL of FILE_SCHEMES that ends so is a recording, even if its length is unknown. Cameras send .ts and .h264, too."""
FILE_SCHEMES = frozenset({"http", "https", "ftp", "file"})
"""Schemes of URLs of files. Cameras with other schemes, as in rtsp://camera/video.mp4, are live."""
RECONNECT_TIMEOUT_S = 30.0
"""How long to wait for a camera or stream that gives no frames."""
RECONNECT_INTERVAL_S = 0.5
"""Time between two attempts to open it again."""
MAX_REORDERED_FRAMES = 16
"""Number of frames after a failed read that may be in a wrong order or have gaps between them: H.264 and HEVC store up
to this many frames out of order."""
END_TOLERANCE_FRAMES = 2.5
"""The last frame counts as the end of a file if it lies at most this many frame durations before the stated end."""


class Frame(NamedTuple):
    """One image of a source."""

    name: str
    """Path of the image or video, URL of the stream without passwords, or ``camera0`` for camera 0."""
    index: int  # type: ignore[assignment]  # replaces tuple.index, which frames do not need
    """Frame number in the video, from 0, which also counts frames that cannot be decoded (see FrameNumbering); 0 for an
    image."""
    image: np.ndarray
    """``[H, W]`` or ``[H, W, 3]`` BGR, uint8 or uint16."""
    time: float | None = None
    """Seconds from the start of the video, as its container states it; for a camera or stream, since its first frame.
    None for an image."""


class FrameNumbering:
    """Numbers the decoded frames of a video, and counts those that are missing because they cannot be decoded.

    Normally, the number increases by 1 with each frame. The MAX_REORDERED_FRAMES frames after a failed read differ:

    - If the frame rate was steady until then, the number is computed from the time of the frame. A pause in the
      recording at this place therefore also counts as missing frames.
    - Otherwise, each failed read counts as one missing frame. The numbers after the damage are then approximate,
      because one failed read can lose several frames.

    Args:
        fps: frames per second.

    Attributes:
        number: frame number of the last frame; -1 before the first.
        time: its time in seconds.
        longest_gap: longest time in seconds between two frames without a failed read between them.

    Example:
        >>> numbering = FrameNumbering(fps=10.0)
        >>> frames = [(0.0, 0), (0.1, 0), (0.5, 1), (0.6, 0)]
        >>> [numbering.number for time, failed in frames if numbering.advance(time, failed)]
        [0, 1, 5, 6]
    """

    def __init__(self, fps: float) -> None:
        self.number = -1
        self.time = 0.0
        self.longest_gap = 0.0
        self._fps = fps
        self._is_steady = True
        self._damaged = 0  # how many of the following frames are behind damage
        self._missing = 0  # failed reads and left out frames since the last frame

    def advance(self, time: float, failed: int) -> bool:
        """Goes on to the next decoded frame; False if it must be left out.

        Behind damage, a decoder may return frames in a wrong order. A frame that is not later than the last is left out
        there.

        Args:
            time: time of the frame in seconds.
            failed: number of failed reads since the frame before.
        """
        is_first = self.number < 0
        self._damaged = MAX_REORDERED_FRAMES if failed else max(0, self._damaged - 1)
        self._missing += failed
        if self._damaged and not is_first and time <= self.time:
            self._missing += 1
            return False
        step = (time - self.time) * self._fps + is_first  # in frames; 1 if the frame rate is steady and none is missing
        self._is_steady = self._is_steady and step > 0.5 and (step < 1.5 or is_first or self._damaged > 0)
        self.number += round(step) if self._damaged and self._is_steady else 1 + self._missing
        if not self._missing:
            self.longest_gap = max(self.longest_gap, time - self.time)
        self.time = time
        self._missing = 0
        return True


class Video:
    """An iterable of Frames from a video file, a camera or a stream; only a file can be iterated again.

    Frames of a file that cannot be decoded, or that come in a wrong order behind damage, are left out. The others keep
    their times, and their numbers if the frame rate is steady (see FrameNumbering). If a camera or stream gives no
    frame, it is opened again for up to RECONNECT_TIMEOUT_S seconds. Both cases are reported on stderr; ``trouble``
    states what is missing at the end.

    Args:
        source: path of a file, URL of a file or a stream, or number of a camera.
        max_pixels: a video with larger frames is refused.

    Attributes:
        total: number of frames that the file states; None if it is unknown, as for a camera. In a file with a variable
            frame rate it is an estimate.
        fps: frames per second; DEFAULT_FPS if it is unknown.
        size: (width, height) of its frames in pixels.
        live: whether the source is a camera or stream, whose frames are lost if they are not read in time. The URL of a
            file is not live: it states its length, or has a scheme of FILE_SCHEMES and a suffix of RECORDED_SUFFIXES.
        trouble: why frames are missing; None if none are.

    Raises:
        UserError: if the source cannot be opened or none of its frames can be decoded.
    """

    def __init__(self, source: str | int, *, max_pixels: int = MAX_IMAGE_PIXELS):
        is_camera = isinstance(source, int)
        is_url = "://" in str(source)
        self.name = f"camera{source}" if is_camera else mask_url(str(source))
        self.trouble: str | None = None
        self._source = source
        decoder = open_decoder(source)
        if decoder is None:
            cannot_open = "no such camera" if is_camera else "this stream cannot be opened"
            problem = cannot_open if is_camera or is_url else "not a readable image or video"
            raise UserError(f"{mask_url(str(source))}: {problem}")
        self._is_file = not is_camera and not is_url
        self.total = None if is_camera else decoder.total or None
        first, _ = self._read(decoder, 0)
        if first is None:
            decoder.close()
            raise UserError(f"{self.name}: no frame of this video can be decoded")
        self.size: tuple[int, int] = first.shape[1::-1]
        check_size(self.name, self.size, max_pixels)
        self.live = is_camera or (is_url and self.total is None and not _is_recording(str(source)))
        self.fps = decoder.fps
        self._opened: tuple[Decoder, np.ndarray] | None = (decoder, first)
        if self._is_file:  # of a folder with hundreds of videos only one is open at a time
            decoder.close()
            self._opened = None

    @property
    def stem(self) -> str:
        """A name for files about this video: that of the file without its suffix, or of the last part of the URL."""
        if "://" not in self.name:
            return Path(self.name).stem
        host, _, path = _url_path(self.name).rstrip("/").partition("/")
        name = Path(path).stem if path else host.rpartition("@")[2]
        return re.sub(r"[^\w.-]+", "_", name).strip("._") or "stream"

    def frame_sizes(self) -> Iterator[tuple[int, int]]:
        """Yields (width, height) of its frames in pixels, each size at least once."""
        yield self.size

    def __iter__(self) -> Iterator[Frame]:
        decoder, image, failed = (*self._opened, 0) if self._opened else self._reopen()
        self._opened = None
        started = time.monotonic()
        video_start = max(0.0, decoder.container_time() - decoder.time())
        numbering, count = FrameNumbering(self.fps), 0
        try:
            while image is not None:
                # A decoder returns 0 if it does not know the time.
                seconds = decoder.time() or (numbering.number + 1 + failed) / self.fps
                if numbering.advance(time.monotonic() - started if self.live else seconds, failed):
                    count += 1
                    yield Frame(self.name, numbering.number, squeeze_grey(image), numbering.time)
                image, failed = self._read(decoder, count)
                if image is None and self.live:
                    decoder.close()
                    decoder, image = self._reconnect(decoder, count)
        finally:
            decoder.close()
        # Compare the time of the last frame with the stated end: the last frame may be shown as long as the longest
        # frame before it.
        following = numbering.number + 1
        if count < max(following, self.total or 0):
            tolerance = max(END_TOLERANCE_FRAMES / self.fps, numbering.longest_gap)
            is_at_end = numbering.time + video_start + tolerance >= decoder.duration
            self._report_missing(count, following, is_at_end=is_at_end or following >= (self.total or 0))

    def _reopen(self) -> tuple[Decoder, np.ndarray | None, int]:
        decoder = open_decoder(self._source, quiet=True)
        if decoder is None:
            raise UserError(f"{self.name}: this video cannot be opened again")
        return decoder, *self._read(decoder, 0)

    def _read(self, decoder: Decoder, count: int) -> tuple[np.ndarray | None, int]:
        """Decodes the next frame, after ``count`` frames: returns the image, and the number of failed reads before it.

        The image is None at the end. A file that should have more frames is at its end after MAX_FAILED_READS failed
        reads in succession; all other sources, and a file with all its frames decoded, after one.
        """
        has_all = self.total is not None and count >= self.total
        for failed in range(MAX_FAILED_READS if self._is_file and not has_all else 1):
            if (image := decoder.read()) is not None:
                return image, failed
        return None, 0

    def _report_missing(self, count: int, following: int, *, is_at_end: bool) -> None:
        """Sets ``trouble`` if frames are missing of a file.

        The number of frames that a container states is an estimate in Matroska and WebM, and too large if the frame
        rate varies. The file is complete if the last frame is at its stated end and every packet gave a frame (if
        packets can be counted), and in MP4 if there are as many frames as it states.

        Args:
            count: number of frames that were decoded.
            following: frame number after the last of them.
            is_at_end: whether the last of them is at the stated end.
        """
        missing = following - count
        if is_at_end:
            expected = following
            if "://" not in self.name:
                stated = self.total if states_frame_count(str(self._source)) else None
                expected = max(following, count_packets(str(self._source)) or 0, stated or 0)
            if count >= expected:
                return
            problem = f"{expected - count} of {expected} frames cannot be decoded"
        elif missing:
            frames = "frame" if missing == 1 else "frames"
            problem = f"ends early at frame {following} of {self.total}; "
            problem += f"{missing} earlier {frames} cannot be decoded, either"
        else:
            problem = f"ends early: frame {following} of {self.total} cannot be decoded"
        self.trouble = problem
        print(f"{self.name}: {problem}", file=sys.stderr)

    def _reconnect(self, decoder: Decoder, index: int) -> tuple[Decoder, np.ndarray | None]:
        """Opens a camera or stream again until it gives an image; the image is None after RECONNECT_TIMEOUT_S."""
        last, seconds = f"frame {index - 1}", f"{RECONNECT_TIMEOUT_S:.0f} s"
        print(f"{self.name}: no image after {last}, trying to reconnect for {seconds}", file=sys.stderr)
        start = time.monotonic()
        while time.monotonic() - start < RECONNECT_TIMEOUT_S:
            time.sleep(RECONNECT_INTERVAL_S)
            opened = open_decoder(self._source, quiet=True)
            if opened is None:
                continue
            if (image := opened.read()) is not None:
                print(f"{self.name}: reconnected after {time.monotonic() - start:.1f} s", file=sys.stderr)
                return opened, image
            opened.close()
        self.trouble = f"connection lost after {last}"
        print(f"{self.name}: {self.trouble}", file=sys.stderr)
        return decoder, None


def _is_recording(url: str) -> bool:
    """Whether the scheme and the suffix of a URL show that it is a file."""
    is_file = url.partition("://")[0].lower() in FILE_SCHEMES
    return is_file and Path(_url_path(url)).suffix.lower() in RECORDED_SUFFIXES


def _url_path(url: str) -> str:
    """Host and path of a URL, without its scheme and parameters."""
    return re.split(r"[?#]", url.partition("://")[2], maxsplit=1)[0]
