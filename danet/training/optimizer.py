"""The optimiser, the learning rate of every step, and the averaged weights."""

import itertools
import math

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel

from danet.training.options import TrainOptions

Tensors = tuple[Tensor, ...] | list[Tensor]


def build_optimizer(model: nn.Module, options: TrainOptions, *others: nn.Module) -> Optimizer:
    """SGD or AdamW over two groups: parameters that weight decay shrinks and those that it leaves alone.

    ``others``: modules beside the model that learn as well.
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for parameter in itertools.chain.from_iterable(module.parameters() for module in (model, *others)):
        # Vectors are biases and the scales of norms: shrinking those regularises nothing.
        (free if parameter.ndim < 2 and not options.decay_norms else decayed).append(parameter)
    groups: list[dict] = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if options.optimizer == "adamw":
        return AdamW(groups, lr=options.lr, betas=(options.momentum, 0.999))
    return SGD(groups, lr=options.lr, momentum=options.momentum, nesterov=options.nesterov)


def learning_rate(step: int, total: int, options: TrainOptions) -> float:
    """The learning rate of step ``step`` (from 0) of ``total``: a linear warm-up, then constant or a cosine.

    A function of the step alone, so that there is no scheduler whose state could be lost. The warm-up
    takes at most a tenth of a run.
    """
    warmup = min(options.warmup_steps, total // 10)
    if step < warmup:
        return options.lr * (step + 1) / (warmup + 1)
    if options.schedule == "constant":
        return options.lr
    progress = (step - warmup) / max(1, total - warmup)
    return options.lr * (options.final_lr + (1 - options.final_lr) * (1 + math.cos(math.pi * progress)) / 2)


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of a model's parameters and batch-norm statistics.

    The decay rises as (1 + n) / (10 + n) over the updates n up to ``decay``: a short memory while the
    weights still move fast.
    """

    @torch.no_grad()
    def update(averaged: Tensors, current: Tensors, updates: Tensor | int) -> None:
        n = int(updates)
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))
        else:  # counters
            torch._foreach_copy_(averaged, current)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True).requires_grad_(False)


def freeze_norms(model: nn.Module) -> None:
    """Makes batch norms use their stored statistics; their scales and biases still learn. Undone by ``train()``."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
