"""``danet train``: trains a detector and resumes interrupted runs."""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from danet.training.options import PRESETS, TrainOptions
from danet.training.run_folder import CONFIG, check_run_folder
from danet.utils import cli
from danet.utils.files import write_json
from danet.utils.help_page import HelpPage
from danet.utils.shipped_weights import shipped_names

INTERRUPTED = 130
"""Exit code after Ctrl-C, SIGTERM or SIGHUP; shells use it for SIGINT."""

INPUTS = {
    "data": (),
    "val": (),
    "weights": ("shipped", *shipped_names()),
    "distill.small": shipped_names(),
    "distill.medium": shipped_names(),
    "distill.large": shipped_names(),
}

RESUME = "--resume=true"

PAGE = HelpPage(
    {
        "data and results": ["data", "val", "out", "overwrite", "resume", "quiet", "json"],
        "recipes": ["preset", "config", "print_config"],
        "network": ["model.name", "model.classes", "weights"],
        "training": ["epochs", "batch", "lr", "augmentation.crop", "seed"],
        "machine": ["device", "amp", "workers"],
        "more": ["help", "help_all", "debug"],
    },
    {
        "danet train --data train.json --val val.json --out runs/first": "train danet_s for 60 epochs",
        "danet train --data train.json --model.name danet_nano --epochs 20 --batch 16": "train a small network quickly",
        "danet train --data train.json --weights shipped --lr 0.001": "fine-tune the detector of the package",
        "danet train --resume runs/first": "resume an interrupted run",
    },
)


def train(options: TrainOptions) -> int:
    """Trains a detector on COCO datasets.

    Ctrl-C saves the state and exits with code 130; `--resume RUN_DIR` resumes the run, also after a kill. A full disk,
    a removed folder or a killed loader process exits with code 1.
    """
    check_run_folder(options)
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
    words = _expand_resume(list(sys.argv[1:] if argv is None else argv))
    # A resumed run reads its saved state; it does not need the weights that it started from.
    inputs = {name: INPUTS[name] for name in INPUTS if name != "weights"} if RESUME in words else INPUTS
    return cli.run(
        train,
        TrainOptions,
        prog="danet train",
        positionals=["data"],
        presets=PRESETS,
        inputs=inputs,
        page=PAGE,
        argv=words,
    )


def _expand_resume(argv: list[str]) -> list[str]:
    """Rewrites ``--resume [RUN_DIR]``: the options of the saved run are read first, typed options override them."""
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
    return [*saved, *rest, RESUME]


if __name__ == "__main__":
    raise SystemExit(main())
