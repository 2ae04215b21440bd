"""Finds wrong options for the boxes of an ONNX file of another detector, from the boxes that the options give."""

import os

import torch
from torch import Tensor

from danet.utils.errors import UserError

MIN_BOXES = 10
"""Number of boxes from which on the options are judged: single boxes may be implausible by chance."""
MAX_IMPLAUSIBLE = 0.9
"""The options are wrong if a larger fraction of the boxes of all images is implausible in one way."""
MAX_OVERHANG = 0.1
"""A box sticks out of the input if it exceeds it by more than this fraction of the side of the input."""


class BoxCheck:
    """Counts implausible boxes over all images, and stops with an error that names the option that causes them.

    Args:
        path: the file, for the error.
        kind: meaning of the four values of a box: "xyxy", "xywh" or "cxcywh".
        relative: whether the values are relative to the size of the input.

    Example:
        >>> check = BoxCheck("a.onnx", "xyxy", relative=False)
        >>> centred = torch.tensor([[40.0, 40.0, 8.0, 8.0]] * 10)
        >>> check.add(centred, corners=centred, size=(64, 64))
        Traceback (most recent call last):
        danet.utils.errors.UserError: a.onnx: 10 of 10 boxes have no area with --onnx.boxes xyxy; the file probably ...
    """

    def __init__(self, path: str | os.PathLike, kind: str, *, relative: bool) -> None:
        self._path, self._kind, self._relative = path, kind, relative
        self._boxes = self._empty = self._outside = self._tiny = self._like_corners = self._overhanging = 0

    def add(self, values: Tensor, corners: Tensor, size: tuple[int, int]) -> None:
        """Counts the boxes of one image.

        Args:
            values: the four values of each box, as the file gives them, ``[P, 4]``.
            corners: what the options make of them: corners in pixels of the input, ``[P, 4]``.
            size: height and width of the input.

        Raises:
            UserError: nearly all boxes so far have no area, lie outside of the input, are smaller than a pixel, or
                look like two corners although the option says otherwise.
        """
        height, width = size
        sides = corners[:, 2:] - corners[:, :2]
        limits = torch.tensor([width, height])
        overhang = torch.maximum(-corners[:, :2], corners[:, 2:] - limits) / limits
        self._boxes += len(corners)
        self._empty += int((sides <= 0).any(dim=1).sum())
        self._outside += int(((corners[:, 2:] <= 0) | (corners[:, :2] >= limits)).any(dim=1).sum())
        self._tiny += int((sides.abs() < 1).all(dim=1).sum())
        self._like_corners += int((values[:, 2:] > values[:, :2]).all(dim=1).sum())
        self._overhanging += int((overhang > MAX_OVERHANG).any(dim=1).sum())
        if self._boxes >= MIN_BOXES:
            self._judge()

    def _judge(self) -> None:
        other = "false" if self._relative else "true"
        scaled = f"--onnx.relative {str(self._relative).lower()}; the file probably needs --onnx.relative {other}"
        limit = MAX_IMPLAUSIBLE * self._boxes
        if self._tiny > limit and not self._relative:
            self._fail(self._tiny, f"are smaller than a pixel with {scaled}")
        if self._outside > limit:
            if self._relative:
                self._fail(self._outside, f"lie outside of the input with {scaled}")
            self._fail(self._outside, f"lie outside of the input with --onnx.boxes {self._kind}; see --onnx.boxes")
        if self._empty > limit:
            hint = "the file probably needs --onnx.boxes cxcywh or xywh" if self._kind == "xyxy" else "see --onnx.boxes"
            self._fail(self._empty, f"have no area with --onnx.boxes {self._kind}; {hint}")
        # Corners that are read as a position and a size give boxes that are larger than their distance from the origin.
        # Large centred objects do so as well, but they do not stick out of the input.
        if self._kind != "xyxy" and self._like_corners == self._boxes and self._overhanging:
            self._fail(
                self._boxes,
                f"look like two corners and not like --onnx.boxes {self._kind}; the file probably needs --onnx.boxes "
                "xyxy",
            )

    def _fail(self, count: int, problem: str) -> None:
        raise UserError(f"{self._path}: {count} of {self._boxes} boxes {problem}")
