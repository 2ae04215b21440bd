"""Starting a training from the weights of another one."""

import dataclasses
import os
from collections.abc import Callable

import torch
from torch import Tensor

from danet.checkpoint import SHIPPED, load_weights
from danet.models import DANet
from danet.models.blocks import MBB
from danet.models.head import AnchorHead
from danet.utils.errors import UserError

SHIPPED_NAME = "shipped"
"""The word for the package's own weights."""


def start_from(path: str | os.PathLike, model: DANet, images: Callable[[], Tensor]) -> list[str]:
    """Copies trained weights into ``model``.

    The classes may differ: scores of classes that both have are copied by name, the others start anew.

    Args:
        path: weights of the same architecture, or `SHIPPED_NAME`.
        images: gives a batch to train on, ``[N, C, H, W]``, if it is needed: compact weights have lost the statistics
            of their batch norms, without which the first step of a training would change what they compute.

    Returns:
        The model's classes that are new.

    Raises:
        UserError: naming the file and the first option of the model that differs.
    """
    loaded, _ = load_weights(SHIPPED if path == SHIPPED_NAME else path)
    theirs, ours = dataclasses.asdict(loaded.config), dataclasses.asdict(model.config)
    for key, value in theirs.items():
        if value != ours[key] and key != "classes":
            raise UserError(f"{path}: weights of another model: model.{key} is {value!r} there and {ours[key]!r} here")
    state = loaded.state_dict()
    for name, tensor in model.state_dict().items():
        if state[name].shape != tensor.shape or (loaded.config.classes != model.config.classes and _is_score(name)):
            state[name] = _by_class(state[name], tensor, loaded, model)
    model.load_state_dict(state)
    if any(block.has_default_stats for block in _blocks(model)):
        _measure(model, images())
    return [name for name in model.config.classes if name not in loaded.config.classes]


def _is_score(name: str) -> bool:
    """Whether a parameter is of a last convolution of the head's classification."""
    return name.startswith("head.classify.") and name.split(".")[3] == "1"


def _by_class(theirs: Tensor, ours: Tensor, loaded: DANet, model: DANet) -> Tensor:
    """``ours`` with the rows of the outputs that both heads have."""
    first = ["background"] if isinstance(model.head, AnchorHead) else []
    here, there = ([*first, *network.config.classes] for network in (model, loaded))
    rows = ours.clone().unflatten(0, (-1, len(here)))
    known = [index for index, name in enumerate(here) if name in there]
    rows[:, known] = theirs.unflatten(0, (-1, len(there)))[:, [there.index(here[index]) for index in known]]
    return rows.flatten(0, 1)


def _blocks(model: DANet) -> list[MBB]:
    return [module for module in model.modules() if isinstance(module, MBB)]


@torch.no_grad()
def _measure(model: DANet, images: Tensor) -> None:
    """Gives the blocks' norms the statistics of what they see on ``images``."""
    hooks = [
        block.register_forward_pre_hook(lambda block, inputs: block.calibrate_norm(*inputs)) for block in _blocks(model)
    ]
    training = model.training
    try:
        model.eval()(images)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
