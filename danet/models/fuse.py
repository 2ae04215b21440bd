"""Fused forms of the network's parts for inference; the parts compute the same function in eval mode.

MBB: branches and norms become one convolution. SaFEM: one pass, the projection after SDC (w_g in eq. 1 of the paper) is
multiplied into the FFN's first layer. ACFA: its SaFEM adds the deep level as the last step of the pass. Head: both
towers of a level become one. Neck: 1x1 convolutions have prepared weights.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from danet.models.acfa import ACFA, Neck
from danet.models.blocks import FFN, MBB, FusedMBB, fold_norm
from danet.models.heads import Head
from danet.models.safem import SaFEM
from danet.ops import SDC, acfa_weight, prepare_safem, safem


def fuse_modules(parent: nn.Module) -> None:
    """Replaces all modules below ``parent`` that have a fused form, in place.

    Example:
        >>> from danet.models.blocks import FusedMBB
        >>> network = nn.Sequential(MBB(4, 8), SaFEM(8)).eval()
        >>> fuse_modules(network)
        >>> [type(module).__name__ for module in network]
        ['FusedMBB', 'FusedSaFEM']
    """
    for name, child in parent.named_children():
        if isinstance(child, MBB | Head):
            setattr(parent, name, child.fuse())
        elif isinstance(child, SaFEM):
            setattr(parent, name, FusedSaFEM(child))
        elif isinstance(child, ACFA) and not child.literal:
            setattr(parent, name, FusedACFA(child))
        else:
            if isinstance(child, Neck):
                child.laterals = nn.ModuleList(map(fuse_pointwise, child.laterals))
            fuse_modules(child)


def fuse_pointwise(conv: Any) -> FusedMBB:
    """A 1x1 convolution as a module whose weight is prepared."""
    return FusedMBB(conv.weight.detach(), conv.bias.detach(), relu=False)


class PreparedSaFEM(nn.Module):
    """Weights of ``danet.ops.safem`` or ``acfa_weight``; prepared again after ``.to()`` or ``load_state_dict()``."""

    def __init__(self, sdc: SDC, ffn: FFN) -> None:
        super().__init__()
        self.groups = sdc.groups
        depthwise, depthwise_bias = fold_norm(sdc.depthwise.weight, sdc.norm)
        tensors = [depthwise, depthwise_bias, *sdc.predictor.parameters(), *fold_projection(sdc, ffn)]
        for i, tensor in enumerate(tensors):
            self.register_buffer(f"_{i}", tensor.detach().to(sdc.predictor.weight.dtype).contiguous())
        self._prepare()

    def _prepare(self) -> None:
        self.weights = prepare_safem(*self.buffers(), groups=self.groups)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PreparedSaFEM":
        before = list(self.buffers())
        super()._apply(fn, recurse)
        if any(new is not old for new, old in zip(self.buffers(), before, strict=True)):
            self._prepare()
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._prepare()


def fold_projection(sdc: SDC, ffn: FFN) -> list[Tensor]:
    """Weights and biases of ``ffn(sdc.projection(z))`` as two layers, expand and reduce."""
    weight, bias, *reduce = ffn.parameters()
    expand = weight.double()[:, :, 0, 0] @ sdc.projection.weight.double()[:, :, 0, 0]
    return [expand[:, :, None, None].to(weight.dtype), bias, *reduce]


class FusedSaFEM(nn.Module):
    """A SaFEM in one pass (``danet.ops.safem``)."""

    def __init__(self, module: SaFEM) -> None:
        super().__init__()
        self.scale = module.scale
        self.prepared = PreparedSaFEM(module.sdc, module.ffn)

    def forward(self, x: Tensor) -> Tensor:
        return safem(x, self.prepared.weights, scale=self.scale)


class FusedACFA(nn.Module):
    """An ACFA that adds the deep level at the end of its SaFEM's pass; not for the literal form."""

    def __init__(self, module: ACFA) -> None:
        super().__init__()
        self.scale = module.spatial.scale
        self.shallow = PreparedSaFEM(module.spatial.sdc, module.spatial.ffn)
        self.deep = PreparedSaFEM(module.sdc, module.ffn)
        # The 2x2 transposed convolution of stride 2 does not overlap: it is a 1x1 convolution to 4 C channels.
        weight, bias = (parameter.detach() for parameter in module.deconv.parameters())
        self.up = FusedMBB(weight.permute(2, 3, 1, 0).flatten(0, 2)[:, :, None, None], bias.repeat(4), relu=False)

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        weight = acfa_weight(deep, self.deep.weights)
        return safem(shallow, self.shallow.weights, up=self.up(deep), weight=weight, scale=self.scale)
