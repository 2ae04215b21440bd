"""The ``danet`` command, also ``python -m danet``: its first word selects one of COMMANDS."""

from collections.abc import Sequence

from danet.utils.dispatch import dispatch

COMMANDS = {
    "data": ("danet.data.__main__", "import, split, synthesize and inspect datasets"),
    "train": ("danet.train", "train a detector"),
    "evaluate": ("danet.evaluate", "evaluate a detector on a dataset"),
    "ablate": ("danet.ablate", "run an ablation: train variants of a recipe and compare them"),
    "report": ("danet.report.__main__", "write the report of a run or a benchmark as one HTML file"),
    "detect": ("danet.detect", "detect targets in images, folders, videos, streams or a webcam"),
    "export": ("danet.export.__main__", "write a detector as a file for another runtime"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the first word names; returns its exit code."""
    return dispatch("danet", COMMANDS, argv)


if __name__ == "__main__":
    raise SystemExit(main())
