"""The trained detector as people call it: an image in, boxes in that image's pixels out."""

import copy
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch

from danet.boxes import Detections
from danet.data.normalize import intensity_range, normalize
from danet.data.transforms import letterbox
from danet.models import DANet
from danet.models.danet import MINIMUM_SIZE
from danet.models.deployed import DeployedDANet
from danet.utils.image_io import read_image

if TYPE_CHECKING:
    from danet.inference.onnx_network import OnnxNetwork


class Detector:
    """A model together with its preprocessing and its thresholds.

    Args:
        model: a trained DANet; a deployed copy of it is used (``DANet.deploy``), the model stays as it is. Or
            an OnnxNetwork, which takes a deployed one's place.
        score_threshold: detections with a lower score are left out.
        iou_threshold: a detection is dropped where a better one overlaps it by more.
        max_detections: at most so many detections an image.
        input_size: (height, width), or one number for a square, every image is letterboxed to; None keeps
            native sizes.
        metadata: what was saved beside the weights.
        dtype: of the network, torch.float32, bfloat16 or float16.
        deploy: False takes a plain copy of the model instead, to compare.
    """

    def __init__(
        self,
        model: "DANet | OnnxNetwork",
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
        self.model: DANet | DeployedDANet | OnnxNetwork = (
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
        """Names of the classes; ``Detections.labels`` are indices into it."""
        return self.model.config.classes

    def __call__(self, image: np.ndarray | str | os.PathLike) -> Detections:
        """Detects in one image: a path, or ``[H, W]`` / ``[H, W, 3]`` (BGR) of uint8 or uint16."""
        return self.batch([image])[0]

    def batch(self, images: list[np.ndarray | str | os.PathLike]) -> list[Detections]:
        """Detects in several images at once; where sizes differ, the smaller ones are padded."""
        return self.postprocess(*self.forward(*self.preprocess(images))) if images else []

    def preprocess(
        self, images: Sequence[np.ndarray | str | os.PathLike]
    ) -> tuple[torch.Tensor, list[tuple[int, int, float, tuple[float, float]]]]:
        """Reads, letterboxes and normalises: ``[N, C, H, W]`` float32, and what ``postprocess`` needs of each image.

        Smaller images of a batch are padded at the right and bottom with 0, the normalised median.
        """
        channels = self.model.config.input_channels
        placed, geometry = [], []
        for image in images:
            array = _check_image(image) if not isinstance(image, (str, os.PathLike)) else read_image(image)
            if channels == 1 and array.ndim == 3:
                array = cv2.cvtColor(array, cv2.COLOR_BGR2GRAY)
            height, width = array.shape[:2]
            frame = intensity_range(array)  # of the image alone: letterbox's padding has no say
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
        """Runs the network on the model's device; its output is what the model's own ``decode`` takes."""
        return self.model(batch.to(self.device, self.dtype, memory_format=torch.channels_last)), geometry

    @torch.inference_mode()
    def postprocess(self, output: Any, geometry: list) -> list[Detections]:
        """Thresholds, suppresses, and maps boxes back into the images, clipped to them; on the CPU."""
        results = []
        found = self.model.decode(
            output,
            score_threshold=self.score_threshold,
            iou_threshold=self.iou_threshold,
            max_detections=self.max_detections,
        )
        for detections, (height, width, scale, (x, y)) in zip(found, geometry, strict=True):
            if len(detections.scores) == 0:
                results.append(Detections(*(values.cpu() for values in detections)))
                continue
            boxes = (detections.boxes.cpu() - torch.tensor([x, y, x, y])) / scale
            limits = torch.tensor([width, height, width, height], dtype=boxes.dtype)
            boxes = torch.minimum(boxes.clamp(min=0), limits)
            inside = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)  # a box in the padding is no box
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
