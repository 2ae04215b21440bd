"""Initialization of a training from the weights of another one."""

import dataclasses
import os
from collections.abc import Callable

import torch
from torch import Tensor

from danet.checkpoint import load_weights
from danet.models import DANet
from danet.models.blocks import MBB
from danet.utils.errors import UserError
from danet.utils.shipped_weights import shipped_names

SHIPPED_NAME = "shipped"
"""The value of ``danet train --weights`` that stands for the weights in the package."""


def start_from(path: str | os.PathLike, model: DANet, calibration_images: Callable[[], Tensor]) -> list[str]:
    """Copies trained weights into ``model``.

    The classes may differ: class scores are copied by class name, and scores of new classes keep their random weights.
    The model may have input channels that the weights lack (``model.lags``, ``model.local_contrast``). Their weights
    are zero at first, so that the network computes the same as before until they are trained.

    Args:
        path: weights of the same architecture, or `SHIPPED_NAME`: those of the package for this architecture.
        model: the network to initialize.
        calibration_images: returns training images ``[N, C, H, W]``. It is called for compact weights only, which lack
            the running statistics of their batch norms; these are then estimated from the images.

    Returns:
        The model's classes that are new.

    Raises:
        UserError: the file cannot be read, or its model differs from ``model`` in another option, or has input channels
            that ``model`` lacks.
    """
    if path == SHIPPED_NAME:
        path = model.config.name
        if path not in shipped_names():
            names = ", ".join(shipped_names())
            raise UserError(f"weights: the package has none for model.name {path}, only {names}")
    loaded, _ = load_weights(path)
    theirs, ours = dataclasses.asdict(loaded.config), dataclasses.asdict(model.config)
    new_inputs = {"lags", "local_contrast"} if set(_inputs(loaded)) <= set(_inputs(model)) else set()
    for key, value in theirs.items():
        if value != ours[key] and key not in {"classes", *new_inputs}:
            raise UserError(f"{path}: weights of another model: model.{key} is {value!r} there and {ours[key]!r} here")
    if loaded.config.classes != model.config.classes:
        _match_classes(loaded, model)
    if _inputs(loaded) != _inputs(model):
        _add_inputs(loaded, model)
    model.load_state_dict(loaded.state_dict())
    blocks = [module for module in model.modules() if isinstance(module, MBB)]
    if any(block.has_default_stats for block in blocks):
        _calibrate_norms(model, blocks, calibration_images())
    return [name for name in model.config.classes if name not in loaded.config.classes]


def _inputs(model: DANet) -> list[str]:
    """A name for each input channel of the network, in their order."""
    config = model.config
    image = [f"image {index}" for index in range(config.input_channels)]
    lags = [f"lag {float(lag)}" for lag in config.lags]
    return [*image, *["local contrast"] * config.local_contrast, *lags, *["common difference"] * (len(lags) > 1)]


def _add_inputs(loaded: DANet, model: DANet) -> None:
    """Gives the first block of ``loaded`` the input channels of ``model``, new ones with weights of zero."""
    kept = [_inputs(model).index(name) for name in _inputs(loaded)]
    for conv in (loaded.backbone.stem.conv3x3, loaded.backbone.stem.conv1x1):
        weight = conv.weight.detach()
        conv.weight.data = weight.new_zeros(len(weight), len(_inputs(model)), *weight.shape[2:])
        conv.weight.data[:, kept] = weight


def _match_classes(loaded: DANet, model: DANet) -> None:
    """Changes the class scores of ``loaded`` to the classes of ``model``, new ones as they are in ``model``."""
    outputs_before: list[str | None] = [None] * model.head.background_channels
    theirs, ours = ([*outputs_before, *network.config.classes] for network in (loaded, model))
    known = [index for index, name in enumerate(ours) if name in theirs]
    parameters = zip(loaded.head.score_parameters(), model.head.score_parameters(), strict=True)
    for their_parameter, our_parameter in parameters:
        rows = our_parameter.detach().clone().unflatten(0, (-1, len(ours)))
        rows[:, known] = their_parameter.detach().unflatten(0, (-1, len(theirs)))[
            :, [theirs.index(ours[index]) for index in known]
        ]
        their_parameter.data = rows.flatten(0, 1)


@torch.no_grad()
def _calibrate_norms(model: DANet, blocks: list[MBB], images: Tensor) -> None:
    """Estimates the running statistics of the blocks' norms from ``images``."""
    hooks = [block.register_forward_pre_hook(lambda block, inputs: block.calibrate_norm(*inputs)) for block in blocks]
    training = model.training
    try:
        model.eval()(images)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
