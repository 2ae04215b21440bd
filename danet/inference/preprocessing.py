"""Turns images of any camera into the input of a network, and its boxes back into pixels of the images."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import torch

from danet.boxes import clip
from danet.config import ModelConfig
from danet.data.image_domain import ImageDomain
from danet.data.normalize import intensity_range, normalize
from danet.data.temporal import align, extra_channels, to_grey
from danet.data.transforms import letterbox
from danet.inference.image_arrays import to_image
from danet.inference.tile_merging import Tile
from danet.inference.tiling import Tiling
from danet.models.danet import MINIMUM_SIZE
from danet.utils.image_io import read_image

Image = np.ndarray | torch.Tensor | str | os.PathLike


class Placement(NamedTuple):
    """Where an image lies in the input of the network.

    Example:
        >>> placement = Placement(height=64, width=128, scale=(0.5, 0.5), offset=(0.0, 16.0))
        >>> placement.to_image(torch.tensor([[10.0, 26.0, 20.0, 36.0]]))
        tensor([[20., 20., 40., 40.]])
    """

    height: int
    width: int
    scale: tuple[float, float]
    """Magnification in (x, y)."""
    offset: tuple[float, float]
    """Position (x, y) of the image's upper left corner in pixels of the network's input."""
    tiling: Tiling | None = None
    """How the network's input is cut; None if the network sees the whole image at once."""
    tiles: tuple[Tile, ...] | None = None
    """The tiles in which the network detects, in pixels of its input; None for the whole image."""

    def to_image(self, boxes: torch.Tensor) -> torch.Tensor:
        """Maps boxes ``[M, 4]`` of the network's input to pixels of the image, and clips them to it."""
        offsets, scales = torch.tensor(self.offset * 2), torch.tensor(self.scale * 2)
        return clip((boxes - offsets) / scales, self.height, self.width)

    def to_input(self, boxes: np.ndarray) -> np.ndarray:
        """Maps boxes ``[M, 4]`` in pixels of the image to the network's input.

        Example:
            >>> Placement(64, 128, scale=(0.5, 0.5), offset=(0.0, 16.0)).to_input(np.array([[20, 20, 40, 40.0]]))
            array([[10., 26., 20., 36.]])
        """
        return boxes * np.array(self.scale * 2) + np.array(self.offset * 2)


class Preprocessor:
    """Reads, scales and normalizes images, and adds the channels of earlier frames and of the local contrast.

    Args:
        config: configuration of the network.
        input_size: (height, width) in pixels that every image is letterboxed to. "native" keeps the size of each image.
            None scales images to about the area of the training images if ``domain`` states it and the images are
            larger or smaller by more than the network tolerates.
        domain: the images that the network was trained for; None if they are not known.
        tiling: cuts images that are larger than a tile. These keep their size, or are scaled so that a tile fits into
            ``input_size``.
        notify: called with a log level and a line of text when images are scaled, or lack earlier frames, for the
            first time.

    Example:
        >>> preprocess = Preprocessor(ModelConfig(), "native", None, notify=print)
        >>> batch, placements = preprocess([np.zeros((64, 96), np.uint8)])
        >>> batch.shape, placements[0].scale
        (torch.Size([1, 1, 64, 96]), (1.0, 1.0))
    """

    def __init__(
        self,
        config: ModelConfig,
        input_size: tuple[int, int] | Literal["native"] | None,
        domain: ImageDomain | None,
        *,
        tiling: Tiling | None = None,
        notify: Callable[[int, str], None],
    ) -> None:
        self.config, self.input_size, self.domain, self.tiling = config, input_size, domain, tiling
        self._notify = notify
        self._told: set[str] = set()  # what ``notify`` was told once; copies of this object share it

    def __call__(
        self, images: Sequence[Image], past: Sequence[Mapping[float, Image]] | None = None
    ) -> tuple[torch.Tensor, list[Placement]]:
        """Turns images into a batch ``[N, C, H, W]`` of float32.

        Smaller images of a batch are padded at the right and at the bottom with 0, the normalized median.

        Args:
            images: see ``Detector.__call__``.
            past: for each image its earlier frames, as far as they are known: lag in seconds, one of ``config.lags`` ->
                frame of the size and dtype of the image. Other frames are not used.

        Returns:
            The batch, and the place of each image in it.
        """
        if past is None and self.config.lags:
            self.tell_missing_frames(self.config.lags)
        prepared = [self._prepare(image, past[index] if past else {}) for index, image in enumerate(images)]
        arrays, placements = [array for array, _ in prepared], [placement for _, placement in prepared]
        shape = [max(MINIMUM_SIZE, *(array.shape[axis] for array in arrays)) for axis in (1, 2)]
        if len(arrays) == 1 and arrays[0].shape[1:] == tuple(shape):
            return torch.from_numpy(arrays[0][None]), placements
        batch = np.zeros((len(arrays), arrays[0].shape[0], *shape), np.float32)
        for padded, array in zip(batch, arrays, strict=True):
            padded[:, : array.shape[1], : array.shape[2]] = array
        return torch.from_numpy(batch), placements

    def tell_missing_frames(self, lags: Sequence[float]) -> None:
        """Notifies once that images have no earlier frames for some lags."""
        if "missing frames" in self._told:
            return
        self._told.add("missing frames")
        listed = ", ".join(f"{lag:g}" for lag in lags)
        self._notify(
            logging.WARNING,
            f"the network compares an image with the frames {listed} s earlier, which single images and videos of a "
            "low frame rate do not have: these input channels are zero; detect in the video itself, or use other "
            "weights",
        )

    def _prepare(self, image: Image, past: Mapping[float, Image]) -> tuple[np.ndarray, Placement]:
        """All channels of one image, float32 ``[C, H, W]``."""
        channels = self.config.input_channels
        pixels = read_pixels(image)
        if channels == 1:
            pixels = to_grey(pixels)
        intensities = intensity_range(pixels)  # before the letterbox, whose padding must not count
        resized, scale, offset = self._resize(pixels)
        array = normalize(resized, channels, intensities)
        if self.config.network_channels > channels:
            array = np.concatenate([array, self._extra_channels(resized, pixels, past, intensities.span)])
        height, width = pixels.shape[:2]
        tiling = None
        if self.tiling is not None and self.tiling.applies(height, width):
            tiling = self.tiling.scaled(self._tile_scale(self.tiling))
        tiles = None if tiling is None else tuple(tiling.grid(*array.shape[1:]))
        return array, Placement(height, width, scale, offset, tiling, tiles)

    def _tile_scale(self, tiling: Tiling) -> float:
        """The magnification at which a tile fits into ``input_size``."""
        if not isinstance(self.input_size, tuple):
            return 1.0
        return min(self.input_size[0] / tiling.size[0], self.input_size[1] / tiling.size[1])

    def _resize(self, image: np.ndarray) -> tuple[np.ndarray, tuple[float, float], tuple[float, float]]:
        """The image as the network sees it, its scale and its offset, see ``Placement``."""
        height, width = image.shape[:2]
        if self.tiling is not None and self.tiling.applies(height, width):
            scale = self._tile_scale(self.tiling)
            size = max(1, round(height * scale)), max(1, round(width * scale))
            if size == (height, width):
                return image, (1.0, 1.0), (0.0, 0.0)
            resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
            return resized, (size[1] / width, size[0] / height), (0.0, 0.0)
        if isinstance(self.input_size, tuple):
            if self.input_size == (height, width):
                return image, (1.0, 1.0), (0.0, 0.0)
            image, _, (scale, offset) = letterbox(image, np.zeros((0, 4), np.float32), self.input_size)
            return image, (scale, scale), offset
        fitted = self.domain.fitted_size(height, width) if self.input_size is None and self.domain is not None else None
        if fitted is None:
            return image, (1.0, 1.0), (0.0, 0.0)
        if "scaling" not in self._told:
            self._told.add("scaling")
            self._notify(
                logging.WARNING,
                f"frames of {width} x {height} pixels are scaled to {fitted[1]} x {fitted[0]}, close to the size of "
                f"the training images ({self.domain}); "
                "--input_size native (input_size='native' in Python) turns this off",
            )
        # Cubic interpolation keeps small targets sharp: bilinear interpolation loses a tenth of them when it enlarges.
        method = cv2.INTER_AREA if fitted[0] < height else cv2.INTER_CUBIC
        resized = cv2.resize(image, fitted[::-1], interpolation=method)
        return resized, (fitted[1] / width, fitted[0] / height), (0.0, 0.0)

    def _extra_channels(
        self, resized: np.ndarray, pixels: np.ndarray, past: Mapping[float, Image], span: float
    ) -> np.ndarray:
        """The channels that compare a resized image with its neighborhood and with its earlier frames."""
        grey = to_grey(resized)
        aligned: list[np.ndarray | None] = []
        for lag in self.config.lags:
            frame = read_pixels(past[lag]) if lag in past else None
            if frame is None or frame.shape[:2] != pixels.shape[:2] or frame.dtype != pixels.dtype:
                aligned.append(None)
            else:
                aligned.append(align(to_grey(self._resize(frame)[0]), grey, span))
        return extra_channels(grey, aligned, span, with_local_contrast=self.config.local_contrast)


def read_pixels(image: Any) -> np.ndarray:
    """The pixels of an image, or of the file that a path names, see ``danet.inference.image_arrays.to_image``.

    Example:
        >>> read_pixels(torch.zeros(1, 48, 64)).shape
        (48, 64)
    """
    return read_image(image) if isinstance(image, (str, os.PathLike)) else to_image(image)
