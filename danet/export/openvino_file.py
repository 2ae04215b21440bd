"""Writes OpenVINO files (.xml, with the weights in a .bin beside it) and runs them.

OpenVINO reads an ONNX file in which ``sdc`` is computed by GridSample, because it cannot read ONNX's DeformConv. With a
conversion extension to OpenVINO's DeformableConvolution the results are the same, but the network takes twice as long,
because each group has only one channel.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from danet.export import onnx_file
from danet.inference import export_description

DESCRIPTION_PATH = ["model_info", export_description.KEY]
"""The argument of ``Model.get_rt_info`` for the description."""


def write(network: nn.Module, images: Tensor, path: Path, description: dict, *, nms: bool = False) -> None:
    """Writes ``path`` and the .bin beside it, with float32 weights; ``nms`` as in ``onnx_file.write``."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        onnx_path = Path(folder) / "network.onnx"
        onnx_file.write(network, images, onnx_path, description, nms=nms)
        # openvino.convert_model would send telemetry.
        model = openvino.Core().read_model(onnx_path)
    model.set_rt_info(json.dumps(description), DESCRIPTION_PATH)
    openvino.save_model(model, path, compress_to_fp16=False)


def open_file(path: Path) -> tuple[Callable[[Tensor], list[Tensor]], dict]:
    """Returns the file as a function from images to its outputs, and its description."""
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(model, "CPU", options)
    description = export_description.parse(model.get_rt_info(DESCRIPTION_PATH).astype(str), path)
    return lambda images: [torch.from_numpy(out) for out in compiled(images.numpy()).values()], description
