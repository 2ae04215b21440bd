"""The file formats of ``danet export``: how each is written and run, and the packages it needs."""

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
    """A file format."""

    suffix: str
    """End of the file names."""
    runtime: str
    """Name of the runtime that runs the files."""
    write: Callable[..., None]
    """Writes a file from ``(network, images, path, description)``, with ``nms=True`` if ``nms`` supports it."""
    open: Callable[[Path], tuple[Callable[[Tensor], list[Tensor]], dict]]
    """Opens a file as a function from images to its outputs, and its description."""
    sample: Sample
    """Computes ``sdc`` in the exported network."""
    packages: tuple[str, ...] = ()
    """Packages that writing and running need besides torch."""
    nms: bool = False
    """Whether non-maximum suppression can be part of the file."""
    second_suffix: str | None = None
    """Suffix of a second file beside the first."""
    minimum_size: int = MINIMUM_SIZE
    """Minimum height and width of images in pixels."""


# At stride 32, images of 32 pixels have feature maps of size 1, which torch.export treats as a constant.
TRACED_MINIMUM = MINIMUM_SIZE + 1
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

FORMATS = {
    "onnx": Format(".onnx", "ONNX Runtime", onnx_file.write, onnx_file.open_file, deform_conv, ONNX_PACKAGES, nms=True),
    "torch-export": Format(
        ".pt2",
        "torch.export",
        torch_file.write_program,
        torch_file.open_program,
        sample_grid,
        minimum_size=TRACED_MINIMUM,
    ),
    "aoti": Format(
        ".aoti.pt2",
        "AOTInductor",
        torch_file.write_compiled,
        torch_file.open_compiled,
        sample_corners,
        minimum_size=TRACED_MINIMUM,
    ),
    "openvino": Format(
        ".xml",
        "OpenVINO",
        openvino_file.write,
        openvino_file.open_file,
        sample_grid,
        packages=(*ONNX_PACKAGES[:2], "openvino"),
        nms=True,
        second_suffix=".bin",
    ),
}


def check_packages(name: str) -> None:
    """Raises UserError if packages that a format needs are not installed."""
    missing = [package for package in FORMATS[name].packages if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(
            f"--format {name}: needs {' and '.join(missing)}, not installed here; pip install {' '.join(missing)}"
        )
