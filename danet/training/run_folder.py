"""The folder of a training run: the names of its files, and the checks before a run writes into it."""

import dataclasses
from pathlib import Path

from danet.training.options import TrainOptions
from danet.utils import cli
from danet.utils.errors import UserError
from danet.utils.files import check_folder, write_text

CONFIG = "config.yaml"
"""Options of the run."""
STATE = "last.safetensors"
"""State to resume from."""
BEST = "best.safetensors"
"""Weights of the best validation so far."""
WEIGHTS = "weights.safetensors"
"""Weights of a finished run: the best ones, or the last ones without validation."""


def check_run_folder(options: TrainOptions) -> None:
    """Checks what a run needs before anything is loaded.

    Raises:
        UserError: no data is given; ``options.out`` cannot be written, has no run to resume, or has one not to be
            replaced.
    """
    check_folder(options.out)
    config = Path(options.out) / CONFIG
    if options.resume and not config.is_file():
        raise UserError(f"{options.out}: no run to resume ({CONFIG} is missing)")
    if config.exists() and not options.resume and not options.overwrite:
        raise UserError(f"{options.out}: holds a run; give --resume, --overwrite, or another --out")
    if not options.data:
        raise UserError("--data: no training dataset given; give a COCO json or a folder that contains one")


def prepare_run_folder(options: TrainOptions) -> None:
    """Removes the files of an earlier run, unless it is resumed, and saves the options."""
    folder = Path(options.out)
    if not options.resume:
        for name in (STATE, BEST, WEIGHTS):
            (folder / name).unlink(missing_ok=True)
    for leftover in folder.glob(f".{Path(STATE).stem}-*"):  # temporary files of a process that was killed while saving
        leftover.unlink(missing_ok=True)
    # Reset resume and overwrite: a run that reads this file has to ask for them again.
    write_text(folder / CONFIG, cli.dump(dataclasses.replace(options, resume=False, overwrite=False)))
