"""What a ``Detector`` expects of a network."""

from typing import Any, Literal, Protocol

import torch

from danet.boxes import Detections
from danet.config import ModelConfig


class Network(Protocol):
    """What a ``Detector`` runs: a ``DANet``, a ``DeployedDANet`` or an ``OnnxNetwork``."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def input_dtype(self) -> torch.dtype: ...
    def __call__(self, images: torch.Tensor, /) -> Any: ...
    def decode(
        self, output: Any, /, *, score_threshold: float, iou_threshold: float, max_detections: int
    ) -> list[Detections]: ...


class DeployableNetwork(Network, Protocol):
    """What a ``Detector`` is made of: a ``DANet`` or an ``OnnxNetwork``."""

    def deploy(self, *, dtype: torch.dtype | Literal["auto"]) -> Network: ...
