"""The formats that ``danet export`` writes, each with what it needs and how its files are run."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from danet.export import onnx_file, openvino_file, torch_file
from danet.export.deformable_sampling import deform_conv, sample_corners, sample_grid
from danet.export.network import Sample
from danet.models.danet import MINIMUM_SIZE
from danet.utils.errors import UserError


@dataclass(frozen=True)
class Format:
    """One of them."""

    suffix: str
    """What its files' names end in."""
    runtime: str
    """What runs them."""
    write: Callable[..., None]
    """``(network, images, path, description)``, and ``nms=True`` where ``nms`` allows it."""
    open: Callable[[Path], tuple[Callable[[Tensor], list[Tensor]], dict]]
    """A file's function of images, and its description."""
    sample: Sample
    """How ``sdc`` is computed in it."""
    packages: tuple[str, ...] = ()
    """What is imported to write and run it, besides torch."""
    extra: str = ""
    """The extra of danet that brings these."""
    nms: bool = False
    """Whether suppression can be part of the file."""
    beside: str | None = None
    """Suffix of a second file."""
    minimum_size: int = MINIMUM_SIZE
    """Least height and width of images, in pixels."""


# torch.export takes a size of 1, which stride 32 makes of 32 pixels, for one that never changes.
MORE_THAN_ONE = MINIMUM_SIZE + 1
ONNX = ("onnx", "onnxscript", "onnxruntime")

FORMATS = {
    "onnx": Format(
        ".onnx", "ONNX Runtime", onnx_file.write, onnx_file.open_file, deform_conv, ONNX, extra="onnx", nms=True
    ),
    "torch-export": Format(
        ".pt2",
        "torch.export",
        torch_file.write_program,
        torch_file.open_program,
        sample_grid,
        minimum_size=MORE_THAN_ONE,
    ),
    "aoti": Format(
        ".aoti.pt2",
        "AOTInductor",
        torch_file.write_compiled,
        torch_file.open_compiled,
        sample_corners,
        minimum_size=MORE_THAN_ONE,
    ),
    "openvino": Format(
        ".xml",
        "OpenVINO",
        openvino_file.write,
        openvino_file.open_file,
        sample_grid,
        (*ONNX[:2], "openvino"),
        extra="openvino",
        nms=True,
        beside=".bin",
    ),
}


def check_packages(name: str) -> None:
    """Raises UserError naming the packages of a format that are not installed."""
    chosen = FORMATS[name]
    missing = [package for package in chosen.packages if importlib.util.find_spec(package) is None]
    if missing:
        needed = f"{' and '.join(missing)}, not installed here"
        raise UserError(f"--format {name}: needs {needed}; pip install {' '.join(missing)}")
