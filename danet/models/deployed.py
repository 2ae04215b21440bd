"""DANet for inference: ``model.deploy()``.

Everything that training needs apart is joined: branches and norms of an MBB into one convolution, SaFEM into one pass
(w_g in the FFN's first layer), ACFA's combination of two levels into the pass of its SaFEM, both towers of the head
into one.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danet.boxes import Detections
from danet.models.acfa import ACFA
from danet.models.blocks import FFN, MBB, FusedMBB, channels_last, fold_norm
from danet.models.graphs import CudaGraphs
from danet.models.head import Head
from danet.models.safem import SaFEM
from danet.ops import SDC, prepare_safem, safem, sdc_mean

if TYPE_CHECKING:
    from danet.models.danet import DANet, Output


class SafemWeights(nn.Module):
    """The weights of ``safem`` (without ``ffn``: of ``sdc_mean``), prepared anew wherever they are moved.

    ``expand`` and ``reduce`` are the FFN's layers, the first one with w_g of the SDC folded in.
    """

    def __init__(self, sdc: SDC, ffn: FFN | None = None) -> None:
        super().__init__()
        self.groups = sdc.groups
        depthwise, depthwise_bias = fold_norm(sdc.depthwise.weight, sdc.norm)
        tensors = [depthwise, depthwise_bias, *sdc.predictor.parameters()]
        if ffn is not None:
            tensors += folded_ffn(sdc, ffn)
        for i, tensor in enumerate(tensors):
            self.register_buffer(f"_{i}", tensor.detach().to(sdc.predictor.weight.dtype).contiguous())
        self._prepare()

    def _prepare(self) -> None:
        self.prepared = prepare_safem(*self.buffers(), groups=self.groups)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SafemWeights":
        before = list(self.buffers())
        super()._apply(fn, recurse)
        if any(new is not old for new, old in zip(self.buffers(), before, strict=True)):
            self._prepare()
        return self


def folded_ffn(sdc: SDC, ffn: FFN) -> list[Tensor]:
    """Weights and biases of ``ffn(sdc.projection(z))`` as two layers, expand and reduce."""
    weight, bias, *reduce = ffn.parameters()
    expand = weight.double()[:, :, 0, 0] @ sdc.projection.weight.double()[:, :, 0, 0]
    return [expand[:, :, None, None].to(weight.dtype), bias, *reduce]


class FusedSaFEM(nn.Module):
    """A SaFEM in one pass."""

    def __init__(self, module: SaFEM) -> None:
        super().__init__()
        self.scale = module.scale
        self.weights = SafemWeights(module.sdc, module.ffn)

    def forward(self, x: Tensor) -> Tensor:
        return safem(x, self.weights.prepared, scale=self.scale)


class FusedACFA(nn.Module):
    """An ACFA whose sum of two levels is the end of its SaFEM's pass (the literal form is left as it is)."""

    expand: Tensor
    expand_bias: Tensor
    reduce: Tensor
    reduce_bias: Tensor
    up: Tensor
    up_bias: Tensor

    def __init__(self, module: ACFA) -> None:
        super().__init__()
        self.scale = module.spatial.scale
        self.shallow = SafemWeights(module.spatial.sdc, module.spatial.ffn)
        self.deep = SafemWeights(module.sdc)
        expand, expand_bias, reduce, reduce_bias = folded_ffn(module.sdc, module.ffn)
        # [C, C, 2, 2] of a transposed convolution that does not overlap: a 1x1 one to 4 C channels, pixel by pixel.
        weight, bias = module.deconv.parameters()
        up = weight.permute(2, 3, 1, 0).flatten(0, 2)[:, :, None, None]
        tensors = {
            "expand": expand[:, :, 0, 0],
            "expand_bias": expand_bias,
            "reduce": reduce[:, :, 0, 0],
            "reduce_bias": reduce_bias,
            "up": up,
            "up_bias": bias.repeat(4),
        }
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.detach().clone())

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        mean = sdc_mean(deep, self.deep.prepared).flatten(1)
        hidden = F.gelu(F.linear(mean, self.expand, self.expand_bias))
        w_d = torch.sigmoid(F.linear(hidden, self.reduce, self.reduce_bias))
        up = F.conv2d(deep, self.up, self.up_bias)
        return safem(shallow, self.shallow.prepared, up=up, weight=w_d, scale=self.scale)


class FusedTower(nn.Module):
    """Both towers of a head at one level: their MBBs see the same features and are one convolution."""

    def __init__(self, classify: Any, regress: Any) -> None:  # Sequentials, which a ModuleList does not say
        super().__init__()
        blocks = [classify[0].fuse(), regress[0].fuse()]
        self.channels = blocks[0].weight.shape[0]
        self.blocks = FusedMBB(torch.cat([b.weight for b in blocks]), torch.cat([b.bias for b in blocks]))
        self.classify, self.regress = (
            FusedMBB(tower[1].weight.detach(), tower[1].bias.detach(), relu=False) for tower in (classify, regress)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.blocks(x).to(self.classify.weight.dtype)
        return self.classify(y[:, : self.channels]), self.regress(y[:, self.channels :])


class DeployedDANet(nn.Module):
    """What ``DANet.deploy`` returns: called as a DANet, forward only.

    Args:
        network: a DANet of its own, in eval mode; it is changed.
        dtype: of the weights and activations; scores and boxes are float32.

    On CUDA devices without gradients it replays a CUDA graph, one a shape of the images: an output is valid until the
    next call.
    """

    def __init__(self, network: "DANet", *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        _replace(network)
        head = FusedHead(network.head)
        network.add_module("head", head)  # in the old one's place
        half = dtype in (torch.float16, torch.bfloat16)
        for module in network.modules():
            if half and isinstance(module, FusedMBB):
                module.weight.copy_(rounded(module.weight, dtype))
        self.network = channels_last(network, device=device, dtype=dtype).requires_grad_(False)
        tower: Any
        for tower in head.towers if half else ():
            # A box's logarithms in 8 bits would cost 1 % of its size.
            tower.classify.float()
            tower.regress.float()
        self.config = network.config
        self.graphs = CudaGraphs(self.network)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "DeployedDANet":
        super()._apply(fn, recurse)
        self.graphs = CudaGraphs(self.network)  # the old ones read the old weights
        return self

    @property
    def _stem(self) -> FusedMBB:
        return cast(FusedMBB, self.network.backbone.stem)  # an MBB before _replace

    @property
    def dtype(self) -> torch.dtype:
        return self._stem.weight.dtype

    @property
    def device(self) -> torch.device:
        return self._stem.weight.device

    def forward(self, images: Tensor) -> "Output":
        """Images ``[N, input_channels, H, W]`` of any float type on any device -> ``Output``, see ``DANet``."""
        images = images.to(device=self.device, dtype=self.dtype, memory_format=torch.channels_last)
        busy = torch.is_grad_enabled() or torch.compiler.is_compiling()
        if images.is_cuda and not busy and not torch.cuda.is_current_stream_capturing():
            return self.graphs(images)
        return self.network(images)

    def decode(self, output: "Output", **options: Any) -> list[Detections]:
        """As ``DANet.decode``."""
        return self.network.decode(output, **options)


class FusedHead(nn.Module):
    """A head with one tower a level; scores and boxes are those of the head it was made of."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        pairs = zip(head.classify, head.regress, strict=True)
        self.towers = nn.ModuleList(FusedTower(classify, regress) for classify, regress in pairs)
        del head.classify, head.regress
        self.scores, self.flatten, self.references, self.place = head.scores, head.flatten, head.references, head.place

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        predictions = [tower(feature) for tower, feature in zip(self.towers, features, strict=True)]
        return [logits for logits, _ in predictions], [deltas for _, deltas in predictions]


def rounded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight ``[C_out, C, 3, 3]`` as numbers of ``dtype``, in its own, whose sums over the taps hardly change.

    What one tap loses is given to the next smaller one. Features are smooth, so the errors of the taps cancel; rounded
    each for itself, bfloat16 weights move boxes and scores of all images alike.
    """
    taps = weight.flatten(2)
    order = taps.abs().argsort(dim=2, descending=True)
    result, carried = torch.empty_like(taps), torch.zeros_like(taps[:, :, :1])
    for tap in order.split(1, dim=2):
        wanted = taps.gather(2, tap) + carried
        number = wanted.to(dtype).to(weight.dtype)
        result.scatter_(2, tap, number)
        carried = wanted - number
    return result.view(weight.shape)


def _replace(parent: nn.Module) -> None:
    """Replaces what is below ``parent`` by its fused form."""
    for name, child in parent.named_children():
        if isinstance(child, MBB):
            setattr(parent, name, child.fuse())
        elif isinstance(child, SaFEM):
            setattr(parent, name, FusedSaFEM(child))
        elif isinstance(child, ACFA) and not child.literal:
            setattr(parent, name, FusedACFA(child))
        elif not isinstance(child, Head):
            _replace(child)
