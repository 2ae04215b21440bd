"""How an ONNX file of another detector takes images and returns boxes; see ``onnx_adapter``."""

from dataclasses import dataclass, field
from typing import Literal

from danet.utils.errors import UserError, check_values


@dataclass
class OnnxAdapterOptions:
    """Input scaling and output layout of an ONNX file of another detector.

    The defaults are those of Ultralytics. Raises UserError for a value out of range.

    Example:
        >>> OnnxAdapterOptions(layout="yolo").padding
        114.0
    """

    layout: Literal["auto", "yolo", "yolov5", "end_to_end", "boxes_scores", "boxes_scores_labels"] = "auto"
    """Output. yolo: one array of 4 + C values per box, centre, size and C scores, as YOLOv8, YOLO11 and YOLO26 export.
    yolov5: 5 + C values, with an objectness after the size. end_to_end: rows of x0, y0, x1, y1, score, class.
    boxes_scores: two arrays, P x 4 and P x C. boxes_scores_labels: three arrays, P x 4, P and P, as torchvision
    exports. auto: what the metadata of Ultralytics states."""

    boxes: Literal["auto", "xyxy", "xywh", "cxcywh"] = "auto"
    """Meaning of the four values of a box: two corners; corner and size; centre and size. auto: cxcywh for yolo and
    yolov5, otherwise xyxy."""

    relative: bool = False
    """The values of a box are relative to the size of the network's input, instead of in its pixels."""

    logits: bool = False
    """The scores are logits, to which a sigmoid is applied."""

    first_label: int = 0
    """The label of the first class in end_to_end and boxes_scores_labels; 1 if 0 is the background."""

    resize: Literal["letterbox", "corner", "stretch"] = "letterbox"
    """How an image gets the size of the input: with its aspect ratio, centred (letterbox) or at the upper left corner
    (corner), or without (stretch)."""

    padding: float = 114.0
    """Grey value (0 to 255) around a letterboxed image."""

    colour: Literal["rgb", "bgr"] = "rgb"
    """Order of the channels of an input with three channels."""

    divisor: float = 255.0
    """Pixel values from 0 to 255 are divided by this, before `mean` and `std`."""

    mean: list[float] = field(default_factory=lambda: [0.0])
    """Subtracted from the divided values: one number, or one for each channel."""

    std: list[float] = field(default_factory=lambda: [1.0])
    """What the result is divided by: one number, or one for each channel."""

    def __post_init__(self) -> None:
        check_values(self, ["padding"], "lie between 0 and 255", lambda value: 0 <= value <= 255, prefix="--onnx.")
        check_values(self, ["divisor"], "be positive", lambda value: value > 0, prefix="--onnx.")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, 3) or (name == "std" and min(values) <= 0):
                wanted = "one or three numbers" if name == "mean" else "one or three positive numbers"
                raise UserError(f"--onnx.{name} must be {wanted}, got {values}")
