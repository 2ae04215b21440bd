"""PyTorch's own files (.pt2): a graph that torch.export.load reads, or compiled code (AOTInductor)."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from danet.export import description as descriptions
from danet.export.network import trace
from danet.utils.errors import UserError

EXTRA_FILE = f"{descriptions.KEY}.json"
"""Where ``torch.export.load(path, extra_files={"danet.json": ""})`` finds the description."""


def write_program(network: nn.Module, images: Tensor, path: Path, description: dict) -> None:
    """Writes the graph."""
    torch.export.save(trace(network, images), path, extra_files={EXTRA_FILE: json.dumps(description)})


def open_program(path: Path) -> tuple[Callable[[Tensor], list[Tensor]], dict]:
    """The file as a function of images that gives its outputs, and its description."""
    extra = {EXTRA_FILE: ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of its own code
        module = torch.export.load(path, extra_files=extra).module()
    return lambda images: list(module(images)), descriptions.read(extra[EXTRA_FILE], path)


def write_compiled(network: nn.Module, images: Tensor, path: Path, description: dict) -> None:
    """Writes code for this machine's kind of processor. Raises UserError where there is no C++ compiler."""
    options = {"aot_inductor.metadata": {descriptions.KEY: json.dumps(description)}}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch._inductor.aoti_compile_and_package(
                trace(network, images), package_path=str(path), inductor_configs=options
            )
    except torch._inductor.exc.InvalidCxxCompiler:
        raise UserError("--format aoti: needs a C++ compiler; CXX names one") from None


def open_compiled(path: Path) -> tuple[Callable[[Tensor], list[Tensor]], dict]:
    """The file as a function of images that gives its outputs, and its description."""
    module = torch._inductor.aoti_load_package(str(path))
    return lambda images: list(module(images)), descriptions.read(module.get_metadata().get(descriptions.KEY), path)
