"""ONNX files: written from a network, run by ONNX Runtime."""

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

from danet.export import description as descriptions
from danet.export.network import trace
from danet.utils.errors import UserError

if TYPE_CHECKING:
    import onnx
    import onnxruntime

OPSET = 22
"""The first whose DeformConv takes the types that sdc has."""


def export_onnx(network: nn.Module, images: Tensor, path: str | os.PathLike, *, names: Sequence[str]) -> None:
    """Writes ``network(images)`` as an ONNX file with results called ``names``; any batch and image size.

    Raises:
        ImportError: where onnx and onnxscript are not installed.
    """
    import onnx

    onnx.save(to_onnx(network, images, names), os.fspath(path))


def write(network: nn.Module, images: Tensor, path: Path, description: dict, *, nms: bool = False) -> None:
    """Writes a ``BoxesAndScores`` with its description; ``nms`` adds the output "selected", see ``add_nms``."""
    import onnx

    model = to_onnx(network, images, ["boxes", "scores"])
    if nms:
        add_nms(model, description["thresholds"])
    onnx.helper.set_model_props(model, {descriptions.KEY: json.dumps(description)})
    model.producer_name, model.producer_version = "danet", description["danet"]
    onnx.save(model, path)


def to_onnx(network: nn.Module, images: Tensor, names: Sequence[str]) -> "onnx.ModelProto":
    """The model of ``network(images)``, for any batch and image size."""
    with _quiet():
        program = torch.onnx.export(
            trace(network, images),
            input_names=["images"],
            output_names=list(names),
            opset_version=OPSET,
            dynamo=True,
            optimize=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None  # without a path to write to, it is given back
    model = program.model_proto
    for value in (*model.graph.input, *model.graph.output):
        _name_sizes(value)
    del model.graph.value_info[:]  # shapes of everything between, in symbols that nobody reads
    return model


def add_nms(model: "onnx.ModelProto", thresholds: dict) -> None:
    """Adds the output "selected", int64 ``[M, 3]``: (image, 0, position) of what ONNX's NonMaxSuppression leaves.

    As in ``danet.boxes.select`` each position speaks for its best class, and suppression runs over all classes at once.
    Of an image the best come first.
    """
    from onnx import TensorProto, helper, numpy_helper

    def constant(name: str, value: float | list[int], dtype: torch.dtype) -> str:
        model.graph.initializer.append(numpy_helper.from_array(torch.tensor(value, dtype=dtype).numpy(), name))
        return name

    best = constant("nms_classes_axis", [2], torch.int64)
    limits = [
        constant("nms_max_detections", [thresholds["max_detections"]], torch.int64),
        constant("nms_iou_threshold", [thresholds["iou_threshold"]], torch.float32),
        constant("nms_score_threshold", [thresholds["score_threshold"]], torch.float32),
    ]
    model.graph.node.extend(
        [
            helper.make_node("ReduceMax", ["scores", best], ["nms_best"], keepdims=1),
            helper.make_node("Transpose", ["nms_best"], ["nms_scores"], perm=[0, 2, 1]),
            helper.make_node("NonMaxSuppression", ["boxes", "nms_scores", *limits], ["selected"]),
        ]
    )
    model.graph.output.append(helper.make_tensor_value_info("selected", TensorProto.INT64, ["M", 3]))


def open_session(path: str | os.PathLike) -> "onnxruntime.InferenceSession":
    """ONNX Runtime with the file, on the CPU with as many threads as torch has.

    Raises:
        UserError: naming the file, if it is missing or cannot be run; naming the package, if that is missing.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"{path}: needs onnxruntime, which is not installed; pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # its threads would slow torch's
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes have no common one but this
        reason = str(error).split("\n")[0]
        raise UserError(f"{path}: onnxruntime {onnxruntime.__version__} cannot run it ({reason})") from error


def open_file(path: Path) -> tuple[Callable[[Tensor], list[Tensor]], dict]:
    """The file as a function of images that gives all its outputs, and its description."""
    session = open_session(path)
    description = descriptions.read(session.get_modelmeta().custom_metadata_map.get(descriptions.KEY), path)
    return lambda images: [torch.from_numpy(out) for out in session.run(None, {"images": images.numpy()})], description


def _name_sizes(value: "onnx.ValueInfoProto") -> None:
    """Short names for free sizes: N, H and W of the input; those of outputs are left open."""
    for position, size in enumerate(value.type.tensor_type.shape.dim):
        if size.HasField("dim_param"):
            size.dim_param = "N" if position == 0 else {2: "H", 3: "W"}[position] if value.name == "images" else ""
            if not size.dim_param:
                size.Clear()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch.onnx says of packages that a DANet does not need."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
