"""``danet train``: trains a detector and resumes interrupted runs."""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from danet.utils import cli
from danet.utils.files import write_json

if TYPE_CHECKING:
    from danet.training import TrainOptions

INTERRUPTED = 130
"""Exit code after Ctrl-C, SIGTERM or SIGHUP; shells use it for SIGINT."""


def train(options: "TrainOptions") -> int:
    """Trains a detector on COCO datasets.

    Ctrl-C saves the state and exits with code 130; `--resume RUN_DIR` resumes the run, also after a kill. A full disk,
    a removed folder or a killed loader process exits with code 1.
    """
    from danet import training

    result = training.train(options)
    if result.rank == 0:
        if not result.finished:
            command = f"danet train --resume {options.out}"
            print(f"stopped after step {result.steps}; resume with: {command}", file=sys.stderr)
        elif not options.quiet:
            best = result.best
            shown = f": epoch {best['epoch']}, AP50 {best['ap50']:.3f}, F1 {best['f1']:.3f}" if best else ""
            if result.end_reason:
                print(f"ended after step {result.steps}: {result.end_reason}")
            print(f"done in {result.seconds / 60:.1f} minutes{shown}; weights: {result.weights}")
        for message in result.warnings:
            print(f"danet train: warning: {message}", file=sys.stderr)
        if result.finished and options.json:
            write_json(options.json, {"steps": result.steps, "seconds": result.seconds, "best": result.best})
    return 0 if result.finished else INTERRUPTED


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    cli.prepare_opencv()  # before the import below, which needs OpenCV
    from danet.training.options import PRESETS, TrainOptions

    argv = list(sys.argv[1:] if argv is None else argv)
    return cli.run(train, TrainOptions, prog="danet train", presets=PRESETS, argv=_expand_resume(argv))


def _expand_resume(argv: list[str]) -> list[str]:
    """Rewrites ``--resume [RUN_DIR]``: the options of the saved run are read first, typed options override them."""
    from danet.training.options import TrainOptions
    from danet.training.run_folder import CONFIG

    pairs = (token.split("=", 1) if token.startswith(("--resume=", "--out=")) else [token] for token in argv)
    argv = list(itertools.chain.from_iterable(pairs))
    if "--resume" not in argv:
        return argv
    at = argv.index("--resume")
    value = argv[at + 1] if at + 1 < len(argv) and not argv[at + 1].startswith("-") else None
    rest = argv[:at] + argv[at + (1 if value is None else 2) :]
    if value is not None and value.lower() == "false":
        return rest
    if value is None or value.lower() == "true":
        given = [value for option, value in itertools.pairwise(rest) if option == "--out"]
        folder = given[-1] if given else TrainOptions.out
    else:
        folder = value
        rest += ["--out", folder]
    config = Path(folder) / CONFIG
    saved = ["--config", str(config)] if config.is_file() else []
    return [*saved, *rest, "--resume=true"]


if __name__ == "__main__":
    raise SystemExit(main())
