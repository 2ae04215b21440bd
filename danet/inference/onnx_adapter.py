"""Runs ONNX files of other detectors in ONNX Runtime, so that they are evaluated like our own."""

import ast
import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from danet.boxes import Detections, area, centred_boxes, clip, nms
from danet.data.image_record import check_categories
from danet.inference import export_description
from danet.inference.onnx_adapter_options import OnnxAdapterOptions
from danet.inference.onnx_box_check import BoxCheck
from danet.inference.onnx_network import open_session
from danet.models.danet import MINIMUM_SIZE
from danet.utils.errors import UserError
from danet.utils.image_io import read_image, to_display

STRIDE = 32
"""The input size is a multiple of this where the file leaves it free and names no size."""

NEEDS_NMS = ("yolo", "yolov5", "boxes_scores")
"""Layouts whose boxes are dense predictions, to which non-maximum suppression is applied."""

OUTPUTS = {"boxes_scores": 2, "boxes_scores_labels": 3}
"""Number of outputs of the layouts that have more than one."""

MAX_CANDIDATES = 30_000
"""Maximum number of boxes per image in non-maximum suppression; those with the highest scores are used."""


class Placement(NamedTuple):
    """Where an image lies in the input of the network: both sizes, and its scale and offset (x, y) there."""

    height: int
    width: int
    input_height: int
    input_width: int
    scale: tuple[float, float]
    offset: tuple[int, int]


class OnnxAdapter:
    """An ONNX file of another detector; a replacement for ``Detector`` in ``predict``.

    Each prediction counts for its best class only. Suppression runs for each class on its own, as in Ultralytics, and
    only for layouts of dense predictions.

    Args:
        path: the file; its first input is an image batch ``[N, C, H, W]`` of float32 or float16.
        options: how it takes images and returns boxes.
        class_names: names of its classes; by default those of Ultralytics' metadata.
        input_size: (height, width) in pixels, if the file leaves it free; by default that of the metadata, or the size
            of each image.
        score_threshold, iou_threshold, max_detections: as for ``Detector``.

    Attributes:
        classes: names of the labels.
        note: one line about what goes in and comes out.

    Raises:
        UserError: the file cannot be run, or it does not say what its classes or its outputs are, and neither do the
            options.

    Example:
        >>> OnnxAdapter("missing.onnx", OnnxAdapterOptions())
        Traceback (most recent call last):
        danet.utils.errors.UserError: missing.onnx: no such file
    """

    device, dtype, dtype_note = torch.device("cpu"), torch.float32, ""

    def __init__(
        self,
        path: str | os.PathLike,
        options: OnnxAdapterOptions,
        *,
        class_names: Sequence[str] | None = None,
        input_size: Any = None,
        score_threshold: float = 0.02,
        iou_threshold: float = 0.5,
        max_detections: int = 300,
    ) -> None:
        self.path, self.options = os.fspath(path), options
        self.score_threshold, self.iou_threshold = score_threshold, iou_threshold
        self.max_detections = max_detections
        self._session = open_session(path)
        self._metadata = self._session.get_modelmeta().custom_metadata_map
        self._input = self._session.get_inputs()[0]
        shape = self._input.shape
        if len(shape) != 4 or self._input.type not in ("tensor(float)", "tensor(float16)"):
            raise UserError(f"{path}: its first input must be an image batch N x C x H x W of floats, got {shape}")
        others = [value.name for value in self._session.get_inputs()[1:]]
        if others:
            raise UserError(f"{path}: it needs further inputs ({', '.join(others)}); export it without them")
        self._batch, self._channels = (value if isinstance(value, int) else None for value in shape[:2])
        if self._channels not in (None, 1, 3):
            raise UserError(f"{path}: its input must have 1 or 3 channels, got {self._channels}")
        self._size = self._choose_size(shape[2:], input_size)
        self.classes = self._choose_classes(class_names)
        self.layout = self._choose_layout()
        self._box_kind: str = options.boxes
        if self._box_kind == "auto":
            self._box_kind = "cxcywh" if self.layout in ("yolo", "yolov5") else "xyxy"
        self._box_check = BoxCheck(self.path, self._box_kind, relative=options.relative)
        size = "the size of each image" if self._size is None else f"{self._size[0]} x {self._size[1]}"
        self.note = f"{path}: output {self.layout}, input {size}, {options.resize}, classes {', '.join(self.classes)}"

    lags: tuple[float, ...] = ()
    """Empty, because this detector uses no earlier frames."""

    def preprocess(self, paths: Sequence[str | os.PathLike], past: object = None) -> tuple[Tensor, list[Placement]]:
        """Reads images of one size, and scales them to ``[N, C, H, W]``; 16-bit images are stretched to 8 bits.

        Earlier frames (``past``) are not used.
        """
        placed = [self._place(to_display(read_image(path))) for path in paths]
        return torch.from_numpy(np.stack([image for image, _ in placed])), [place for _, place in placed]

    def forward(self, batch: Tensor, geometry: list[Placement]) -> tuple[list[list[np.ndarray]], list[Placement]]:
        """The outputs of each image, without the batch dimension."""
        step = self._batch or len(batch)
        results: list[list[np.ndarray]] = []
        array = batch.numpy().astype(np.float16 if self._input.type == "tensor(float16)" else np.float32)
        # Repeat the last image where the file has a fixed batch size.
        for start in range(0, len(array), step):
            part = array[start : start + step]
            count = len(part)
            if count < step:
                part = np.concatenate([part, np.repeat(part[-1:], step - count, axis=0)])
            try:
                outputs = self._session.run(None, {self._input.name: part})
            except Exception as error:  # onnxruntime's exceptions have no other common base class
                reason = str(error).split("\n")[0]
                raise UserError(f"{self.path}: cannot be run with an input of {part.shape} ({reason})") from error
            results += [[self._of_image(output, index, step) for output in outputs] for index in range(count)]
        return results, geometry

    def postprocess(self, output: list[list[np.ndarray]], geometry: list[Placement]) -> list[Detections]:
        """Applies thresholds and suppression, and maps the boxes to pixels of the images.

        Raises UserError if the values or the boxes of the file do not fit the options, see ``BoxCheck``.
        """
        return [self._decode(*each) for each in zip(output, geometry, strict=True)]

    def _decode(self, outputs: list[np.ndarray], place: Placement) -> Detections:
        boxes, scores, labels = (torch.from_numpy(np.ascontiguousarray(part)) for part in self._split(outputs))
        if not bool(torch.isfinite(scores).all()):
            raise UserError(f"{self.path}: a score is NaN or infinite; export weights without NaN")
        if len(scores) and not 0 <= float(scores.min()) <= float(scores.max()) <= 1.0001:
            low, high = float(scores.min()), float(scores.max())
            raise UserError(
                f"{self.path}: scores must lie between 0 and 1, got {low:.3g} to {high:.3g}; --onnx.logits true "
                "applies a sigmoid, and --onnx.layout names another layout"
            )
        kept = (scores > self.score_threshold).nonzero()[:, 0]
        kept = kept[scores[kept].argsort(descending=True, stable=True)][:MAX_CANDIDATES]
        boxes, scores, labels = boxes[kept].float(), scores[kept].float().clamp(max=1), labels[kept].long()
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.classes):
            seen = f"{int(labels.min())} to {int(labels.max())}"
            raise UserError(
                f"{self.path}: labels must number its {len(self.classes)} classes, got {seen}; see --onnx.first_label"
            )
        if not bool(torch.isfinite(boxes).all()):
            raise UserError(f"{self.path}: a box is NaN or infinite; export weights without NaN")
        boxes = self._to_corners(boxes, place)
        if self.layout in NEEDS_NMS:
            # Boxes of different classes are moved apart, so that they do not suppress each other.
            apart = boxes + labels[:, None] * (2 * float(boxes.abs().max()) + 1 if len(boxes) else 0.0)
            best = nms(apart, scores, self.iou_threshold, self.max_detections)
        else:
            best = torch.arange(len(boxes))[: self.max_detections]
        boxes, scores, labels = boxes[best], scores[best], labels[best]
        offset, scale = torch.tensor([*place.offset, *place.offset]), torch.tensor([*place.scale, *place.scale])
        boxes = clip((boxes - offset) / scale, place.height, place.width)
        return Detections(boxes, scores, labels, self.classes)[area(boxes) > 0]

    def _split(self, outputs: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes ``[P, 4]``, the score ``[P]`` of the best class and its number ``[P]``, of one image."""
        count = len(self.classes)
        if self.layout == "end_to_end":
            rows = self._rows(outputs[0], 6)
            return rows[:, :4], rows[:, 4], rows[:, 5] - self.options.first_label
        if self.layout == "boxes_scores_labels":
            boxes, scores, labels = outputs[:3]
            if np.issubdtype(scores.dtype, np.integer):  # torchvision returns the labels before the scores
                scores, labels = labels, scores
            return self._rows(boxes, 4), scores, labels - self.options.first_label
        if self.layout == "boxes_scores":
            boxes, scores = self._rows(outputs[0], 4), self._rows(outputs[1], count)
        else:
            values = 4 if self.layout == "yolo" else 5
            rows = self._rows(outputs[0], values + count)
            boxes, scores = rows[:, :4], rows[:, values:]
        if self.options.logits:
            scores = 1 / (1 + np.exp(-scores.astype(np.float64)))
        if self.layout == "yolov5":
            scores = scores * rows[:, 4:5]
        labels = scores.argmax(axis=1)
        return boxes, scores[np.arange(len(scores)), labels].astype(np.float32), labels

    def _rows(self, output: np.ndarray, values: int) -> np.ndarray:
        """An output as rows of so many values; files have it in either orientation."""
        if output.ndim == 2 and output.shape[1] == values:
            return output
        if output.ndim == 2 and output.shape[0] == values:
            return output.T
        raise UserError(
            f"{self.path}: layout {self.layout} with {len(self.classes)} classes needs {values} values per box, got an "
            f"output of {' x '.join(map(str, output.shape))} per image; name another --onnx.layout or --class_names"
        )

    def _to_corners(self, boxes: Tensor, place: Placement) -> Tensor:
        """Boxes as corners in pixels of the network's input."""
        if not self.options.relative and len(boxes) and float(boxes.abs().max()) <= 1:
            raise UserError(f"{self.path}: all boxes lie between 0 and 1 pixels; --onnx.relative true scales them")
        values = boxes
        if self.options.relative:
            boxes = boxes * torch.tensor([place.input_width, place.input_height] * 2)
        if self._box_kind == "cxcywh":
            boxes = centred_boxes(boxes[:, :2], boxes[:, 2:])
        elif self._box_kind == "xywh":
            boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
        self._box_check.add(values, boxes, (place.input_height, place.input_width))
        return boxes

    def _place(self, image: np.ndarray) -> tuple[np.ndarray, Placement]:
        """Scales an image to the size of the input, and its values as the options say: float32 ``[C, H, W]``."""
        height, width = image.shape[:2]
        size = self._size or (_round_up(height), _round_up(width))
        scale = (size[1] / width, size[0] / height)
        if self.options.resize != "stretch":
            scale = (min(scale),) * 2
        inner = (max(1, round(width * scale[0])), max(1, round(height * scale[1])))
        if inner != (width, height):
            image = cv2.resize(image, inner, interpolation=cv2.INTER_LINEAR)
        # An odd row of padding lies below and at the right, as in Ultralytics.
        free = (size[1] - inner[0], size[0] - inner[1])
        offset = (free[0] // 2, free[1] // 2) if self.options.resize == "letterbox" else (0, 0)
        scale = (inner[0] / width, inner[1] / height)  # the sizes are whole pixels
        padded = np.full((*size, 3), self.options.padding, np.float32)
        padded[offset[1] : offset[1] + inner[1], offset[0] : offset[0] + inner[0]] = image
        if self._channels == 1:
            padded = padded[..., :1]
        elif self.options.colour == "rgb":
            padded = padded[..., ::-1]
        mean, std = (np.array(values, np.float32) for values in (self.options.mean, self.options.std))
        values = (padded / np.float32(self.options.divisor) - mean) / std
        return np.ascontiguousarray(values.transpose(2, 0, 1)), Placement(height, width, *size, scale, offset)

    def _of_image(self, output: np.ndarray, index: int, batch: int) -> np.ndarray:
        """One image's part of an output; an output without a batch dimension belongs to the only image."""
        if output.ndim and output.shape[0] == batch and not (batch == 1 and output.ndim <= 2 and self._is_unbatched):
            return output[index]
        if batch == 1:
            return output
        raise UserError(f"{self.path}: an output of {output.shape} has no batch dimension; use --batch 1")

    @property
    def _is_unbatched(self) -> bool:
        """Whether the outputs lack a batch dimension, as those of torchvision."""
        return self.layout == "boxes_scores_labels" and len(self._session.get_outputs()[0].shape) == 2

    def _choose_size(self, shape: Sequence[Any], given: Any) -> tuple[int, int] | None:
        """Height and width of the input: those of the file, else ``given``, else those of the metadata, else None."""
        fixed = [value if isinstance(value, int) else None for value in shape]
        stated = _literal(self._metadata.get("imgsz"))
        size = given if isinstance(given, tuple) else None
        if size is None and given != "native" and isinstance(stated, list) and len(stated) == 2:
            size = (int(stated[0]), int(stated[1]))
        height, width = fixed
        if height is None or width is None:
            return size
        if isinstance(given, tuple) and given != (height, width):
            raise UserError(f"--input_size: {self.path} has an input of {height} x {width}, got {list(given)}")
        return height, width

    def _choose_classes(self, class_names: Sequence[str] | None) -> list[str]:
        if class_names:
            return check_categories(list(class_names), "--class_names")
        names = _literal(self._metadata.get("names"))
        if isinstance(names, dict) and sorted(names) == list(range(len(names))) and names:
            return check_categories([names[index] for index in range(len(names))], f"{self.path}: names")
        raise UserError(f"{self.path}: does not state its classes; give --class_names in the order of their numbers")

    def _choose_layout(self) -> str:
        outputs = self._session.get_outputs()
        layout = self.options.layout
        if layout == "auto":
            if self._metadata.get("author") != "Ultralytics" or self._metadata.get("task") != "detect":
                shapes = ", ".join(f"{each.name} {each.shape}" for each in outputs)
                raise UserError(
                    f"{self.path}: was written neither by danet export nor by Ultralytics for detection; name its "
                    f"output by --onnx.layout ({shapes})"
                )
            shape, rows = outputs[0].shape, 4 + len(self.classes)
            # Rows of six values could also be two classes with dense predictions, which lie in the other dimension.
            layout = "end_to_end" if shape[-1] == 6 and shape[1] != rows else "yolo"
        if len(outputs) < OUTPUTS.get(layout, 1):
            raise UserError(f"{self.path}: layout {layout} needs {OUTPUTS[layout]} outputs, got {len(outputs)}")
        return layout


def is_foreign(path: str | os.PathLike) -> bool:
    """Whether an ONNX file lacks the description that ``danet export`` writes.

    Raises UserError if the file cannot be opened.
    """
    return export_description.KEY not in open_session(path).get_modelmeta().custom_metadata_map


def count_onnx_parameters(path: str | os.PathLike) -> int | None:
    """Number of weights in an ONNX file; None if the package onnx is not installed."""
    try:
        import onnx
    except ImportError:
        return None
    graph = onnx.load(os.fspath(path)).graph
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    return sum(int(np.prod(each.dims)) for each in graph.initializer if each.data_type in floats)


def _round_up(side: int) -> int:
    return max(-(-side // STRIDE) * STRIDE, MINIMUM_SIZE)


def _literal(text: str | None) -> Any:
    """The value of a metadata text, which Ultralytics writes as Python; None if it is not one."""
    try:
        return json.loads(text or "null")
    except ValueError:
        pass
    try:
        return ast.literal_eval(text or "None")
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
