"""The whole network: ``DANet`` and ``build_model``.

It consists of the paper's modules MBB (Multi-Branch Block), SaFEM (Scale-adaptive Feature Enhancement Mechanism) and
ACFA (Attention-guided Cross-weighting Feature Aggregator), and of a detection head.
"""

import copy
import functools
import math
from typing import Literal

import torch
from torch import Tensor, nn

from danet.boxes import Detections, select
from danet.config import ModelConfig
from danet.models.acfa import Neck
from danet.models.backbone import Backbone
from danet.models.blocks import MBB
from danet.models.deployed import DeployedDANet
from danet.models.heads import HEADS, Head, Output
from danet.models.precision import candidate_dtype, choose, generated_frames
from danet.utils.errors import UserError

# Channels (widths) and numbers of MBBs (depths) of the four stages, which have strides 4, 8, 16 and 32. The paper does
# not give those of the teachers (section 3.2.1), so they are our decision: each teacher has a quarter to a third more
# operations than danet_s. Most of the additional ones are at the strides that matter for its targets: 4 and 8 for small
# targets, 8 and 16 for medium ones, 16 and 32 for large ones.
WIDTHS_AND_DEPTHS = {
    "danet": ((64, 128, 256, 512), (4, 6, 16, 1)),
    "danet_s": ((32, 64, 128, 256), (4, 6, 16, 1)),
    "danet_nano": ((16, 32, 64, 128), (1, 2, 2, 1)),
    "teacher_small": ((48, 96, 128, 256), (6, 8, 8, 1)),
    "teacher_medium": ((32, 96, 160, 256), (4, 8, 10, 1)),
    "teacher_large": ((32, 64, 160, 320), (3, 5, 16, 4)),
}
NECK_WIDTH = {"danet_nano": 32}
"""Channels of the neck's feature maps; 64 for networks that are not listed."""
MAX_LAGS = 16
MINIMUM_SIZE = 32
"""Minimum height and width of images in pixels."""


class DANet(nn.Module):
    """Dynamic Attentive Network: a backbone of MBBs with SaFEMs, a neck with ACFAs, and a detection head.

    Section 3.1 of the paper, https://doi.org/10.1145/3581783.3612146. ``forward`` takes float images
    ``[N, network_channels, H, W]``, normalized by ``danet.data.normalize.normalize``, and returns an ``Output``;
    ``decode`` turns that into detections. H and W are at least 32 and need not be multiples of a stride.

    Raises:
        ValueError: the images have another number of channels, or fewer than 32 rows or columns.

    Example:
        >>> model = DANet(ModelConfig(name="danet_nano", classes=["drone"])).eval()
        >>> boxes, scores, labels = model.decode(model(torch.zeros(1, 1, 64, 96)))[0]
        >>> boxes.shape[1]
        4
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        default_widths, default_depths = WIDTHS_AND_DEPTHS[config.name]
        widths = self.widths = list(config.widths or default_widths)
        depths = list(config.depths or default_depths)
        neck_width = config.neck_width or NECK_WIDTH.get(config.name, 64)
        # The options literal_* compute an equation exactly as the paper prints it, see danet.config.
        self.backbone = Backbone(
            config.network_channels,
            widths,
            depths,
            safem=config.safem,
            groups=config.groups,
            literal_softmax=config.literal_softmax,
        )
        self.neck = Neck(widths, neck_width, acfa=config.acfa, groups=config.groups, literal=config.literal_acfa)
        self.head: Head = HEADS[config.head](neck_width, self.backbone.strides, len(config.classes))

    def accepts(self, images: Tensor) -> bool:
        """Whether the images have the number of dimensions and channels and the size that ``forward`` needs."""
        has_channels = images.ndim == 4 and images.shape[1] == self.config.network_channels
        return has_channels and min(images.shape[2:]) >= MINIMUM_SIZE

    def forward(self, images: Tensor) -> Output:
        if not self.accepts(images):
            raise ValueError(
                f"DANet: images must be [N, {self.config.network_channels}, H, W] with H, W >= {MINIMUM_SIZE}, "
                f"got {list(images.shape)}"
            )
        features = self.backbone(images)
        logits, deltas = self.head(self.neck(features))
        return Output(features, logits, deltas)

    @torch.no_grad()
    def decode(
        self, output: Output, *, score_threshold: float = 0.05, iou_threshold: float = 0.5, max_detections: int = 300
    ) -> list[Detections]:
        """Detections of every image of the batch.

        Args:
            output: the result of ``forward``.
            score_threshold: detections have higher scores than this.
            iou_threshold: non-maximum suppression drops a box if its IoU with a box of a higher score exceeds this.
            max_detections: maximum number of detections per image.

        Returns:
            For every image its detections, sorted by descending score, with boxes in pixels of the network's input.
        """
        scores = self.head.scores(output.logits)

        @functools.cache
        def deltas_and_reference_boxes() -> tuple[Tensor, Tensor]:  # computed only if an image has candidates
            return self.head.flatten(output.deltas, 4), self.head.reference_boxes(output.deltas)

        def boxes(image: int, indices: Tensor) -> Tensor:
            deltas, reference_boxes = deltas_and_reference_boxes()
            return self.head.decode_boxes(deltas[image, indices], reference_boxes[indices])

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
        """Device of the parameters."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        return next(self.parameters()).dtype

    @property
    def input_dtype(self) -> torch.dtype:
        """Dtype of the images, that of the parameters."""
        return self.dtype

    def fused(self) -> "DANet":
        """A copy for inference, in eval mode, in which every MBB is one convolution; ``self`` does not change."""
        model = copy.deepcopy(self).eval()
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, MBB):
                    setattr(parent, name, child.fuse())
        return model.requires_grad_(False)

    def deploy(
        self, *, dtype: torch.dtype | Literal["auto"] | None = None, device: torch.device | str | None = None
    ) -> DeployedDANet:
        """A copy for inference, fused and optimized for speed; ``self`` does not change.

        Args:
            dtype: float32, bfloat16 or float16; by default that of the weights. "auto" is bfloat16 on Intel
                CPUs with AMX and AMD CPUs with AVX512_BF16 if the network becomes at least 1.1 times as fast and, on
                generated frames, scores differ by at most 0.03 and boxes by at most 0.5 pixels from those in float32;
                otherwise, and on GPUs, it is float32. ``dtype_reason`` of the result tells why.
            device: by default that of the weights.

        Returns:
            A module that is called like this one and has the same method ``decode``. In float32, scores differ by at
            most 1e-3 and boxes by at most 0.05 pixels from those of ``self.eval()``.
        """
        device = torch.device(device or self.device)
        if dtype == "auto":
            return self._deploy_fastest(device)
        # Do not copy the tensors of MBBs: fusing only reads them and makes new ones.
        blocks = [module for module in self.modules() if isinstance(module, MBB)]
        shared = {id(tensor): tensor for block in blocks for tensor in (*block.parameters(), *block.buffers())}
        network = copy.deepcopy(self, shared).eval()
        return DeployedDANet(network, dtype=dtype or self.dtype, device=device)

    def _deploy_fastest(self, device: torch.device) -> DeployedDANet:
        deployed = self.deploy(dtype=torch.float32, device=device)
        dtype, reason = candidate_dtype(device)
        if dtype is not None:
            candidate, frames = self.deploy(dtype=dtype, device=device), generated_frames(self.config.network_channels)
            deployed, why = choose(deployed, candidate, frames)
            reason = f"{reason}; {why}"
        deployed.dtype_reason = reason
        return deployed


def build_model(config: ModelConfig) -> DANet:
    """Builds a network with random initial weights.

    Raises:
        UserError: the class names are missing or repeated, ``input_channels`` is neither 1 nor 3, ``lags`` has a
            value that is repeated or not positive, or more than MAX_LAGS values, ``widths`` or ``depths`` are not four
            positive numbers, or ``groups`` does not divide a width.

    Example:
        >>> build_model(ModelConfig(name="danet_nano", classes=["drone", "bird"])).widths
        [16, 32, 64, 128]
    """
    if not config.classes or len(set(config.classes)) != len(config.classes):
        raise UserError(f"model.classes must be one or more distinct names, got {config.classes}")
    if config.input_channels not in (1, 3):
        raise UserError(f"model.input_channels must be 1 or 3, got {config.input_channels}")
    if len(config.lags) > MAX_LAGS or len(set(config.lags)) != len(config.lags):
        raise UserError(f"model.lags must be at most {MAX_LAGS} distinct numbers of seconds, got {config.lags}")
    if not all(0 < lag < math.inf for lag in config.lags):
        raise UserError(f"model.lags must be positive seconds, got {config.lags}")
    for name, values in (("widths", config.widths), ("depths", config.depths)):
        if values is not None and (len(values) != 4 or min(values) < 1):
            raise UserError(f"model.{name} must be four positive numbers, got {values}")
    widths = config.widths or WIDTHS_AND_DEPTHS[config.name][0]
    for width in [*widths, config.neck_width or NECK_WIDTH.get(config.name, 64)]:
        if config.groups < 1 or width < 1 or width % config.groups:
            raise UserError(f"model.groups must divide every width, got {config.groups} for a width of {width}")
    return DANet(config)
