"""``danet compare``: compares detectors on the same images, with paired 95 % intervals of their differences."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from danet.evaluation.compare_options import CompareOptions
from danet.utils import cli
from danet.utils.files import write_text
from danet.utils.help_page import HelpPage
from danet.utils.typed_options import paths_as_texts

PAGE = HelpPage(
    {
        "input": ["detectors", "data", "tune", "class_map", "stride", "input_size", "polarity", "class_names"],
        "metrics": ["target", "criterion", "recall", "scale_edges"],
        "results": ["out", "quiet", "json"],
        "machine": ["device", "dtype", "batch", "threads"],
        "more": ["config", "print_config", "help", "help_all", "debug"],
    },
    {
        "danet compare a.safetensors yolo11n.onnx --data val.json --tune tune.json": "evaluate both, compare them",
        "danet compare ours=runs/a yolo=runs/b": "compare two folders of danet evaluate",
    },
)


def compare(options: CompareOptions) -> None:
    """Compares detectors on the same images.

    Each detector is evaluated as `danet evaluate` does it, at a score threshold of its own that is chosen on `tune`.
    One table shows their metrics, another one the differences to the first detector, with the intervals of a bootstrap
    that resamples the same videos for both. A picture shows their precision-recall curves.
    """
    options = paths_as_texts(options)
    cli.check_out(options)
    from rich.console import Console

    from danet.evaluation.detector_comparison import DetectorComparison, comparison_tables
    from danet.evaluation.tables import print_table

    console = Console(quiet=options.quiet, highlight=False, width=_width())
    comparison = DetectorComparison(options)
    found = comparison.evaluate(console.print)
    for message in dict.fromkeys(comparison.warnings):
        print(f"danet compare: warning: {message}", file=sys.stderr)
    content = comparison.compare(found)
    write_text(Path(options.out) / "config.yaml", cli.dump(options))
    written = comparison.write(found, content)
    for table in comparison_tables(content):
        print_table(table, console)
        console.print(table.note)
    for path in written:
        console.print(f"  {path}")


def _width() -> int | None:
    """Columns of the output: those of the terminal, or the value of COLUMNS; 150 for a file or a pipe."""
    return None if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit() else 150


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    inputs = {"data": ("",), "tune": ()}
    return cli.run(
        compare, CompareOptions, prog="danet compare", positionals=["detectors"], inputs=inputs, page=PAGE, argv=argv
    )


if __name__ == "__main__":
    raise SystemExit(main())
