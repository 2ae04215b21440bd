"""Writes PyTorch's own files (.pt2) and runs them: a graph for torch.export.load, or compiled code (AOTInductor)."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from danet.export.network import trace
from danet.inference import export_description
from danet.utils.errors import UserError

EXTRA_FILE = f"{export_description.KEY}.json"
"""The extra file of ``torch.export.load(path, extra_files={"danet.json": ""})`` that holds the description."""


def write_program(network: nn.Module, images: Tensor, path: Path, description: dict) -> None:
    """Writes the graph of the network with its description."""
    torch.export.save(trace(network, images), path, extra_files={EXTRA_FILE: json.dumps(description)})


def open_program(path: Path) -> tuple[Callable[[Tensor], list[Tensor]], dict]:
    """Returns the file as a function from images to its outputs, and its description."""
    extra = {EXTRA_FILE: ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about its own code
        module = torch.export.load(path, extra_files=extra).module()
    return lambda images: list(module(images)), export_description.parse(extra[EXTRA_FILE], path)


def write_compiled(network: nn.Module, images: Tensor, path: Path, description: dict) -> None:
    """Writes code compiled for the CPU of this machine. Raises UserError if there is no C++ compiler."""
    options = {"aot_inductor.metadata": {export_description.KEY: json.dumps(description)}}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch._inductor.aoti_compile_and_package(
                trace(network, images), package_path=str(path), inductor_configs=options
            )
    except torch._inductor.exc.InvalidCxxCompiler:
        raise UserError("--format aoti: needs a C++ compiler, found none; set the variable CXX to one") from None


def open_compiled(path: Path) -> tuple[Callable[[Tensor], list[Tensor]], dict]:
    """Returns the file as a function from images to its outputs, and its description."""
    module = torch._inductor.aoti_load_package(str(path))
    return lambda images: list(module(images)), export_description.parse(
        module.get_metadata().get(export_description.KEY), path
    )
