"""DANet, put together."""

import copy
import functools
from typing import NamedTuple

import torch
from torch import Tensor, nn

from danet.boxes import Detections, select
from danet.config import ModelConfig
from danet.models.acfa import Neck
from danet.models.backbone import Backbone
from danet.models.blocks import MBB
from danet.models.deployed import DeployedDANet
from danet.models.head import AnchorFreeHead, AnchorHead, Head
from danet.utils.errors import UserError

# Channels and blocks of the stages at strides 4, 8, 16, 32. The teachers (section 3.2.1; the paper gives no shapes)
# take a quarter to a third more operations than danet_s, where it matters at their scale: at strides 4 and 8
# for small targets, 8 and 16 for medium ones, 16 and 32 for large ones, whose network also sees the most surroundings.
WIDTHS = {
    "danet": (64, 128, 256, 512),
    "danet_s": (32, 64, 128, 256),
    "danet_nano": (16, 32, 64, 128),
    "teacher_small": (48, 96, 128, 256),
    "teacher_medium": (32, 96, 160, 256),
    "teacher_large": (32, 64, 160, 320),
}
DEPTHS = {
    "danet": (4, 6, 16, 1),
    "danet_s": (4, 6, 16, 1),
    "danet_nano": (1, 2, 2, 1),
    "teacher_small": (6, 8, 8, 1),
    "teacher_medium": (4, 8, 10, 1),
    "teacher_large": (3, 5, 16, 4),
}
NECK_WIDTH = {"danet_nano": 32}  # others 64
MINIMUM_SIZE = 32


class Output(NamedTuple):
    """What the network computes for a batch; every list holds one tensor for each of the strides 4, 8, 16, 32."""

    features: list[Tensor]
    """Stage outputs (after SaFEM) ``[N, widths[l], H_l, W_l]``: where ADCR and distillation attach."""
    logits: list[Tensor]
    """``[N, A * outputs, H_l, W_l]``, see ``danet.models.head``."""
    deltas: list[Tensor]
    """``[N, A * 4, H_l, W_l]``."""


class DANet(nn.Module):
    """The dynamic attentive network of section 3.1: backbone with SaFEM, ACFA neck, detection head.

    ``forward`` takes float images ``[N, input_channels, H, W]`` as ``danet.data.normalize.normalize`` makes
    them, H and W at least 32, odd sizes too, and returns an ``Output``; ``decode`` turns that into boxes.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        widths = self.widths = list(config.widths or WIDTHS[config.name])
        depths = list(config.depths or DEPTHS[config.name])
        neck_width = config.neck_width or NECK_WIDTH.get(config.name, 64)
        self.backbone = Backbone(
            config.input_channels,
            widths,
            depths,
            safem=config.safem,
            groups=config.groups,
            literal_softmax=config.literal_softmax,
        )
        self.neck = Neck(widths, neck_width, acfa=config.acfa, groups=config.groups, literal=config.literal_acfa)
        head = AnchorFreeHead if config.head == "default" else AnchorHead
        self.head: Head = head(neck_width, self.backbone.strides, len(config.classes))

    def forward(self, images: Tensor) -> Output:
        if images.ndim != 4 or images.shape[1] != self.config.input_channels or min(images.shape[2:]) < MINIMUM_SIZE:
            raise ValueError(
                f"DANet: images must be [N, {self.config.input_channels}, H, W] with H, W >= {MINIMUM_SIZE}, "
                f"got {list(images.shape)}"
            )
        features = self.backbone(images)
        logits, deltas = self.head(self.neck(features))
        return Output(features, logits, deltas)

    @torch.no_grad()
    def decode(
        self,
        output: Output,
        *,
        score_threshold: float = 0.05,
        iou_threshold: float = 0.5,
        max_detections: int = 300,
    ) -> list[Detections]:
        """Detections of every image of the batch, boxes in pixels of the network's input."""
        scores = self.head.scores(output.logits)

        @functools.cache
        def predictions() -> tuple[Tensor, Tensor]:  # of which an empty sky needs none
            return self.head.flatten(output.deltas, 4), self.head.references(output.deltas)

        def boxes(i: int, chosen: Tensor) -> Tensor:
            deltas, references = predictions()
            return self.head.place(deltas[i, chosen], references[chosen])

        return [
            select(
                functools.partial(boxes, i),
                scores[i],
                score_threshold=score_threshold,
                iou_threshold=iou_threshold,
                max_detections=max_detections,
            )
            for i in range(len(scores))
        ]

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def fused(self) -> "DANet":
        """A copy for inference, in eval mode, with every MBB as a single convolution; ``self`` stays as it is."""
        model = copy.deepcopy(self).eval()
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, MBB):
                    setattr(parent, name, child.fuse())
        return model.requires_grad_(False)

    def deploy(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> DeployedDANet:
        """The network for inference, as fast as this library can make it; ``self`` stays as it is.

        Args:
            dtype: float32, bfloat16 or float16; by default the weights' own. On CPUs float32 is the fastest.
            device: by default the weights' own.

        Returns:
            A module of the same call, with the same ``decode``: in float32 scores are within 1e-3 and boxes within
            0.05 pixel of those of ``self.eval()``.
        """
        parameter = next(self.parameters())
        # MBBs become convolutions with weights of their own: a copy of theirs would only be thrown away.
        blocks = [module for module in self.modules() if isinstance(module, MBB)]
        shared = {id(tensor): tensor for block in blocks for tensor in (*block.parameters(), *block.buffers())}
        network = copy.deepcopy(self, shared).eval()
        return DeployedDANet(network, dtype=dtype or parameter.dtype, device=torch.device(device or parameter.device))


def build_model(config: ModelConfig) -> DANet:
    """Builds a detector with random weights. Raises UserError for an impossible configuration."""
    if not config.classes or len(set(config.classes)) != len(config.classes):
        raise UserError(f"model.classes must be distinct names, at least one, got {config.classes}")
    if config.input_channels not in (1, 3):
        raise UserError(f"model.input_channels must be 1 or 3, got {config.input_channels}")
    for name, values in (("widths", config.widths), ("depths", config.depths)):
        if values is not None and (len(values) != 4 or min(values) < 1):
            raise UserError(f"model.{name} must be four positive numbers, got {values}")
    for width in [*(config.widths or WIDTHS[config.name]), config.neck_width or NECK_WIDTH.get(config.name, 64)]:
        if config.groups < 1 or width < 1 or width % config.groups:
            raise UserError(f"model.groups must divide every width, got {config.groups} for a width of {width}")
    return DANet(config)
