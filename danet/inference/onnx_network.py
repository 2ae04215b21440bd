"""An exported ONNX file in a network's place: what ``danet.load("model.onnx")`` returns a Detector of."""

import functools
import os
from typing import Any

import torch
from torch import Tensor

from danet.boxes import Detections, select
from danet.config import ModelConfig
from danet.export import description as descriptions
from danet.export.onnx_file import open_session


class OnnxNetwork:
    """Called as a ``DeployedDANet``, computed by ONNX Runtime on the CPU in float32.

    Raises:
        UserError: naming the file, if it is missing or not one that ``danet export`` has written.
    """

    device = torch.device("cpu")

    def __init__(self, path: str | os.PathLike) -> None:
        self.session = open_session(path)
        properties = self.session.get_modelmeta().custom_metadata_map
        self.description = descriptions.read(properties.get(descriptions.KEY), path)
        self.config = ModelConfig(**self.description["model"])

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``[N, input_channels, H, W]`` float32 -> boxes ``[N, P, 4]`` in pixels, scores ``[N, P, classes]``."""
        results = self.session.run(["boxes", "scores"], {"images": images.contiguous().numpy()})
        boxes, scores = (torch.from_numpy(result) for result in results)
        return boxes, scores

    def deploy(self, *, dtype: torch.dtype) -> "OnnxNetwork":
        """Itself: it is fused already."""
        if dtype != torch.float32:
            raise ValueError(f"OnnxNetwork: dtype must be float32, got {dtype}")
        return self

    def decode(self, output: tuple[Tensor, Tensor], **options: Any) -> list[Detections]:
        """As ``DANet.decode``."""
        return [
            select(functools.partial(torch.Tensor.__getitem__, boxes), scores, **options)
            for boxes, scores in zip(*output, strict=True)
        ]
