"""Memory formats of modules."""

from typing import Any, TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def channels_last(module: Module, **options: Any) -> Module:
    """Converts the weights of ``module`` to channels-last memory, in place; ``options`` are further ones of ``to``."""
    return module.to(memory_format=torch.channels_last, **options)  # type: ignore[call-overload]  # missing in torch's hints
