"""Optimizer, learning rate schedule, and moving average of the weights."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel

from danet.training.options import TrainOptions
from danet.utils.errors import UserError

Tensors = tuple[Tensor, ...] | list[Tensor]


def build_optimizer(model: nn.Module, options: TrainOptions, *others: nn.Module) -> Optimizer:
    """SGD or AdamW with two parameter groups, with and without weight decay; frozen parameters are left out.

    Args:
        model: the network to train.
        options: options of the run.
        others: further modules whose parameters are trained.

    Example:
        >>> optimizer = build_optimizer(nn.Linear(2, 1), TrainOptions(weight_decay=0.05))
        >>> [group["weight_decay"] for group in optimizer.param_groups]
        [0.05, 0.0]
    """
    decayed: list[nn.Parameter] = []
    not_decayed: list[nn.Parameter] = []
    for parameter in itertools.chain.from_iterable(module.parameters() for module in (model, *others)):
        if not parameter.requires_grad:
            continue
        # Biases and scales of normalization layers are vectors; weight decay on them does not regularize.
        (not_decayed if parameter.ndim < 2 and not options.decay_norms else decayed).append(parameter)
    groups: list[dict] = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": not_decayed, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if options.optimizer == "adamw":
        return AdamW(groups, lr=options.lr, betas=(options.momentum, 0.999))
    return SGD(groups, lr=options.lr, momentum=options.momentum, nesterov=options.nesterov)


def learning_rate(step: int, total: int, options: TrainOptions) -> float:
    """The learning rate of a step: linear warm-up, then constant or cosine decay.

    It depends on the step only, so there is no scheduler state to save. The warm-up takes ``options.warmup_steps``, but
    at most a tenth of the run.

    Args:
        step: the step, from 0.
        total: number of steps of the run.
        options: options of the run.

    Example:
        >>> options = TrainOptions(lr=1.0, warmup_steps=1, final_lr=0.0)
        >>> [round(learning_rate(step, 11, options), 3) for step in (0, 1, 6)]
        [0.5, 1.0, 0.5]
    """
    warmup = min(options.warmup_steps, total // 10)
    if step < warmup:
        return options.lr * (step + 1) / (warmup + 1)
    if options.schedule == "constant":
        return options.lr
    progress = (step - warmup) / max(1, total - warmup)
    return options.lr * (options.final_lr + (1 - options.final_lr) * (1 + math.cos(math.pi * progress)) / 2)


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average (EMA) of a model's parameters and batch-norm statistics.

    The decay after n updates is ``min(decay, (1 + n) / (10 + n))``: the average follows the weights closely at the
    start, while they change fast.

    Args:
        model: the network to average.
        decay: decay of the average, from 0 to below 1.

    Example:
        >>> average = average_weights(nn.Linear(2, 1), 0.998)
        >>> average.update_parameters(nn.Linear(2, 1))
    """

    @torch.no_grad()
    def update(averaged: Tensors, current: Tensors, updates: Tensor | int) -> None:
        n = int(updates)
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))
        else:  # integer counters
            torch._foreach_copy_(averaged, current)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True).requires_grad_(False)


def freeze_parts(model: nn.Module, names: Sequence[str]) -> None:
    """Stops the training of parts of a network: their parameters and batch-norm statistics stay as they are.

    Args:
        model: the network in training mode; ``train()`` undoes the part that concerns batch norms.
        names: names of modules, such as "backbone" or "backbone.stages.0".

    Raises:
        UserError: the network has no module of this name, or no parameter is left to train.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> freeze_parts(model, ["0"])
        >>> [parameter.requires_grad for parameter in model.parameters()]
        [False, False, True, True]
    """
    modules = dict(model.named_modules())
    for name in names:
        if not name or name not in modules:
            known = ", ".join(each for each in modules if each and each.count(".") < 2)
            raise UserError(f"freeze: the network has no part {name!r}; it has {known}, and the parts of these")
        modules[name].requires_grad_(False)
        freeze_norms(modules[name])
    if names and not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"freeze: no part of the network is left to train, got {', '.join(names)}")


def freeze_norms(model: nn.Module) -> None:
    """Makes batch norms use their running statistics; scales and biases are still trained. ``train()`` undoes it."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
