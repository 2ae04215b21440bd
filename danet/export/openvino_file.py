"""OpenVINO's files (.xml with the weights in a .bin beside it).

They are read from ONNX whose ``sdc`` is GridSample. OpenVINO has no rule for ONNX's DeformConv; given one by a
conversion extension its DeformableConvolution gives the same numbers, but takes twice as long with one channel a group.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from danet.export import description as descriptions
from danet.export import onnx_file

INFO = ["model_info", descriptions.KEY]
"""Where ``Model.get_rt_info`` finds the description."""


def write(network: nn.Module, images: Tensor, path: Path, description: dict, *, nms: bool = False) -> None:
    """Writes ``path`` and its .bin, weights in float32; ``nms`` as in ``onnx_file.write``."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        between = Path(folder) / "network.onnx"
        onnx_file.write(network, images, between, description, nms=nms)
        # Not openvino.convert_model, which reports its use to OpenVINO's makers.
        model = openvino.Core().read_model(between)
    model.set_rt_info(json.dumps(description), INFO)
    openvino.save_model(model, path, compress_to_fp16=False)


def open_file(path: Path) -> tuple[Callable[[Tensor], list[Tensor]], dict]:
    """The file as a function of images that gives all its outputs, and its description."""
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(model, "CPU", options)
    description = descriptions.read(model.get_rt_info(INFO).astype(str), path)
    return lambda images: [torch.from_numpy(out) for out in compiled(images.numpy()).values()], description
