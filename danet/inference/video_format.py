"""Chooses the format of annotated videos: one that web browsers play, where OpenCV can write it."""

import functools
import tempfile
from pathlib import Path
from typing import Literal

import cv2

from danet.data import h264_writer
from danet.utils.image_io import silent_stderr

VideoFormat = Literal["auto", "mp4", "webm"]

CODECS = {".mp4": ("avc1", h264_writer.CODEC, "mp4v"), ".webm": ("VP80", "VP90")}
"""Codecs by the suffix of the file, best first.

MP4: H.264 by OpenCV or by PyAV, and MPEG-4. WebM: VP8, which is faster to write than VP9, and VP9.
"""

PLAYED_BY_BROWSERS = frozenset({"avc1", h264_writer.CODEC, "VP80", "VP90"})

PROBE_SIZE_PIXELS = (64, 64)


def choose_suffix(video_format: VideoFormat = "auto") -> str:
    """The suffix of annotated videos: with "auto" .mp4 if H.264 can be written, else .webm if it can, else .mp4.

    Example:
        >>> choose_suffix("mp4"), choose_suffix() in (".mp4", ".webm")
        ('.mp4', True)
    """
    if video_format != "auto":
        return f".{video_format}"
    for suffix, codecs in CODECS.items():
        if any(_can_write(suffix, codec) for codec in codecs if codec in PLAYED_BY_BROWSERS):
            return suffix
    return ".mp4"


def choose_codec(path: str | Path) -> str:
    """The best codec that can be written here for a file of this name; any suffix but .webm stands for .mp4.

    Example:
        >>> choose_codec("clip.mp4") in CODECS[".mp4"]
        True
    """
    suffix = ".webm" if str(path).endswith(".webm") else ".mp4"
    return next((codec for codec in CODECS[suffix] if _can_write(suffix, codec)), CODECS[suffix][-1])


@functools.cache
def _can_write(suffix: str, codec: str) -> bool:
    """Whether a file of this codec can be opened; codecs are part of some builds only."""
    if codec == h264_writer.CODEC:
        return h264_writer.can_write_h264()
    with tempfile.TemporaryDirectory(prefix="danet-video-") as folder, silent_stderr:
        writer = cv2.VideoWriter(f"{folder}/probe{suffix}", cv2.VideoWriter.fourcc(*codec), 25.0, PROBE_SIZE_PIXELS)
        is_open = writer.isOpened()
        writer.release()
    return bool(is_open)
