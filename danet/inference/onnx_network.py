"""Runs a file of ``danet export`` in ONNX Runtime, as the network of a ``Detector``."""

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from danet.boxes import Detections, select
from danet.checkpoint import parse_config
from danet.inference import export_description
from danet.models.danet import MINIMUM_SIZE
from danet.utils.errors import UserError

if TYPE_CHECKING:
    import onnxruntime


class OnnxNetwork:
    """A drop-in replacement for a ``DeployedDANet``, computed by ONNX Runtime on the CPU in float32.

    Raises:
        UserError: the file is missing, cannot be run, or was not written by ``danet export``; or onnxruntime is not
            installed.
    """

    device = torch.device("cpu")

    def __init__(self, path: str | os.PathLike) -> None:
        self.session = open_session(path)
        properties = self.session.get_modelmeta().custom_metadata_map
        self.description = export_description.parse(properties.get(export_description.KEY), path)
        self.config = parse_config(self.description["model"])
        shapes = {value.name: value.shape for value in (*self.session.get_inputs(), *self.session.get_outputs())}
        channels, classes = self.config.network_channels, len(self.config.classes)
        if [len(shapes.get(name, ())) for name in ("images", "boxes", "scores")] != [4, 3, 3] or (
            shapes["images"][1] != channels or shapes["scores"][2] != classes
        ):
            raise UserError(
                f"{path}: not a file written by danet export (its inputs or outputs are not those described)"
            )
        # Weights with NaN would give no detections, without any other sign.
        if not all(output.isfinite().all() for output in self(torch.zeros(1, channels, MINIMUM_SIZE, MINIMUM_SIZE))):
            raise UserError(f"{path}: its outputs are NaN or infinite; export weights without NaN")

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``[N, network_channels, H, W]`` -> boxes ``[N, P, 4]`` in pixels, scores ``[N, P, classes]``."""
        results = self.session.run(["boxes", "scores"], {"images": images.contiguous().numpy()})
        boxes, scores = (torch.from_numpy(result) for result in results)
        return boxes, scores

    dtype = input_dtype = torch.float32

    def deploy(self, *, dtype: torch.dtype | Literal["auto"]) -> "OnnxNetwork":
        """Returns ``self``, which is fused already. Raises ValueError unless ``dtype`` is float32 or "auto"."""
        if dtype not in ("auto", torch.float32):
            raise ValueError(f'OnnxNetwork: dtype must be torch.float32 or "auto", got {dtype}')
        return self

    def decode(self, output: tuple[Tensor, Tensor], **options: Any) -> list[Detections]:
        """Detections of every image, see ``DANet.decode``."""
        return [
            select(functools.partial(torch.Tensor.__getitem__, boxes), scores, **options)
            for boxes, scores in zip(*output, strict=True)
        ]


MIN_VERSION = "1.25"
"""The first version of ONNX Runtime that runs DeformConv of opset 22 on the CPU."""


def open_session(path: str | os.PathLike) -> "onnxruntime.InferenceSession":
    """Opens an ONNX file in ONNX Runtime on the CPU, with as many threads as torch has.

    Raises:
        UserError: the file is missing or cannot be run, or onnxruntime is not installed.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    try:
        import onnxruntime
    except ImportError:
        raise UserError(
            f"{path}: needs onnxruntime, which is not installed; pip install 'onnxruntime>={MIN_VERSION}'"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that spin while they wait would slow torch's threads.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no other common base class
        reason = str(error).split("\n")[0]
        hint = f"; it needs onnxruntime {MIN_VERSION} or newer" if "DeformConv" in reason else ""
        raise UserError(f"{path}: onnxruntime {onnxruntime.__version__} cannot run it ({reason}){hint}") from error
