"""``danet evaluate``: measures a detector on annotated images, with 95 % intervals, curves and its worst mistakes."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from danet.evaluation.evaluate_options import LOCAL_CONTRAST, EvaluateOptions
from danet.utils import cli
from danet.utils.help_page import HelpPage
from danet.utils.shipped_weights import shipped_names

if TYPE_CHECKING:  # imported by `evaluate`, so that help and errors of options appear without delay
    from rich.console import Console

PAGE = HelpPage(
    {
        "input": ["weights", "data", "tune", "class_map", "stride", "input_size", "tile", "polarity"],
        "other detectors": ["predictions", "tune_predictions", "class_names", "onnx.layout"],
        "detections": ["target", "threshold", "criterion", "iou"],
        "results": ["out", "quiet", "json"],
        "machine": ["device", "dtype", "batch", "threads"],
        "more": ["config", "print_config", "help", "help_all", "debug"],
    },
    {
        "danet evaluate weights.safetensors val.json": "all metrics at score 0.5",
        "danet evaluate weights.safetensors val.json --tune tune.json": "also at a score chosen on other images",
        "danet evaluate local_contrast val.json --target drone": "the classical filter as a baseline",
        "danet evaluate yolo11n.onnx val.json --tune tune.json": "an ONNX file of another detector",
        "danet evaluate --predictions results.json val.json": "what any program has detected",
        "torchrun --nproc-per-node 4 -m danet.evaluate weights.safetensors val.json": "with four processes",
        "danet evaluate --tracks runs/track val.json": "tracks and alarms of danet track (--tracks X --help: options)",
    },
)


def evaluate(options: EvaluateOptions) -> None:
    """Measures a detector on annotated images.

    Precision, recall and F1 at a fixed score and at one chosen on other images, average precision, metrics by size,
    recording and distractor class, each with 95 % intervals, and the speed. Tables go to the terminal; metrics.json,
    predictions.json, precision-recall and F1 curves, a sheet of the worst misses and false alarms, and one of hits and
    mistakes by size go to `out`.
    """
    options.check_complete()
    options.check_outputs()
    cli.check_out(options)
    from danet.inference.shared_images import shared_run
    from danet.utils import distributed

    with shared_run(options) as own:
        _evaluate(own, distributed.rank() == 0)


def _evaluate(options: EvaluateOptions, is_first: bool) -> None:
    """Evaluates; only the first of several processes prints and writes."""
    from rich.console import Console

    from danet.evaluation.evaluator import Evaluator
    from danet.evaluation.tables import print_metrics
    from danet.ops import describe
    from danet.utils.malloc import tune_malloc

    evaluator = Evaluator(options)
    if evaluator.device == "cpu":
        tune_malloc()
    for message in evaluator.warnings if is_first else []:
        print(f"danet evaluate: warning: {message}", file=sys.stderr)
    console = Console(quiet=options.quiet, highlight=False, width=_width())
    console.print(f"danet evaluate: {describe()}")
    for note in evaluator.notes:
        console.print(note)
    tuned = evaluator.choose_threshold()
    if tuned is not None:
        console.print(f"score {tuned.threshold:.3f} chosen on {tuned.data} ({tuned.images} images, F1 {tuned.f1:.3f})")
    if not is_first:
        evaluator.predict()
        return
    evaluation = evaluator.evaluate(tuned)
    written = evaluation.write()
    print_metrics(evaluation.content, console)
    _print_mistakes(console, evaluation.content, evaluation.threshold)
    _print_speed(console, evaluation.content["speed"])
    for path in written:
        console.print(f"  {path}")


def _width() -> int | None:
    """Columns of the output: those of the terminal, or the value of COLUMNS; 150 for a file or a pipe."""
    return None if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit() else 150


def _print_mistakes(console: "Console", content: dict, threshold: float) -> None:
    from danet.evaluation.matching import CRITERIA

    criterion = CRITERIA[content["criterion"]].title
    for name, counts in content["mistakes"].items():
        causes = ", ".join(f"{cause} {count}" for cause, count in counts.items()) or "none"
        console.print(f"{name.replace('_', ' ')} at score {threshold:.3f}, {criterion}: {causes}")


def _print_speed(console: "Console", speed: dict) -> None:
    if not speed["images"]:
        is_stored = speed["method"].startswith("not measured")
        console.print(f"speed: {speed['method'] if is_stored else 'not measured, there was only one batch'}")
        return
    parts = ", ".join(f"{name.replace('_', ' ')} {ms:.1f}" for name, ms in speed["milliseconds_per_image"].items())
    console.print(
        f"speed: {speed['fps']:.1f} images/s, {speed['fps_network_and_decode']:.1f} without reading and preprocessing "
        f"(ms per image: {parts})\n  {speed['method']}"
    )


def _main_of_tracks(argv: Sequence[str] | None) -> int:
    from danet.evaluation.track_evaluation import TrackEvaluationOptions, evaluate_tracks

    return cli.run(
        evaluate_tracks,
        TrackEvaluationOptions,
        prog="danet evaluate --tracks",
        positionals=["data"],
        inputs={"tracks": (), "data": ()},
        argv=argv,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # With --predictions there are no weights, and the first argument is the data.
    has_predictions = any(word.partition("=")[0] == "--predictions" for word in argv)
    if any(word.partition("=")[0] == "--tracks" for word in argv):
        return _main_of_tracks(argv)
    return cli.run(
        evaluate,
        EvaluateOptions,
        prog="danet evaluate",
        positionals=["data"] if has_predictions else ["weights", "data"],
        inputs={
            "weights": (LOCAL_CONTRAST, *shipped_names()),
            "data": ("",),
            "tune": (),
            "predictions": (),
            "tune_predictions": (),
        },
        page=PAGE,
        argv=argv,
    )


if __name__ == "__main__":
    raise SystemExit(main())
