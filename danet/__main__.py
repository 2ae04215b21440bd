"""The ``danet`` command, also ``python -m danet``: its first word selects one of COMMANDS."""

import sys
from collections.abc import Sequence

from danet.utils.dispatch import dispatch

COMMANDS = {
    "data": ("danet.data.__main__", "import, split, synthesize and inspect datasets"),
    "train": ("danet.train", "train a detector"),
    "evaluate": ("danet.evaluate", "evaluate a detector on a dataset"),
    "compare": ("danet.compare", "compare detectors on the same images, with intervals of their differences"),
    "ablate": ("danet.ablate", "run an ablation: train variants of a recipe and compare them"),
    "report": ("danet.report.__main__", "write the report of a run or a benchmark as one HTML file"),
    "detect": ("danet.detect", "detect targets in images, folders, videos, streams or a webcam"),
    "track": ("danet.track", "follow targets through videos and streams, and raise alarms"),
    "calibrate": ("danet.calibration.__main__", "choose alarm thresholds from footage without targets"),
    "export": ("danet.export.__main__", "write a detector as a file for another runtime"),
}

ALIASES = {"predict": "detect", "val": "evaluate"}
"""Names of the commands in Ultralytics."""

SYNONYMS = {
    **dict.fromkeys(("infer", "inference", "run"), "detect"),
    **dict.fromkeys(("eval", "test", "validate"), "evaluate"),
    **dict.fromkeys(("fit", "finetune", "fine-tune", "resume"), "train"),
    **dict.fromkeys(("follow", "tracking", "alarm"), "track"),
    **dict.fromkeys(("calibration", "threshold", "thresholds"), "calibrate"),
    **dict.fromkeys(("convert", "onnx"), "export"),
    **{name: f"data {name}" for name in ("import", "split", "synthesize", "inspect")},
}
"""What is suggested for other names."""

CLOSING = """
start here:
  danet detect video.mp4                          find drones with the detector of the package
  danet train --data train.json --val val.json    train a detector

`danet version` prints the version."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the first word names; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] in (["version"], ["--version"], ["-V"]):
        from danet import __version__

        print(f"danet {__version__}")
        return 0
    return dispatch("danet", COMMANDS, argv, aliases=ALIASES, synonyms=SYNONYMS, closing=CLOSING)


if __name__ == "__main__":
    raise SystemExit(main())
