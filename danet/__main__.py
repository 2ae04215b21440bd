"""``python -m danet`` and the ``danet`` command: data, train, evaluate, ablate, report, detect, export."""

from collections.abc import Sequence

from danet.utils.dispatch import dispatch

COMMANDS = {
    "data": ("danet.data.__main__", "import, split, synthesize and inspect datasets"),
    "train": ("danet.train", "train a detector"),
    "evaluate": ("danet.evaluate", "measure a detector on a dataset"),
    "ablate": ("danet.ablate", "train variants of a recipe and say what each part brings"),
    "report": ("danet.report.__main__", "write a run or a benchmark as one HTML file"),
    "detect": ("danet.detect", "detect in images, folders, videos or a webcam"),
    "export": ("danet.export.__main__", "write a detector as a file for another runtime"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command named by the first word."""
    return dispatch("danet", COMMANDS, argv)


if __name__ == "__main__":
    raise SystemExit(main())
