"""Writes networks as ONNX files and runs these files in ONNX Runtime."""

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from danet.export.network import trace
from danet.inference import export_description
from danet.inference.onnx_network import OnnxNetwork
from danet.ops import onnx_form

if TYPE_CHECKING:
    import onnx

OPSET = 22
"""The first ONNX opset whose DeformConv accepts all dtypes of ``sdc``, bfloat16 included.

ONNX Runtime runs it from version 1.25 on.
"""

MIN_OPSET = 18
"""The lowest opset that torch.onnx writes without a conversion."""


def export_onnx(
    network: nn.Module, images: Tensor, path: str | os.PathLike, *, names: Sequence[str], opset: int = OPSET
) -> None:
    """Writes a network as an ONNX file for any batch and image size.

    ``sdc``, ``dcnv3``, ``dcnv4``, ``deform_conv2d`` and their modules become DeformConv nodes with opset 22 or later
    (ONNX Runtime 1.25 or newer), and GridSample nodes with lower opsets, for older runtimes. ``ms_deform_attn`` becomes
    GridSample nodes; its levels must not be empty. The other operators become the nodes of their references.

    Args:
        network: a module of torch's own operators and of the operators of ``danet.ops``.
        images: an example input ``[N, C, H, W]``, see ``EXAMPLE_SHAPE``.
        path: the file to write.
        names: names of the outputs of ``network(images)``.
        opset: version of ONNX's operators, at least 18.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        ValueError: ``opset`` is below 18.

    Example:
        >>> import tempfile
        >>> from danet.inference.onnx_network import open_session
        >>> network, images = nn.Conv2d(1, 2, 3).eval(), torch.zeros(2, 1, 32, 48)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_onnx(network, images, f"{folder}/a.onnx", names=["features"])
        ...     open_session(f"{folder}/a.onnx").get_outputs()[0].name
        'features'
    """
    import onnx

    if opset < MIN_OPSET:
        raise ValueError(f"export_onnx: opset must be >= {MIN_OPSET}, got {opset}")
    with onnx_form.standard_operators(deform_conv=opset >= OPSET):
        model = to_onnx(network, images, names, opset)
    onnx.save(model, os.fspath(path))


def write(network: nn.Module, images: Tensor, path: Path, description: dict, *, nms: bool = False) -> None:
    """Writes a ``BoxesAndScores`` with its description; ``nms`` adds the output "selected", see ``add_nms``."""
    import onnx

    model = to_onnx(network, images, ["boxes", "scores"])
    if nms:
        add_nms(model, description["thresholds"])
    onnx.helper.set_model_props(model, {export_description.KEY: json.dumps(description)})
    model.producer_name, model.producer_version = "danet", description["danet"]
    onnx.save(model, path)


def to_onnx(network: nn.Module, images: Tensor, names: Sequence[str], opset: int = OPSET) -> "onnx.ModelProto":
    """Converts a network to an ONNX model for any batch and image size, see ``export_onnx``."""
    with _without_warnings():
        program = torch.onnx.export(
            trace(network, images),
            input_names=["images"],
            output_names=list(names),
            opset_version=opset,
            dynamo=True,
            optimize=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None  # it is returned because no path is given
    model = program.model_proto
    for value in (*model.graph.input, *model.graph.output):
        _name_dimensions(value)
    del model.graph.value_info[:]  # shapes of intermediate values in unreadable symbols
    return model


def add_nms(model: "onnx.ModelProto", thresholds: dict) -> None:
    """Adds the output "selected", int64 ``[M, 3]``: (image, 0, position) of the boxes that NonMaxSuppression keeps.

    As in ``danet.boxes.select``, the score of a position is that of its best class, and suppression runs over all
    classes at once. The boxes of an image are sorted by decreasing score.
    """
    from onnx import TensorProto, helper, numpy_helper

    def constant(name: str, value: float | list[int], dtype: torch.dtype) -> str:
        model.graph.initializer.append(numpy_helper.from_array(torch.tensor(value, dtype=dtype).numpy(), name))
        return name

    class_axis = constant("nms_classes_axis", [2], torch.int64)
    limits = [
        constant("nms_max_detections", [thresholds["max_detections"]], torch.int64),
        constant("nms_iou_threshold", [thresholds["iou_threshold"]], torch.float32),
        constant("nms_score_threshold", [thresholds["score_threshold"]], torch.float32),
    ]
    model.graph.node.extend(
        [
            helper.make_node("ReduceMax", ["scores", class_axis], ["nms_best"], keepdims=1),
            helper.make_node("Transpose", ["nms_best"], ["nms_scores"], perm=[0, 2, 1]),
            helper.make_node("NonMaxSuppression", ["boxes", "nms_scores", *limits], ["selected"]),
        ]
    )
    model.graph.output.append(helper.make_tensor_value_info("selected", TensorProto.INT64, ["M", 3]))


def open_file(path: Path) -> tuple[Callable[[Tensor], list[Tensor]], dict]:
    """Returns the file as a function from images to its outputs, and its description."""
    network = OnnxNetwork(path)
    run = network.session.run
    return lambda images: [torch.from_numpy(out) for out in run(None, {"images": images.numpy()})], network.description


def _name_dimensions(value: "onnx.ValueInfoProto") -> None:
    """Names the dynamic dimensions of the input N, H and W, and the batch of outputs N; others get no name."""
    for position, size in enumerate(value.type.tensor_type.shape.dim):
        if size.HasField("dim_param"):
            size.dim_param = "N" if position == 0 else {2: "H", 3: "W"}[position] if value.name == "images" else ""
            if not size.dim_param:
                size.Clear()


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Hides messages of torch.onnx about optional packages, in this block only."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
