"""The folder of a training run: the names of its files, and the checks before a run writes into it."""

import dataclasses
from pathlib import Path

from danet.training.options import TrainOptions
from danet.utils import cli
from danet.utils.errors import UserError
from danet.utils.files import check_folder, write_text

CONFIG = "config.yaml"
"""All options of the run."""
STATE = "last.safetensors"
"""The state from which the run resumes."""
BEST = "best.safetensors"
"""The weights with the best validation so far."""
WEIGHTS = "weights.safetensors"
"""The weights that a finished run leaves: the best ones, or the last ones if there was no validation."""


def check_run_folder(options: TrainOptions) -> None:
    """Raises UserError if ``options.out`` cannot be written, has no run to resume, or has one that must stay."""
    check_folder(options.out)
    config = Path(options.out) / CONFIG
    if options.resume and not config.is_file():
        raise UserError(f"{options.out}: no run to resume ({CONFIG} is missing)")
    if config.exists() and not options.resume and not options.overwrite:
        raise UserError(f"{options.out}: holds a run; give --resume, --overwrite, or another --out")


def prepare_run_folder(options: TrainOptions) -> None:
    """Removes what an earlier run left unless it is resumed, and saves the options."""
    folder = Path(options.out)
    if not options.resume:
        for name in (STATE, BEST, WEIGHTS):
            (folder / name).unlink(missing_ok=True)
    for leftover in folder.glob(f".{Path(STATE).stem}-*"):  # of a process that was killed while it saved
        leftover.unlink(missing_ok=True)
    # Whoever reads the file back decides anew whether to resume or to overwrite.
    write_text(folder / CONFIG, cli.dump(dataclasses.replace(options, resume=False, overwrite=False)))
