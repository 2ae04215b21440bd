"""Configuration of the network. The options of a command are next to the command or its library."""

from dataclasses import dataclass, field
from typing import Literal

Assignment = Literal["centre", "atss"]
"""Label assignments of the default head, see ``danet.models.heads.assignment``."""

EXTRA_CHANNELS = "extra_channels"
"""Name under which files state EXTRA_CHANNELS_VERSION."""
EXTRA_CHANNELS_VERSION = 2
"""Number of the definition of the channels that ``lags`` and ``local_contrast`` add (``danet.data.temporal``). Weights
that were trained with another definition would detect wrongly. Increase it with every change of these channels."""


@dataclass
class ModelConfig:
    """What ``danet.models.build_model`` builds; every weights file contains it.

    Example:
        >>> ModelConfig(name="danet_nano", classes=["drone", "bird"]).head
        'default'
    """

    name: Literal["danet", "danet_s", "danet_nano", "teacher_small", "teacher_medium", "teacher_large"] = "danet_s"
    """Architecture: danet (widths 64 to 512), danet_s (32 to 256), danet_nano (16 to 128, and fewer blocks).
    teacher_small, teacher_medium and teacher_large have a quarter to a third more operations than danet_s, at the
    strides that matter for targets of their scale."""

    classes: list[str] = field(default_factory=lambda: ["drone"])
    """Names of the classes to detect. Boxes with any other name are distractors, which are trained as background."""

    input_channels: int = 1
    """Channels of the input image: 1 (infrared) or 3."""

    lags: list[float] = field(default_factory=list)
    """Seconds: for each of them, the difference to the frame that much earlier is a further input channel, such as
    '[0.1, 0.5, 1.0]'. With several lags, one more channel shows what all differences share. The dataset must contain
    these frames (`danet data import ... --lags`)."""

    local_contrast: bool = False
    """Add the small details of the image, divided by their local deviation, as a further input channel."""

    head: Literal["default", "paper"] = "default"
    """default: anchor-free, focal and GIoU loss. paper: anchors, cross-entropy and smooth-L1 loss (section 3.3)."""

    safem: bool = True
    """Put a SaFEM (section 3.1.1) at the end of every backbone stage."""

    acfa: bool = True
    """Fuse levels by ACFA (section 3.1.2); otherwise by upsampling and addition, as in FPN."""

    groups: int = 4
    """Groups G of the separable deformable convolution (eq. 1)."""

    literal_softmax: bool = False
    """SaFEM without the factor C, as eq. 2 is printed: its weights sum to one over the channels."""

    literal_acfa: bool = False
    """Use the gated features of a SaFEM as w_s in eq. 5, as eq. 3 is printed, instead of its gate."""

    neck_width: int | None = None
    """Channels of the fused maps. Default: 64, and 32 for danet_nano."""

    widths: list[int] | None = None
    """Channels of the four stages. Default: those of `name`."""

    depths: list[int] | None = None
    """Blocks of the four stages. Default: those of `name`."""

    @property
    def has_extra_channels(self) -> bool:
        """Whether the network has input channels beside those of the image."""
        return bool(self.lags) or self.local_contrast

    @property
    def network_channels(self) -> int:
        """Channels of the network's input: the image, the local contrast, one for each lag, what several lags share."""
        return self.input_channels + self.local_contrast + len(self.lags) + (len(self.lags) > 1)
