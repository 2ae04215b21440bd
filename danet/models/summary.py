"""Model size: parameters and floating-point operations (FLOPs) of the deployed network."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from danet.models.danet import DANet


def count_parameters(model: DANet) -> int:
    """Number of parameters of the deployed network, where every MBB is one convolution.

    Batch-norm statistics and weights in a transformed layout are not counted.

    Example:
        >>> from danet.config import ModelConfig
        >>> from danet.models import build_model
        >>> 50_000 < count_parameters(build_model(ModelConfig(name="danet_nano"))) < 500_000
        True
    """
    fused = model.fused()
    others = {"running_mean", "running_var", "num_batches_tracked", "transformed"}
    buffers = sum(b.numel() for name, b in fused.named_buffers() if name.split(".")[-1] not in others)
    return buffers + sum(p.numel() for p in fused.parameters())


@torch.inference_mode()
def count_flops(model: DANet, size: tuple[int, int] = (256, 320)) -> int:
    """FLOPs of the deployed network for one image of ``size`` (height, width); a multiply-add counts as two.

    Only convolutions and matrix products count. The sampling of deformable convolutions, norms and activations are left
    out, as usual.

    Example:
        >>> from danet.config import ModelConfig
        >>> from danet.models import build_model
        >>> count_flops(build_model(ModelConfig(name="danet_nano")), (64, 64)) > 1e6
        True
    """
    fused = model.fused()
    parameter = next(fused.buffers())
    image = torch.zeros(1, model.config.network_channels, *size, device=parameter.device, dtype=parameter.dtype)
    with FlopCounterMode(display=False) as counter:
        fused(image)
    return counter.get_total_flops()


def describe(model: DANet, size: tuple[int, int] = (256, 320)) -> str:
    """Name, parameters and FLOPs of a model in one line."""
    return (
        f"{model.config.name}: {count_parameters(model) / 1e6:.2f} M parameters, "
        f"{count_flops(model, size) / 1e9:.2f} GFLOP at {size[0]}x{size[1]} (deployed)"
    )
