"""The model's configuration. Each command keeps its own options beside its code."""

from dataclasses import dataclass, field
from typing import Literal

Assignment = Literal["centre", "atss"]
"""Which cells learn a box, see ``danet.losses.assignment``."""


@dataclass
class ModelConfig:
    """What ``danet.models.build_model`` needs to build a detector; saved inside every weights file."""

    name: Literal["danet", "danet_s", "danet_nano", "teacher_small", "teacher_medium", "teacher_large"] = "danet_s"
    """Size: danet (widths 64-512), danet_s (32-256), danet_nano (16-128, fewer blocks; for tests); teacher_small,
    teacher_medium and teacher_large are a quarter to a third more than danet_s, where targets of their scale show."""

    classes: list[str] = field(default_factory=lambda: ["drone"])
    """Names of the classes to detect; boxes of any other name are distractors (background)."""

    input_channels: int = 1
    """Channels of the input image: 1 (infrared) or 3."""

    head: Literal["default", "paper"] = "default"
    """default: anchor-free, focal loss, GIoU. paper: anchors, cross-entropy, smooth-L1 (section 3.3)."""

    safem: bool = True
    """Put SaFEM (section 3.1.1) after every backbone stage."""

    acfa: bool = True
    """Fuse levels by ACFA (section 3.1.2); otherwise by 2x upsampling and addition."""

    groups: int = 4
    """Groups G of the separable deformable convolution (eq. 1)."""

    literal_softmax: bool = False
    """SaFEM without the factor C: gates sum to one over the channels, as eq. 2 is printed."""

    literal_acfa: bool = False
    """w_s of eq. 5 is SaFEM's gated features, as eq. 3 is printed, instead of its gate."""

    neck_width: int | None = None
    """Channels of the fused maps; by default 64, and 32 for danet_nano."""

    widths: list[int] | None = None
    """Channels of the four stages; by default those of `name`."""

    depths: list[int] | None = None
    """Blocks of the four stages; by default those of `name`."""
