"""Options of an evaluation: what ``danet evaluate`` reads from the command line and from YAML files."""

import itertools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from danet.inference.onnx_adapter_options import OnnxAdapterOptions
from danet.inference.tile_options import DEFAULT_OVERLAP, check_tile_options
from danet.utils import cli
from danet.utils.errors import UserError, check_values

MIN_SCORE = 0.02
"""Detections with a lower score are dropped, and precision-recall curves end here. Useful thresholds are higher."""

LOCAL_CONTRAST = "local_contrast"
"""Given in place of a weights file, it selects the classical local-contrast detector."""


@dataclass
class EvaluateOptions:
    """Options of ``danet evaluate``.

    Metrics are reported at one or two score thresholds. The fixed one is ``fixed``. The tuned one is chosen on the
    images of ``tune``, or given as ``threshold`` if it was chosen before; without both, there is none. False alarms are
    also reported at the thresholds that reach the recalls 0.90 and 0.95. Raises UserError for a value out of range.

    Example:
        >>> options = EvaluateOptions("weights.safetensors", "val.json", tune="tune.json")
        >>> options.criterion, options.fixed
        ('iou50', 0.5)
    """

    weights: str | None = None
    """Weights file (.safetensors) of danet train, an .onnx file of danet export or of another detector (see `onnx`), or
    local_contrast for the classical filter, whose box sizes are calibrated on `tune`; also given as the first argument.
    """

    data: str = ""
    """COCO json (or a folder with one) to evaluate on; also given as the second argument."""

    predictions: str | None = None
    """Instead of `weights`: the detections of any other program in the images of `data`, as a json of COCO results or a
    folder of YOLO text files with confidences."""

    tune_predictions: str | None = None
    """The predictions for the images of `tune`, in the same form as `predictions`."""

    class_names: list[str] | None = None
    """Names of another detector's classes in the order of their numbers, for `predictions` in YOLO text files and for
    .onnx files that do not state them."""

    onnx: OnnxAdapterOptions = field(default_factory=OnnxAdapterOptions)
    """How an .onnx file of another detector takes images and returns boxes."""

    tune: str | None = None
    """COCO json of other images, on which the tuned score threshold is chosen: the middle of the range of thresholds
    whose F1 under `criterion` is within 0.01 of the best F1."""

    threshold: float | None = None
    """Tuned score threshold (0.02 to 1) that you have chosen before on other images, instead of `tune`; by default the
    value that danet calibrate has stored in the weights."""

    fixed: float = 0.5
    """Fixed score threshold (0.02 to 1). Metrics are always reported at it; mistakes and pictures use it only if there
    is no tuned threshold."""

    target: str | None = None
    """Class to find; by default the model's first class."""

    criterion: Literal["iou50", "iou30", "iop50", "center3"] = "iou50"
    """When a detection is correct: its IoU with an object is at least 0.5 (iou50) or 0.3 (iou30), the object covers at
    least half of the detected box (iop50), or the centres are less than 3 pixels apart (center3). It is used by `tune`
    and for mistakes and metrics by size, recording, distractor and class; overall metrics are given for all four."""

    class_map: dict[str, str] = field(default_factory=dict)
    """New names for the data's categories, such as '{"Target": "drone"}'; "ignore" makes ignore regions."""

    scale_edges: list[float] = field(default_factory=lambda: [14.0, 18.0])
    """Edges between the size ranges, in pixels of sqrt(width * height)."""

    stride: int = 1
    """Use every N-th image of each video, also in `tune`; images without a video count as one video."""

    out: str = "runs/evaluate"
    """Folder for config.yaml, metrics.json, predictions.json, curves and pictures; replaces files of these names."""

    json: str | None = None
    """Also write the metrics to this file."""

    input_size: list[int | Literal["native"]] | None = None
    """Height and width in pixels (one number for a square) to fit every image into; native keeps its own size. By
    default, images of another scale than the weights were trained for are scaled, as in danet detect."""

    tile: list[int] | None = None
    """Height and width in pixels of overlapping tiles into which larger images are cut, as in danet detect; one number
    stands for squares."""

    overlap: float = DEFAULT_OVERLAP
    """Minimum overlap of neighbouring tiles, as a fraction of their side, 0 to 0.9."""

    polarity: Literal["white", "black"] = "white"
    """white: hot is bright in the images. black: hot is dark, the images are inverted for the network. It is not chosen
    automatically as in danet detect, because a dataset mixes images of several cameras."""

    iou: float = 0.5
    """IoU (0 to 1) above which non-maximum suppression drops the lower-scoring of two boxes."""

    max_detections: int = 300
    """Maximum number of detections per image."""

    batch: int = 8
    """Batch size; a batch holds images of equal size only."""

    device: str = "auto"
    """cpu, cuda, cuda:N or N (the number of a GPU); auto uses a GPU if there is one."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of the network. auto: bfloat16 on Intel CPUs with AMX and AMD CPUs with AVX512_BF16, if it is faster
    there and its detections agree with those of float32, otherwise float32."""

    deploy: bool = True
    """Run the fused network; false runs it as it was trained, for comparison."""

    threads: int | None = None
    """CPU threads of the network; by default all cores that the process may use."""

    resamples: int = 1000
    """Bootstrap resamples for the 95 % intervals."""

    seed: int = 0
    """Seed of the bootstrap."""

    quiet: bool = False
    """Print only errors and warnings."""

    def __post_init__(self) -> None:
        scores = f"lie between {MIN_SCORE:g} and 1"
        check_values(self, ["fixed", "threshold"], scores, lambda value: MIN_SCORE <= value <= 1, prefix="--")
        check_values(self, ["iou"], "lie between 0 and 1", lambda value: 0 <= value <= 1, prefix="--")
        check_tile_options(self.tile, self.overlap)
        counts = ["stride", "batch", "max_detections", "threads", "resamples"]
        check_values(self, counts, "be at least 1", lambda value: value >= 1, prefix="--")
        check_values(self, ["seed"], "be 0 or more", lambda value: value >= 0, prefix="--")
        if self.weights is not None and self.predictions is not None:
            raise UserError("--predictions replaces the weights; give one of them")
        if self.tune_predictions is not None and (self.predictions is None or self.tune is None):
            raise UserError("--tune_predictions: needs --predictions and --tune")
        if self.predictions is not None and self.tune is not None and self.tune_predictions is None:
            raise UserError(f"--tune {self.tune}: give the predictions for its images, too (--tune_predictions)")
        if self.tune is not None and self.threshold is not None:
            raise UserError("--tune and --threshold exclude each other; give one of them")
        if not all(low < high for low, high in itertools.pairwise([0.0, *self.scale_edges, math.inf])):
            raise UserError(f"--scale_edges must be positive and ascending, got {self.scale_edges}")

    def check_complete(self) -> None:
        """Raises UserError if there is nothing to evaluate or no data."""
        if self.weights is None and self.predictions is None:
            raise UserError("--weights: a value is required")
        if not self.data:
            raise UserError("--data: a value is required")

    def check_outputs(self) -> None:
        """Raises UserError if a result would replace a file that the evaluation reads, or another result."""
        from danet.data.coco_dataset import dataset_files

        inputs = [self.weights, self.predictions, self.tune_predictions]
        inputs += [str(file) for path in (self.data, self.tune) if path for file in dataset_files(path)]
        out = Path(self.out)
        cli.check_outputs(
            [self.json, *(out / name for name in ("config.yaml", "predictions.json", "curves.csv"))], inputs
        )
        cli.check_outputs([out / "metrics.json"], inputs)  # --json may be this file: both have the same content
