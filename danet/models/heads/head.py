"""What all detection heads share: the network's ``Output`` and the abstract ``Head``.

The names from the DANet paper in this file: MBB (Multi-Branch Block) and SaFEM (Scale-adaptive Feature Enhancement
Mechanism) are parts of the network. ADCR (Anti-Distractor Contrastive Regularization) and SSKD (Scale-Specific
Knowledge Distiller) are parts of the training that read the backbone's features. docs/glossary.md explains them.
"""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danet.boxes import centred_boxes
from danet.config import Assignment
from danet.models.blocks import MBB, FusedMBB
from danet.models.heads.assignment import Targets
from danet.ops import PreparedRepConv, prepare_rep_conv, rep_conv
from danet.utils import distributed

MAX_LOG_SIZE = 8.0
"""Upper limit of the predicted log w and log h. It keeps the box sizes finite if the training diverges.

Normal predictions are far below it: a box of exp(8) = 2981 times the size of its reference box is larger than any
image.
"""


class Output(NamedTuple):
    """The network's output for a batch; every list holds one tensor for each of the strides 4, 8, 16, 32.

    Example:
        >>> from danet.config import ModelConfig
        >>> from danet.models import build_model
        >>> output = build_model(ModelConfig(name="danet_nano"))(torch.zeros(2, 1, 64, 96))
        >>> [list(feature.shape) for feature in output.features[:2]]
        [[2, 16, 16, 24], [2, 32, 8, 12]]
    """

    features: list[Tensor]
    """Backbone stage outputs (after SaFEM) ``[N, widths[l], H_l, W_l]``, the inputs of ADCR and SSKD."""
    logits: list[Tensor]
    """Class scores before sigmoid or softmax, ``[N, A * score_channels, H_l, W_l]``, with A predictions per position.

    See ``Head``.
    """
    deltas: list[Tensor]
    """Encoded boxes ``[N, A * 4, H_l, W_l]``, see ``Head``."""


class Head(nn.Module, ABC):
    """Abstract detection head: predicts scores and boxes, decodes them, and computes the detection loss.

    At every level l, one tower of layers predicts the scores and another one the boxes. Each tower is an MBB and a 3x3
    convolution. Every level has its own towers, since the batch-norm statistics of the levels differ. Each position of
    a feature map has A predictions. The box of a prediction is encoded relative to a reference box: the cell of the
    position, or one of its anchors.

    A new head implements the abstract methods. It may override ``__init__``, ``forward``, ``fuse`` and
    ``score_parameters`` if it has other layers.

    Shapes: feature maps ``[N, channels, H_l, W_l]`` -> logits ``[N, A * score_channels, H_l, W_l]`` and deltas
    ``[N, A * 4, H_l, W_l]`` for every level. The score channels of a prediction are the background, if the head
    predicts it, and then the classes.

    Args:
        channels: channels of the feature maps.
        strides: pixels per position of every level.
        num_classes: number of classes.
    """

    predictions_per_position: ClassVar[int] = 1
    """A, the number of predictions at each position of a feature map."""
    background_channels: ClassVar[int] = 0
    """1 if the first score channel of a prediction is the background, 0 if there are only the classes."""
    score_prior: ClassVar[float | None] = None
    """Initial score of every class, which sets the bias of the last convolution; None leaves the bias at zero."""

    def __init__(self, channels: int, strides: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.strides = strides
        self.score_channels = self.background_channels + num_classes
        self.classify = nn.ModuleList(
            _tower(channels, self.predictions_per_position * self.score_channels, self.score_prior) for _ in strides
        )
        self.regress = nn.ModuleList(_tower(channels, self.predictions_per_position * 4) for _ in strides)
        self.towers: nn.ModuleList | None = None  # in a fused head, they replace classify and regress

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        if self.towers is not None:
            predictions = [tower(feature) for tower, feature in zip(self.towers, features, strict=True)]
            return [logits for logits, _ in predictions], [deltas for _, deltas in predictions]
        logits = [tower(feature) for tower, feature in zip(self.classify, features, strict=True)]
        deltas = [tower(feature) for tower, feature in zip(self.regress, features, strict=True)]
        return logits, deltas

    def fuse(self) -> "Head":
        """Converts this head to its form for inference, in place, and returns it.

        Both towers of a level have the same input, so their MBBs can become one convolution.
        """
        pairs = zip(self.classify, self.regress, strict=True)
        self.towers = nn.ModuleList(FusedTowers(classify, regress) for classify, regress in pairs)
        del self.classify, self.regress
        return self

    def predict_in_float32(self) -> None:
        """Converts the last convolutions of a fused head to float32; call it after a conversion to a 16-bit dtype.

        Rounding log w and log h to bfloat16 would change the size of a box by about 1 %.
        """
        tower: Any  # a FusedTowers, which the type of a ModuleList does not say
        for tower in self.towers or ():
            tower.classify.float()
            tower.regress.float()
            tower.match_input_dtype()

    def score_parameters(self) -> list[nn.Parameter]:
        """Weights and biases of the convolutions that predict the scores, one pair per level.

        Must not be called on a fused head (after ``deploy``).

        ``danet train --weights`` copies the rows of the classes that the loaded and the new network have in common.
        Dimension 0 of each parameter is ``A * score_channels``: the score channels of the first prediction, then those
        of the second one, and so on.
        """
        towers: Any = self.classify
        return [parameter for tower in towers for parameter in tower[-1].parameters()]

    @abstractmethod
    def reference_sizes(self, level: int) -> list[tuple[float, float]]:
        """Width and height in pixels of the A reference boxes at a position of ``level``."""

    @abstractmethod
    def scores(self, logits: list[Tensor]) -> Tensor:
        """Class scores ``[N, P, classes]`` in [0, 1] of all P predictions of all levels."""

    @abstractmethod
    def decode_boxes(self, deltas: Tensor, reference_boxes: Tensor) -> Tensor:
        """Boxes ``[..., P, 4]`` in pixels from deltas ``[..., P, 4]`` and reference boxes ``[P, 4]``."""

    @abstractmethod
    def loss(self, output: Output, targets: Targets, assignment: Assignment = "centre") -> dict[str, Tensor]:
        """The terms ``cls`` and ``reg`` of the overall loss (eq. 10) for a batch.

        Args:
            output: the output of the network in training mode.
            targets: the batch's ground truth.
            assignment: label assignment, for heads that have a choice.
        """

    def flatten(self, maps: list[Tensor], channels: int) -> Tensor:
        """``[N, A * channels, H_l, W_l]`` of all levels -> float32 ``[N, P, channels]``.

        ``channels`` is the number of channels of one prediction. The predictions are ordered by level, then by position
        (row by row), then by their number at the position. ``reference_boxes`` has the same order.
        """
        return torch.cat([m.permute(0, 2, 3, 1).reshape(m.shape[0], -1, channels) for m in maps], dim=1).float()

    def reference_boxes(self, maps: list[Tensor]) -> Tensor:
        """Reference boxes of all predictions, float32 ``[P, 4]``: centre x, y, width, height in pixels."""
        sizes = tuple(tuple(self.reference_sizes(level)) for level in range(len(self.strides)))
        # torch.export uses symbolic sizes, which cannot be keys of a cache.
        compute = _cached_boxes.__wrapped__ if torch.compiler.is_exporting() else _cached_boxes
        return compute(self.strides, sizes, tuple(tuple(m.shape[2:]) for m in maps), maps[0].device)

    def boxes(self, deltas: list[Tensor]) -> Tensor:
        """Boxes ``[N, P, 4]`` (x0, y0, x1, y1) in pixels of the input."""
        return self.decode_boxes(self.flatten(deltas, 4), self.reference_boxes(deltas))

    def cell_sizes(self, maps: list[Tensor]) -> Tensor:
        """Cell sizes ``[P]`` of all predictions in pixels, which are the strides, ordered as ``reference_boxes``."""
        counts = [m.shape[2] * m.shape[3] * self.predictions_per_position for m in maps]
        levels = zip(maps, counts, self.strides, strict=True)
        return torch.cat([m.new_full((count,), float(stride)) for m, count, stride in levels]).float()


class FusedTowers(nn.Module):
    """Both towers of a head at one level for inference; one convolution, ``blocks``, replaces their two MBBs.

    On CUDA devices, one convolution also predicts both scores and boxes, because a launch takes longer than the
    multiplications with zeros.
    """

    def __init__(self, classify: Any, regress: Any) -> None:
        super().__init__()
        separate = [classify[0].fuse(), regress[0].fuse()]
        self.channels = separate[0].weight.shape[0]
        self.blocks = FusedMBB(torch.cat([b.weight for b in separate]), torch.cat([b.bias for b in separate]))
        self.classify, self.regress = (
            FusedMBB(tower[1].weight.detach(), tower[1].bias.detach(), relu=False) for tower in (classify, regress)
        )
        self._joint: tuple[PreparedRepConv, Tensor] | None = None  # see ``joint_convolution``

    def joint_convolution(self) -> tuple[PreparedRepConv, Tensor]:
        """Weight and bias of ``classify`` and ``regress`` as one convolution; zeros where they have no connection."""
        if self._joint is None:
            weights = self.classify.weight, self.regress.weight
            rows = (
                F.pad(weights[0], (0, 0, 0, 0, 0, self.channels)),
                F.pad(weights[1], (0, 0, 0, 0, self.channels, 0)),
            )
            weight = prepare_rep_conv(torch.cat(rows), input_dtype=self.classify.input_dtype)
            self._joint = weight, torch.cat([self.classify.bias, self.regress.bias])
        return self._joint

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._joint = None

    def match_input_dtype(self) -> None:
        """Prepares the predicting convolutions for the dtype of ``blocks``, which may differ from theirs."""
        self._joint = None
        for module in (self.classify, self.regress):
            dtype = self.blocks.weight.dtype
            module.input_dtype = dtype if dtype != module.weight.dtype else None
            module.prepare()
        if not self.blocks.weight.is_cpu:  # not during the first image, which may be compiled
            self.joint_convolution()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FusedTowers":
        super()._apply(fn, recurse)
        self.match_input_dtype()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.blocks(x)
        if not y.is_cpu:
            scores = self.classify.weight.shape[0]
            predictions = rep_conv(y, *self.joint_convolution(), relu=False)
            return predictions[:, :scores], predictions[:, scores:]
        return self.classify(y[:, : self.channels]), self.regress(y[:, self.channels :])


def decode_deltas(deltas: Tensor, reference_boxes: Tensor) -> Tensor:
    """Boxes ``[..., P, 4]`` in pixels from deltas ``[..., P, 4]`` and reference boxes ``[P, 4]`` (centre and size).

    Deltas are (dx, dy, log w, log h) in units of the reference box's size.
    """
    centre = reference_boxes[:, :2] + deltas[..., :2] * reference_boxes[:, 2:]
    return centred_boxes(centre, reference_boxes[:, 2:] * deltas[..., 2:].clamp(max=MAX_LOG_SIZE).exp())


def loss_normalizer(positives: int, like: Tensor) -> Tensor:
    """Divisor of a loss that is summed over positives: the mean number of positives per process.

    Training with several processes averages their gradients. With this divisor, the average equals the gradient of one
    process that has the whole batch. The total number counts as at least 1, so that the divisor is never zero.

    Args:
        positives: number of positives of this process.
        like: tensor whose dtype and device the divisor gets.
    """
    return distributed.total(like.new_tensor(float(positives))).clamp(min=1.0) / distributed.world_size()


@functools.lru_cache(maxsize=32)
def _cached_boxes(
    strides: tuple[int, ...],
    sizes: tuple[tuple[tuple[float, float], ...], ...],
    shapes: tuple[tuple[int, int], ...],
    device: torch.device,
) -> Tensor:
    """``Head.reference_boxes``; cached, because most consecutive batches have the same image size."""
    levels = []
    with torch.inference_mode(False):  # the cached tensor may be used in training after inference
        for stride, level_sizes, (height, width) in zip(strides, sizes, shapes, strict=True):
            y = (torch.arange(height, device=device) + 0.5) * stride
            x = (torch.arange(width, device=device) + 0.5) * stride
            centres = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).reshape(-1, 1, 2)
            widths_heights = torch.tensor(level_sizes, dtype=torch.float32, device=device)
            levels.append(torch.cat(torch.broadcast_tensors(centres, widths_heights), dim=-1).reshape(-1, 4))
        return torch.cat(levels)


def _tower(channels: int, out_channels: int, prior: float | None = None) -> nn.Sequential:
    """An MBB and a 3x3 convolution; ``prior`` is the initial value of the sigmoid of its results."""
    predict = nn.Conv2d(channels, out_channels, 3, padding=1)
    assert predict.bias is not None
    nn.init.normal_(predict.weight, std=0.01)
    nn.init.constant_(predict.bias, 0.0 if prior is None else math.log(prior / (1.0 - prior)))
    return nn.Sequential(MBB(channels, channels), predict)
