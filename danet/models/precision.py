"""Chooses the dtype of a deployed network: the fastest one whose detections agree with those of float32."""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from danet.ops import info
from danet.ops.common import dtype_name

MINIMUM_SCORE = 0.3
"""Predictions that have at least this score in one of the two dtypes are compared."""

MINIMUM_PREDICTIONS = 10
"""Number of predictions that are needed to trust the comparison."""

SCORE_TOLERANCE = 0.03
"""Largest difference of scores for which two dtypes agree."""

BOX_TOLERANCE = 0.5
"""Largest difference of box edges in pixels for which two dtypes agree."""

MINIMUM_SPEEDUP = 1.1
"""A 16-bit dtype is used if the network becomes at least this many times as fast."""

FRAMES = 4
"""Number of generated frames."""

FRAME_SIZE = (256, 320)
"""Height and width of the generated frames, those of the infrared videos that the shipped weights were trained with."""


@dataclass(frozen=True)
class Differences:
    """The largest differences between the predictions of two networks.

    Attributes:
        score: of class scores.
        box: of edges of boxes, in pixels.
        predictions: number of predictions that were compared.
    """

    score: float
    box: float
    predictions: int

    @property
    def is_tolerable(self) -> bool:
        """Whether both networks detect the same, as far as enough predictions show it."""
        agrees = self.score <= SCORE_TOLERANCE and self.box <= BOX_TOLERANCE  # False for NaN
        return agrees and self.predictions >= MINIMUM_PREDICTIONS

    def __str__(self) -> str:
        if self.predictions < MINIMUM_PREDICTIONS:
            return f"only {self.predictions} predictions on generated frames could be compared with float32"
        return (
            f"scores differ from float32 by up to {self.score:.3f} and boxes by up to {self.box:.2f} pixels "
            "on generated frames"
        )


def choose(reference: Any, candidate: Any, images: Tensor) -> tuple[Any, str]:
    """Chooses between a network in float32 and the same network in a 16-bit dtype, and gives the reason.

    Args:
        reference: the network in float32.
        candidate: the network in a 16-bit dtype; it is chosen if it is faster and detects the same.
        images: ``[N, network_channels, H, W]``, see ``generated_frames``.

    Example:
        >>> from danet.config import ModelConfig
        >>> from danet.models import build_model
        >>> model = build_model(ModelConfig(name="danet_nano")).eval()
        >>> choose(model, model, torch.zeros(1, 1, 64, 96))[1]
        'float32 was rejected: only 0 predictions on generated frames could be compared with float32'
    """
    name = dtype_name(candidate.dtype)
    differences = compare(reference, candidate, images)
    if not differences.is_tolerable:
        return reference, f"{name} was rejected: {differences}"
    speedup = measure_speedup(reference, candidate, images)
    if speedup < MINIMUM_SPEEDUP:
        return reference, f"{name} was rejected: {speedup:.2f} times as fast as float32, less than {MINIMUM_SPEEDUP:g}"
    return candidate, f"{speedup:.2f} times as fast as float32; {differences}"


def candidate_dtype(device: torch.device) -> tuple[torch.dtype | None, str]:
    """A 16-bit dtype that may be faster than float32 on a device, and the reason for it.

    Returns None and the reason why no 16-bit dtype is tried if there is none.

    Example:
        >>> candidate_dtype(torch.device("cuda"))[0] is None
        True
    """
    if device.type != "cpu":
        return None, "16-bit types were not measured on this kind of device"
    unit = info()["matrix_unit"]
    if unit == "none":
        return None, "the kernels use no instructions for bfloat16 on this processor"
    if not torch.ops.danet.is_bfloat16_fast():
        return None, f"this processor multiplies float32 faster than bfloat16, although it has {unit}"
    return torch.bfloat16, f"the processor has {unit}"


@torch.no_grad()
def compare(reference: Any, other: Any, images: Tensor) -> Differences:
    """Compares all predictions of two networks whose score is at least ``MINIMUM_SCORE`` in one of them.

    Args:
        reference: a DANet or a DeployedDANet.
        other: another one with the same architecture.
        images: ``[N, network_channels, H, W]``, see ``generated_frames``.

    Example:
        >>> from danet.config import ModelConfig
        >>> from danet.models import build_model
        >>> model = build_model(ModelConfig(name="danet_nano")).eval()
        >>> compare(model, model, torch.randn(1, 1, 64, 96)).score
        0.0
    """
    head = getattr(reference, "network", reference).head
    predictions = []
    for network in (reference, other):
        output = network(images)
        predictions.append((head.scores([logits.float() for logits in output.logits]), head.boxes(output.deltas)))
    (scores, boxes), (other_scores, other_boxes) = predictions
    compared = torch.maximum(scores, other_scores).amax(dim=2) >= MINIMUM_SCORE

    def largest(one: Tensor, two: Tensor) -> float:
        difference = (one - two).abs()[compared]
        return difference.max().item() if difference.numel() else 0.0

    is_finite = bool(scores.isfinite().all() and other_scores.isfinite().all())
    score = largest(scores, other_scores) if is_finite else math.nan
    return Differences(score, largest(boxes, other_boxes), int(compared.sum()))


@torch.no_grad()
def measure_speedup(reference: Any, other: Any, images: Tensor) -> float:
    """How many times as fast ``other`` is as ``reference``: the ratio of the shortest of five calls, after one warm-up.

    The shortest calls are compared because other programs can make any call longer.

    Args:
        reference: a network.
        other: another network.
        images: ``[N, network_channels, H, W]``, of which the first one is used.

    Example:
        >>> network = torch.nn.Conv2d(1, 1, 3)
        >>> measure_speedup(network, network, torch.zeros(1, 1, 8, 8)) > 0
        True
    """
    seconds: dict[str, list[float]] = {"reference": [], "other": []}
    for _ in range(6):
        for times, network in zip(seconds.values(), (reference, other), strict=True):
            started = time.perf_counter()
            network(images[:1])
            times.append(time.perf_counter() - started)
    return min(seconds["reference"][1:]) / min(seconds["other"][1:])


def generated_frames(channels: int) -> Tensor:
    """Normalized frames ``[FRAMES, channels, height, width]`` with clouds, noise and targets of 3 to 16 pixels.

    They are the same in every call. Contrasts are those of normalized infrared frames, see ``danet.data.normalize``.

    Example:
        >>> generated_frames(1).shape
        torch.Size([4, 1, 256, 320])
    """
    generator = torch.Generator().manual_seed(0)
    height, width = FRAME_SIZE
    clouds = 0.3 * torch.nn.functional.interpolate(
        torch.randn(FRAMES, 1, 5, 6, generator=generator), FRAME_SIZE, mode="bicubic", align_corners=False
    )
    frames = clouds + 0.02 * torch.randn(FRAMES, 1, height, width, generator=generator)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    for frame in frames:
        for _ in range(16):
            y, x, size, contrast = torch.rand(4, generator=generator).tolist()
            radius = 1.5 + 6.5 * size
            distance = ((rows - y * height) / radius) ** 2 + ((columns - x * width) / radius) ** 2
            frame += (0.3 + 0.7 * contrast) * torch.exp(-distance)
    return (frames - frames.median()).expand(-1, channels, -1, -1)
