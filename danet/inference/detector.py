"""The public detector: an image in, boxes in the pixels of that image out."""

import copy
import os
from collections.abc import Sequence
from typing import Any, Protocol

import cv2
import numpy as np
import torch

from danet.boxes import Detections, area, clip
from danet.config import ModelConfig
from danet.data.normalize import intensity_range, normalize
from danet.data.transforms import letterbox
from danet.models import DANet
from danet.models.danet import MINIMUM_SIZE
from danet.utils.image_io import read_image


class Network(Protocol):
    """What a ``Detector`` runs: a ``DANet``, a ``DeployedDANet`` or an ``OnnxNetwork``."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def device(self) -> torch.device: ...
    def __call__(self, images: torch.Tensor, /) -> Any: ...
    def decode(
        self, output: Any, /, *, score_threshold: float, iou_threshold: float, max_detections: int
    ) -> list[Detections]: ...


class DeployableNetwork(Network, Protocol):
    """What a ``Detector`` is made of: a ``DANet`` or an ``OnnxNetwork``."""

    def deploy(self, *, dtype: torch.dtype) -> Network: ...


class Detector:
    """A trained network with its preprocessing and its thresholds.

    Args:
        model: a trained DANet or an OnnxNetwork. The detector runs ``model.deploy()``; the model does not change.
        score_threshold: detections have higher scores than this.
        iou_threshold: non-maximum suppression drops a detection if its IoU with one of a higher score exceeds this.
        max_detections: maximum number of detections per image.
        input_size: (height, width) in pixels that every image is letterboxed to, or one number for a square; None
            keeps the size of each image.
        metadata: what the weights file stores beside the weights.
        dtype: dtype of the network: torch.float32, torch.bfloat16 or torch.float16.
        deploy: False runs a copy of the DANet that is not fused, for comparison.

    Raises:
        ValueError: a threshold does not lie between 0 and 1.

    Example:
        >>> from danet.config import ModelConfig
        >>> from danet.models import build_model
        >>> detector = Detector(build_model(ModelConfig(name="danet_nano")), score_threshold=0.9)
        >>> detector(np.zeros((64, 96), np.uint8)).boxes.shape
        torch.Size([0, 4])
    """

    def __init__(
        self,
        model: DeployableNetwork,
        *,
        score_threshold: float = 0.5,
        iou_threshold: float = 0.5,
        max_detections: int = 300,
        input_size: tuple[int, int] | int | None = None,
        metadata: dict | None = None,
        dtype: torch.dtype = torch.float32,
        deploy: bool = True,
    ) -> None:
        for name, value in (("score_threshold", score_threshold), ("iou_threshold", iou_threshold)):
            if not 0 <= value <= 1:
                raise ValueError(f"Detector: {name} must lie between 0 and 1, got {value}")
        if isinstance(input_size, int):
            input_size = (input_size, input_size)
        self.model: Network = (
            copy.deepcopy(model).eval().to(dtype)
            if not deploy and isinstance(model, DANet)
            else model.deploy(dtype=dtype)
        )
        self.device, self.dtype = model.device, dtype
        self.score_threshold = score_threshold
        self.iou_threshold = iou_threshold
        self.max_detections = max_detections
        self.input_size = input_size
        self.metadata = metadata or {}

    @property
    def classes(self) -> list[str]:
        """Names of the classes; ``Detections.labels`` are indices into this list."""
        return self.model.config.classes

    def __call__(self, image: np.ndarray | str | os.PathLike) -> Detections:
        """Detects in one image.

        Args:
            image: a path, or an array ``[H, W]`` or ``[H, W, 3]`` (BGR) of uint8 or uint16.

        Returns:
            Boxes ``[M, 4]`` (x0, y0, x1, y1 in pixels of the image), scores ``[M]`` in decreasing order, and labels
            ``[M]``, on the CPU.

        Raises:
            TypeError: the image has another type or dtype.
            ValueError: the array has another shape or no pixels.
            UserError: the file is missing or is not a readable image.
        """
        return self.batch([image])[0]

    def batch(self, images: list[np.ndarray | str | os.PathLike]) -> list[Detections]:
        """Detects in several images at once; if their sizes differ, the smaller ones are padded."""
        return self.postprocess(*self.forward(*self.preprocess(images))) if images else []

    def preprocess(
        self, images: Sequence[np.ndarray | str | os.PathLike]
    ) -> tuple[torch.Tensor, list[tuple[int, int, float, tuple[float, float]]]]:
        """Reads, letterboxes and normalizes images into a batch ``[N, C, H, W]`` of float32.

        Smaller images of a batch are padded at the right and at the bottom with 0, the normalized median.

        Returns:
            The batch, and for each image what ``postprocess`` needs: height, width, letterbox scale and offset.
        """
        channels = self.model.config.input_channels
        placed, geometry = [], []
        for image in images:
            array = _check_image(image) if not isinstance(image, (str, os.PathLike)) else read_image(image)
            if channels == 1 and array.ndim == 3:
                array = cv2.cvtColor(array, cv2.COLOR_BGR2GRAY)
            height, width = array.shape[:2]
            frame = intensity_range(array)  # range of the frame's intensities, without the padding of the letterbox
            scale, offset = 1.0, (0.0, 0.0)
            if self.input_size is not None and (height, width) != tuple(self.input_size):
                array, _, (scale, offset) = letterbox(array, np.zeros((0, 4), np.float32), self.input_size)
            placed.append(normalize(array, channels, frame))
            geometry.append((height, width, scale, offset))
        shape = [max(MINIMUM_SIZE, *(p.shape[axis] for p in placed)) for axis in (1, 2)]
        if len(placed) == 1 and placed[0].shape[1:] == tuple(shape):
            return torch.from_numpy(placed[0][None]), geometry
        batch = np.zeros((len(placed), placed[0].shape[0], *shape), np.float32)
        for i, p in enumerate(placed):
            batch[i, :, : p.shape[1], : p.shape[2]] = p
        return torch.from_numpy(batch), geometry

    @torch.inference_mode()
    def forward(self, batch: torch.Tensor, geometry: list) -> tuple[Any, list]:
        """Runs the network on its device; returns its output for ``decode``, and ``geometry`` unchanged."""
        return self.model(batch.to(self.device, self.dtype, memory_format=torch.channels_last)), geometry

    @torch.inference_mode()
    def postprocess(self, output: Any, geometry: list) -> list[Detections]:
        """Applies thresholds and NMS, maps the boxes to pixels of the images and clips them; returns CPU tensors."""
        results = []
        decoded = self.model.decode(
            output,
            score_threshold=self.score_threshold,
            iou_threshold=self.iou_threshold,
            max_detections=self.max_detections,
        )
        for detections, (height, width, scale, (x, y)) in zip(decoded, geometry, strict=True):
            if len(detections.scores) == 0:
                results.append(Detections(*(values.cpu() for values in detections)))
                continue
            boxes = clip((detections.boxes.cpu() - torch.tensor([x, y, x, y])) / scale, height, width)
            inside = area(boxes) > 0  # drop boxes that lie in the padding
            kept = (boxes, detections.scores.cpu(), detections.labels.cpu())
            results.append(Detections(*(values[inside] for values in kept)))
        return results


def _check_image(image: object) -> np.ndarray:
    if not isinstance(image, np.ndarray):
        raise TypeError(f"Detector: an image must be a path or a numpy array, got {type(image).__name__}")
    if image.dtype not in (np.uint8, np.uint16):
        raise TypeError(f"Detector: an image must be uint8 or uint16, got {image.dtype}")
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.size == 0 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise ValueError(f"Detector: an image must be [H, W] or [H, W, 3], got {list(image.shape)}")
    return image
