"""Reads the frames of a video file, a camera or a stream."""

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from danet.data.video_decoder import Decoder, count_packets, open_decoder
from danet.utils.errors import UserError
from danet.utils.image_io import MAX_IMAGE_PIXELS, check_size, squeeze_grey
from danet.utils.urls import mask_url

RECORDED_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})
"""A URL that ends so is a recording and not a camera, even if its length is unknown."""
RECONNECT_TIMEOUT_S = 30.0
"""How long to wait for a camera or stream that gives no frames."""
RECONNECT_INTERVAL_S = 0.5
"""Time between two attempts to open it again."""
MAX_FAILED_READS = 10_000
"""How many times in succession a file may give no frame before the rest of it counts as undecodable. Behind the end of
a file, so many attempts take a few milliseconds."""
END_TOLERANCE_FRAMES = 2.5
"""The last frame counts as the end of a file if it lies at most this many frame durations before the stated end."""


class Frame(NamedTuple):
    """One image of a source."""

    name: str
    """Path of the image or video, URL of the stream without passwords, or ``camera0`` for camera 0."""
    index: int  # type: ignore[assignment]  # replaces tuple.index, which frames do not need
    """Frame number in the video, from 0, which also counts frames that cannot be decoded; 0 for an image."""
    image: np.ndarray
    """``[H, W]`` or ``[H, W, 3]`` BGR, uint8 or uint16."""
    time: float | None = None
    """Seconds from the start of the video, as its container states it; for a camera or stream, since its first frame.
    None for an image."""


class Video:
    """An iterable of Frames from a video file, a camera or a stream; only a file can be iterated again.

    Frames of a file that cannot be decoded are left out; the others keep their numbers and times. If a camera or stream
    gives no frame, it is opened again for up to RECONNECT_TIMEOUT_S seconds. Both cases are reported on stderr;
    ``trouble`` states what is missing at the end.

    Args:
        source: path of a file, URL of a file or a stream, or number of a camera.
        max_pixels: a video with larger frames is refused.

    Attributes:
        total: number of frames that the file states; None if it is unknown, as for a camera. In a file with a variable
            frame rate it is an estimate.
        fps: frames per second; DEFAULT_FPS if it is unknown.
        size: (width, height) of its frames in pixels.
        live: whether the source is a camera or stream, whose frames are lost if they are not read in time. The URL of a
            file is not live: it states its length, or ends in a suffix of RECORDED_SUFFIXES.
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
        is_recorded = not is_camera and Path(_url_path(str(source))).suffix.lower() in RECORDED_SUFFIXES
        self.live = (is_camera or is_url) and self.total is None and not is_recorded
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
        count, number = 0, 0  # of the frames that were decoded, and of all frames
        decoder, image, failed = (*self._opened, 0) if self._opened else self._reopen()
        self._opened = None
        started, seconds, longest_gap = time.monotonic(), 0.0, 0.0
        video_start = max(0.0, decoder.container_time() - decoder.time())
        is_steady, failures = True, 0  # whether frames were equally far apart; failures for which no frame is missing
        try:
            while image is not None:
                # Find the number of frames missing before this one: from its time, or else one for each failure.
                # A decoder that reorders frames may fail before it returns the frames in front of the missing one.
                gap = (decoder.time() - seconds) * self.fps - (count > 0)  # in frames; 0 if none is missing
                missing = max(0, round(gap)) if is_steady else failed
                missing = missing if failed else min(missing, failures)
                failures, number = max(0, failures + failed - missing), number + missing
                now = time.monotonic() - started if self.live else decoder.time() or number / self.fps
                if not failed and not missing:
                    is_steady = is_steady and (abs(gap) < 0.5 or count == 0)
                    longest_gap = max(longest_gap, now - seconds)
                seconds = now
                yield Frame(self.name, number, squeeze_grey(image), seconds)
                count, number = count + 1, number + 1
                image, failed = self._read(decoder, number)
                if image is None and self.live:
                    decoder.close()
                    decoder, image = self._reconnect(decoder, number)
        finally:
            decoder.close()
        # Compare the time of the last frame with the stated end: the last frame may be shown as long as the longest
        # frame before it.
        if count < max(number, self.total or 0):
            tolerance = max(END_TOLERANCE_FRAMES / self.fps, longest_gap)
            self._report_missing(count, number, is_at_end=seconds + video_start + tolerance >= decoder.duration)

    def _reopen(self) -> tuple[Decoder, np.ndarray | None, int]:
        decoder = open_decoder(self._source, quiet=True)
        if decoder is None:
            raise UserError(f"{self.name}: this video cannot be opened again")
        return decoder, *self._read(decoder, 0)

    def _read(self, decoder: Decoder, number: int) -> tuple[np.ndarray | None, int]:
        """Decodes the frame ``number`` or a later one: the image, and the number of failures before it.

        The image is None at the end; for a file, if MAX_FAILED_READS attempts give none.
        """
        is_last = self.total is not None and number >= self.total
        for failed in range(MAX_FAILED_READS if self._is_file and not is_last else 1):
            if (image := decoder.read()) is not None:
                return image, failed
        return None, 0

    def _report_missing(self, count: int, following: int, *, is_at_end: bool) -> None:
        """Sets ``trouble`` if frames are missing of a file.

        The number of frames that a container states is an estimate in Matroska and WebM, and too large if the frame
        rate varies. The file is complete if the last frame is at its stated end and every packet gave a frame (if
        packets can be counted).

        Args:
            count: number of frames that were decoded.
            following: frame number after the last of them.
            is_at_end: whether the last of them is at the stated end.
        """
        problem = f"ends early: frame {following} of {self.total} cannot be decoded"
        if is_at_end:
            packets = count_packets(str(self._source)) if "://" not in self.name else None
            expected = max(packets or 0, following)
            if count >= expected:
                return
            problem = f"{expected - count} of {expected} frames cannot be decoded"
        elif count < following:
            problem += f", nor can {following - count} frames before it"
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


def _url_path(url: str) -> str:
    """Host and path of a URL, without its scheme and parameters."""
    return re.split(r"[?#]", url.partition("://")[2], maxsplit=1)[0]
