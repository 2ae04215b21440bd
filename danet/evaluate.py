"""``danet evaluate``: how good a detector is on annotated images, with intervals, curves and its worst mistakes."""

from danet.utils.cli import prepare_opencv

if __name__ == "__main__":
    prepare_opencv()  # before the imports below, which need OpenCV

import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rich.console import Console

from danet.data.class_map import apply_class_map
from danet.data.coco_dataset import CocoDataset, ImageRecord, load_coco
from danet.evaluation.contact_sheets import Sheets
from danet.evaluation.curves import write_curves
from danet.evaluation.metrics import Metrics, choose_threshold, evaluate_predictions
from danet.evaluation.mistakes import find_mistakes
from danet.evaluation.tables import print_metrics
from danet.utils import cli
from danet.utils.errors import UserError
from danet.utils.files import write_json, write_text
from danet.utils.image_io import write_image

if TYPE_CHECKING:
    from danet.boxes import Detections
    from danet.inference.detector import Detector
    from danet.inference.local_contrast_detector import LocalContrastDetector

# The word that stands for the classical filter in the place of a weights file.
LOCAL_CONTRAST = "local_contrast"
# Below this the curves end; low enough that every threshold of interest lies above.
LOWEST_SCORE = 0.02


class NothingFound(UserError):
    """There are no detections of the target to choose a threshold from."""


@dataclass
class EvaluateOptions:
    """Options of ``danet evaluate``."""

    weights: str
    """Weights file (.safetensors) written by danet train, or one exported as .onnx, or local_contrast for the classical
    filter, whose boxes get their size from `tune`; also given as the first word."""

    data: str
    """COCO json (or a folder with one) whose figures are reported; also given as the second word."""

    tune: str | None = None
    """COCO json of other images: the middle of the thresholds whose F1 there is within 0.01 of the best is applied
    to `data`."""

    threshold: float | None = None
    """Score threshold (0 to 1) found elsewhere, reported beside the fixed one; excludes `tune`."""

    fixed: float = 0.5
    """Score threshold (0 to 1) that is always reported."""

    target: str | None = None
    """Class to find; by default the model's first class."""

    criterion: Literal["iou50", "iou30", "iop50", "center3"] = "iou50"
    """When a detection is right, for tuning and for the figures by size, recording and distractor: IoU at
    least 0.5 or 0.3, intersection over the predicted box's area at least 0.5, or centres less than 3 pixels
    apart. Overall figures are given for all four."""

    class_map: dict[str, str] = field(default_factory=dict)
    """New names for the data's categories, such as '{"Target": "drone"}'; "ignore" makes ignore regions."""

    scale_edges: list[float] = field(default_factory=lambda: [14.0, 18.0])
    """Edges of the size buckets, in pixels of sqrt(width * height)."""

    stride: int = 1
    """Take every N-th image of each video (of all images where no video is known), also of `tune`."""

    out: str = "runs/evaluate"
    """Folder for config.yaml, metrics.json, predictions.json, curves (.csv, .png) and pictures; files of these names
    are replaced."""

    json: str | None = None
    """Write the figures to this file as well."""

    input_size: list[int] | None = None
    """Height and width in pixels (one number: a square) every image is fitted into; by default its own size."""

    iou: float = 0.5
    """Overlap (IoU, 0 to 1) above which only the better of two boxes is kept."""

    max_detections: int = 300
    """Most detections an image."""

    batch: int = 8
    """Images of equal size that go through the network at once."""

    device: str = "auto"
    """cpu, cuda or cuda:N; auto takes a GPU where there is one."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the network's numbers."""

    deploy: bool = True
    """Run the network in its fused form; false takes it as it was trained, to compare."""

    threads: int | None = None
    """CPU threads of the network; by default all cores."""

    resamples: int = 1000
    """Resamples of the bootstrap that gives the 95 % intervals."""

    seed: int = 0
    """Seed of the bootstrap."""

    quiet: bool = False
    """Print only errors and warnings."""


def evaluate(options: EvaluateOptions) -> None:
    """Measures a detector on annotated images.

    Precision, recall and F1 at a fixed score and at one chosen on other images, average precision, figures
    by size, recording and distractor class, each with 95 % intervals, and the speed. Tables go to the
    terminal; metrics.json, predictions.json, P-R and F1 curves, a sheet of the worst misses and false alarms,
    and one of hits and mistakes by size to `out`.
    """
    _check(options)
    cli.check_out(options)
    import torch

    from danet.inference.loading import choose_device
    from danet.inference.predict import predict
    from danet.ops import describe, info

    data = load_coco(options.data)
    tune = None if options.tune is None else load_coco(options.tune)
    _check_class_map(options, [*data.categories, *(tune.categories if tune else [])])
    records = select_images(data, options)
    tune_records = select_images(tune, options) if tune else []
    _check_apart(records, tune_records, options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device, options.weights)
    detector = _load_detector(options, device, tune_records)
    classes = detector.classes
    target = _choose_target(options, classes, records)
    console = Console(quiet=options.quiet, highlight=False, width=None if sys.stdout.isatty() else 150)
    console.print(f"danet evaluate: {describe()}")

    threshold, tuned_on = options.threshold, None
    if tune is not None:
        found, _ = predict(detector, tune_records, options.batch, quiet=options.quiet)
        threshold, f1 = choose_threshold(tune_records, found, classes, target=target, criterion=options.criterion)
        if threshold is None:
            raise NothingFound(f"{options.tune}: no threshold can be chosen, no {target!r} is found there")
        tuned_on = {"data": options.tune, "images": len(tune_records), "f1": f1, "threshold": threshold}
        console.print(f"score {threshold:.3f} chosen on {options.tune} ({len(tune_records)} images, F1 {f1:.3f})")

    predictions, speed = predict(detector, records, options.batch, quiet=options.quiet)
    metrics = evaluate_predictions(
        records,
        predictions,
        classes,
        target=target,
        threshold=threshold,
        fixed=options.fixed,
        criterion=options.criterion,
        scale_edges=options.scale_edges,
        resamples=options.resamples,
        seed=options.seed,
    )
    shown_at = options.fixed if threshold is None else threshold
    mistakes = find_mistakes(
        records, predictions, classes, target=target, threshold=shown_at, criterion=options.criterion
    )
    method = (
        f"{device}, {torch.get_num_threads()} threads, batches of up to {options.batch} images of equal size, scores "
        f"from {LOWEST_SCORE}; one after the other: reading and preprocessing, network, decoding and suppression; "
        "without the first batch"
    )
    content = {
        **metrics.to_json(),
        "tuned_on": tuned_on,
        "mistakes": mistakes.causes(),
        "speed": speed.to_json(method),
        "environment": info(),
        "options": asdict(options),
    }
    draw = Sheets(records, predictions, classes, target=target, threshold=shown_at)
    sheets = {
        "misses_and_false_alarms.png": draw.worst(mistakes),
        "by_size.png": draw.by_size(mistakes, options.scale_edges),
    }
    written = _write(options, data, records, predictions, classes, metrics, content, sheets)
    print_metrics(metrics, console)
    _print_mistakes(console, content["mistakes"], metrics.criteria[metrics.criterion].title, shown_at)
    _print_speed(console, content["speed"])
    for path in written:
        console.print(f"  {path}")


def _load_detector(
    options: EvaluateOptions, device: str, tune: Sequence[ImageRecord]
) -> "Detector | LocalContrastDetector":
    import torch

    import danet
    from danet.inference.loading import parse_size
    from danet.inference.local_contrast_detector import LocalContrastDetector

    limits: dict[str, Any] = {
        "score_threshold": LOWEST_SCORE,
        "iou_threshold": options.iou,
        "max_detections": options.max_detections,
    }
    if options.weights == LOCAL_CONTRAST:
        if options.target is None:
            raise UserError(f"--target: name the class that {LOCAL_CONTRAST} is to find")
        detector = LocalContrastDetector(options.target, device, **limits)
        detector.calibrate(tune)
        return detector
    return danet.load(
        options.weights,
        device,
        **limits,
        input_size=parse_size(options.input_size),
        dtype=getattr(torch, options.dtype),
        deploy=options.deploy,
    )


def select_images(data: CocoDataset, options: EvaluateOptions) -> list[ImageRecord]:
    """The images to use, every ``options.stride``-th of each video, their categories renamed."""
    position: dict[str | None, int] = {}
    chosen = []
    for record in data.records:
        index = position.get(record.video, 0)
        position[record.video] = index + 1
        if index % options.stride == 0:
            chosen.append(apply_class_map(record, options.class_map))
    if not chosen:
        raise UserError(f"{data.path}: no images")
    return chosen


def _check_class_map(options: EvaluateOptions, categories: Sequence[str]) -> None:
    for name in options.class_map:
        if name not in categories:
            raise UserError(
                f"--class_map: {name!r} is not a category of the data ({', '.join(sorted(set(categories)))})"
            )


def _check_apart(records: Sequence[ImageRecord], tune: Sequence[ImageRecord], options: EvaluateOptions) -> None:
    """A threshold must not be chosen on the images it is reported on, nor should it be on their neighbours."""
    shared = {record.path for record in records} & {record.path for record in tune}
    if shared:
        raise UserError(
            f"--tune {options.tune}: shares {len(shared)} images with {options.data} (such as {min(shared).name}); "
            "choose the threshold on other images"
        )
    for name in ("recording", "video"):
        both = {getattr(record, name) for record in records} & {getattr(record, name) for record in tune} - {None}
        if both:
            _warn(f"{options.tune} and {options.data} share {len(both)} {name}s, such as {min(both)}")
            return


def _choose_target(options: EvaluateOptions, classes: Sequence[str], records: Sequence[ImageRecord]) -> str:
    target = classes[0] if options.target is None else options.target
    if target not in classes:
        raise UserError(f"--target {target}: not a class of the model ({', '.join(classes)})")
    names = {name for record in records for name in record.names}
    if target not in names:
        _warn(f"{options.data} shows no {target!r}, only {', '.join(sorted(names)) or 'nothing'}; see --class_map")
    return target


def _write(
    options: EvaluateOptions,
    data: CocoDataset,
    records: Sequence[ImageRecord],
    predictions: Sequence["Detections"],
    classes: Sequence[str],
    metrics: Metrics,
    content: dict,
    sheets: dict[str, np.ndarray | None],
) -> list[Path]:
    """Writes every file; returns their paths."""
    from danet.evaluation.plots import plot_f1_curves, plot_pr_curves
    from danet.inference.coco_results import to_coco_results

    out = Path(options.out)
    write_text(out / "config.yaml", cli.dump(options))
    names = ("metrics.json", "predictions.json", "curves.csv", "pr_curve.png", "f1_confidence.png")
    written = [out / name for name in names]
    write_json(written[0], content)
    write_json(written[1], to_coco_results(data, records, predictions, classes), indent=None)
    write_curves(written[2], metrics)
    plot_pr_curves(written[3], metrics)
    plot_f1_curves(written[4], metrics)
    for name, sheet in sheets.items():
        (out / name).unlink(missing_ok=True)
        if sheet is not None:
            write_image(out / name, sheet)
            written.append(out / name)
    if options.json is not None:
        written.append(Path(options.json))
        write_json(written[-1], content)
    return written


def _print_mistakes(console: Console, causes: dict[str, dict[str, int]], criterion: str, score: float) -> None:
    for name, counts in causes.items():
        words = ", ".join(f"{cause} {count}" for cause, count in counts.items()) or "none"
        console.print(f"{name.replace('_', ' ')} at score {score:.3f}, {criterion}: {words}")


def _print_speed(console: Console, speed: dict) -> None:
    if not speed["images"]:
        console.print("speed: not measured, there was only one batch")
        return
    parts = ", ".join(f"{name.replace('_', ' ')} {ms:.1f}" for name, ms in speed["milliseconds_per_image"].items())
    console.print(
        f"speed: {speed['fps']:.1f} images/s, {speed['fps_network_and_decode']:.1f} without reading and preprocessing "
        f"(ms an image: {parts})\n  {speed['method']}"
    )


def _warn(message: str) -> None:
    print(f"danet evaluate: warning: {message}", file=sys.stderr)


def _check(options: EvaluateOptions) -> None:
    """Raises UserError for a value that cannot be meant."""
    for name, lowest in (("fixed", LOWEST_SCORE), ("threshold", LOWEST_SCORE), ("iou", 0.0)):
        value = getattr(options, name)
        if value is not None and not lowest <= value <= 1.0:
            raise UserError(f"--{name} must lie between {lowest:g} and 1, got {value}")
    for name in ("stride", "batch", "max_detections", "threads", "resamples"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}")
    if options.tune is not None and options.threshold is not None:
        raise UserError("--tune and --threshold exclude each other")
    if options.seed < 0:
        raise UserError(f"--seed must be 0 or more, got {options.seed}")
    edges = [0.0, *options.scale_edges, math.inf]
    if not all(low < high for low, high in itertools.pairwise(edges)):
        raise UserError(f"--scale_edges must be positive and ascending, got {options.scale_edges}")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(evaluate, EvaluateOptions, prog="danet evaluate", positionals=["weights", "data"], argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
