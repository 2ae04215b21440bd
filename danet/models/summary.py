"""What a model costs: parameters and floating-point operations of the deployed network."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from danet.models.danet import DANet


def count_parameters(model: DANet) -> int:
    """Parameters of the deployed network (every MBB as one convolution), batch-norm statistics and second forms of a
    weight left out."""
    fused = model.fused()
    others = {"running_mean", "running_var", "num_batches_tracked", "transformed"}
    buffers = sum(b.numel() for name, b in fused.named_buffers() if name.split(".")[-1] not in others)
    return buffers + sum(p.numel() for p in fused.parameters())


@torch.inference_mode()
def count_flops(model: DANet, size: tuple[int, int] = (256, 320)) -> int:
    """FLOPs of convolutions on one image of ``size`` (height, width), deployed; a multiply-add counts as two.

    The sampling of the deformable convolutions, norms and activations are left out, as is usual.
    """
    fused = model.fused()
    parameter = next(fused.buffers())
    image = torch.zeros(1, model.config.input_channels, *size, device=parameter.device, dtype=parameter.dtype)
    with FlopCounterMode(display=False) as counter:
        fused(image)
    return counter.get_total_flops()


def describe(model: DANet, size: tuple[int, int] = (256, 320)) -> str:
    """One line for the header of a run."""
    return (
        f"{model.config.name}: {count_parameters(model) / 1e6:.2f} M parameters, "
        f"{count_flops(model, size) / 1e9:.2f} GFLOP at {size[0]}x{size[1]} (deployed)"
    )
