"""Options of a comparison: what ``danet compare`` reads from the command line and from YAML files."""

import itertools
import math
from dataclasses import dataclass, field
from typing import Literal

from danet.utils.errors import UserError, check_values


@dataclass
class CompareOptions:
    """Options of ``danet compare``.

    Raises UserError for a value out of range.

    Example:
        >>> CompareOptions(["a.safetensors", "b.onnx"], "val.json", tune="tune.json").recall
        0.9
    """

    detectors: list[str]
    """Two or more of: a weights file (.safetensors), an .onnx file, local_contrast, or the folder of a danet evaluate,
    also as NAME=PATH. The others are compared with the first. Options that differ between detectors, such as the output
    layout of an .onnx file or predictions from a file, are given to danet evaluate, whose folder is then compared."""

    data: str = ""
    """COCO json (or a folder with one) to compare on; by default the data of the first folder."""

    tune: str | None = None
    """COCO json of other images, on which the score threshold of each detector is chosen; by default those of the first
    folder."""

    criterion: Literal["iou50", "iou30", "iop50", "center3"] = "iou50"
    """When a detection is correct, see danet evaluate: for thresholds, precision, recall, metrics by size and false
    alarms. F1 and average precision are given for IoU 0.3 and 0.5 at the same threshold."""

    target: str | None = None
    """Class to find; by default the first class of the first detector."""

    recall: float = 0.9
    """Recall at which false alarms are counted; if a detector does not reach it, the differences of false alarms are
    taken at the highest recall that both reach."""

    class_map: dict[str, str] = field(default_factory=dict)
    """New names for the data's categories, such as '{"Target": "drone"}'; "ignore" makes ignore regions."""

    scale_edges: list[float] = field(default_factory=lambda: [14.0, 18.0])
    """Edges between the size ranges, in pixels of sqrt(width * height)."""

    stride: int = 1
    """Use every N-th image of each video, also in `tune`."""

    out: str = "runs/compare"
    """Folder for comparison.md, comparison.json, pr_curves.png, config.yaml, and a folder of danet evaluate for every
    detector that is given as a file."""

    json: str | None = None
    """Also write the content of comparison.json to this file."""

    input_size: list[int | Literal["native"]] | None = None
    """Height and width in pixels to fit every image into, as in danet evaluate."""

    polarity: Literal["white", "black"] = "white"
    """black if hot is dark in the images, as in danet evaluate."""

    class_names: list[str] | None = None
    """Names of the classes of .onnx files that do not state them."""

    iou: float = 0.5
    """IoU (0 to 1) above which non-maximum suppression drops the lower-scoring of two boxes."""

    max_detections: int = 300
    """Maximum number of detections per image."""

    batch: int = 8
    """Batch size."""

    device: str = "auto"
    """cpu, cuda, cuda:N or N (the number of a GPU); auto uses a GPU if there is one."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of the networks, as in danet evaluate."""

    threads: int | None = None
    """CPU threads; by default all cores that the process may use."""

    resamples: int = 1000
    """Bootstrap resamples for the 95 % intervals."""

    seed: int = 0
    """Seed of the bootstrap."""

    quiet: bool = False
    """Print only errors and warnings."""

    def __post_init__(self) -> None:
        if len(self.detectors) < 2:
            raise UserError(f"--detectors: name two or more, got {len(self.detectors)}")
        check_values(self, ["recall"], "lie between 0 and 1", lambda value: 0 < value <= 1, prefix="--")
        check_values(self, ["iou"], "lie between 0 and 1", lambda value: 0 <= value <= 1, prefix="--")
        counts = ["stride", "batch", "max_detections", "threads", "resamples"]
        check_values(self, counts, "be at least 1", lambda value: value >= 1, prefix="--")
        check_values(self, ["seed"], "be 0 or more", lambda value: value >= 0, prefix="--")
        if not all(low < high for low, high in itertools.pairwise([0.0, *self.scale_edges, math.inf])):
            raise UserError(f"--scale_edges must be positive and ascending, got {self.scale_edges}")
