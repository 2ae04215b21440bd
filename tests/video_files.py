"""Writes small videos in formats that OpenCV reads but does not write."""

import struct
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

CHROMA_STEPS = {"420": (2, 2), "422": (1, 2), "444": (1, 1)}


def write_y4m(
    path: Path, frames: Sequence[np.ndarray], layout: str, *, bits: int = 8, chroma: int | None = None
) -> Path:
    """Writes an uncompressed YUV4MPEG video, 30 frames per second.

    Args:
        frames: grey images ``[H, W]``, the luma.
        layout: ``mono`` or 420, 422 and 444, the sampling of the chroma.
        bits: of each value; values above 8 bits are stored in 16.
        chroma: value of both chroma planes; by default no colour.
    """
    height, width = frames[0].shape
    suffix = {"mono": str(bits)}.get(layout, f"p{bits}") if bits > 8 else ""
    dtype = "<u2" if bits > 8 else "u1"
    planes = b""
    if layout != "mono":
        down, across = CHROMA_STEPS[layout]
        value = 1 << (bits - 1) if chroma is None else chroma
        planes = 2 * np.full((height // down, width // across), value, dtype).tobytes()
    header = f"YUV4MPEG2 W{width} H{height} F30:1 Ip A1:1 C{layout}{suffix}\n".encode()
    path.write_bytes(header + b"".join(b"FRAME\n" + frame.astype(dtype).tobytes() + planes for frame in frames))
    return path


def write_matroska(
    path: Path, frames: Sequence[np.ndarray], times_ms: Sequence[int], *, duration_ms: int | None
) -> Path:
    """Writes a Matroska video (Motion JPEG) whose frames have the given times; it states 30 frames per second.

    Args:
        frames: images, uint8 ``[H, W]``.
        times_ms: presentation time of each frame, at most 32,767.
        duration_ms: of the file; None states none, like a recorder that was not stopped properly.
    """
    height, width = frames[0].shape
    info = _element("2AD7B1", _number(1_000_000))  # nanoseconds of a tick
    if duration_ms is not None:
        info += _element("4489", struct.pack(">d", duration_ms))
    size = _element("E0", _element("B0", _number(width)) + _element("BA", _number(height)))
    rate = _element("23E383", _number(1_000_000_000 // 30))
    track = _element("D7", b"\1") + _element("73C5", b"\1") + _element("83", b"\1") + _element("86", b"V_MJPEG")
    blocks = b"".join(
        _element("A3", b"\x81" + struct.pack(">hB", time, 0x80) + cv2.imencode(".jpg", frame)[1].tobytes())
        for frame, time in zip(frames, times_ms, strict=True)
    )
    segment = _element("1549A966", info) + _element("1654AE6B", _element("AE", track + rate + size))
    segment += _element("1F43B675", _element("E7", b"\0") + blocks)
    path.write_bytes(_element("1A45DFA3", _element("4282", b"matroska")) + _element("18538067", segment))
    return path


def _element(identifier: str, content: bytes) -> bytes:
    return bytes.fromhex(identifier) + struct.pack(">Q", 1 << 56 | len(content)) + content


def _number(value: int) -> bytes:
    return struct.pack(">I", value)
