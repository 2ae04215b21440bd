"""The folder of a training run: the names of its files, its lock, and the checks before a run writes into it."""

import contextlib
import dataclasses
import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from danet.data.data_options import DataSource
from danet.training.options import TrainOptions
from danet.utils import cli
from danet.utils.errors import FaultError, UserError
from danet.utils.files import check_folder, remove_temporary_files, write_error, write_text

CONFIG = "config.yaml"
"""Options of the run."""
STEPS = "metrics.csv"
"""Losses of every step."""
VALIDATIONS = "validation.csv"
"""Metrics of every validation."""
STATE = "last.safetensors"
"""State to resume from."""
BEST = "best.safetensors"
"""Weights of the best validation so far."""
WEIGHTS = "weights.safetensors"
"""Weights of a finished run: the best ones, or the last ones without validation."""
SAMPLES = "train_samples.jpg"
"""Augmented training images with their boxes, as the network sees them."""
LABELS = "labels.png"
"""Statistics of the boxes of the training data."""
LOSS_CURVES = "loss_curves.png"
"""Losses over the steps."""
VALIDATION_CURVES = "validation_curves.png"
"""Metrics over the epochs."""
RUN_FILES = (CONFIG, STEPS, VALIDATIONS, STATE, BEST, WEIGHTS, SAMPLES, LABELS, LOSS_CURVES, VALIDATION_CURVES)
LOCK = ".lock"
"""Locked while a training writes into the folder; it holds the process id and is removed at the end."""


def saved_amp(folder: str) -> Literal["auto", "off", "bfloat16", "float16"]:
    """The value of ``TrainOptions.amp`` that the run in a folder was started with.

    Raises UserError if the options of the run cannot be read.
    """
    return cli.parse(TrainOptions, ["--config", str(Path(folder) / CONFIG)], prog="danet train").amp


def check_run_folder(options: TrainOptions) -> None:
    """Checks what a run needs before anything is loaded.

    Raises:
        UserError: no data is given; ``options.out`` cannot be written, has no run to resume, or has files not to be
            replaced; a file that the run reads would be replaced or removed.
    """
    check_folder(options.out)
    config = Path(options.out) / CONFIG
    if options.resume and not config.is_file():
        raise UserError(f"{options.out}: no run to resume ({CONFIG} is missing)")
    if config.exists() and not options.resume and not options.overwrite:
        raise UserError(f"{options.out}: holds a run; give --resume, --overwrite, or another --out")
    names = [name for name in RUN_FILES if (Path(options.out) / name).exists()]
    if names and not options.resume and not options.overwrite:
        raise UserError(f"{options.out}: holds {names[0]}, which a run replaces; give --overwrite, or another --out")
    if not options.data:
        raise UserError("--data: no training dataset given; give a COCO json or a folder that contains one")
    inputs = input_files([*options.data, options.val])
    inputs += map(Path, options.distill.files().values())
    cli.check_outputs([options.json, *(Path(options.out) / name for name in RUN_FILES)], inputs)


def input_files(sources: Iterable[DataSource | str | None]) -> list[Path]:
    """The files that describe datasets, which no result may replace."""
    from danet.data.coco_dataset import dataset_files  # loads numpy

    paths = [each.path if isinstance(each, DataSource) else each for each in sources if each]
    return [file for path in paths for file in dataset_files(path)]


def prepare_run_folder(options: TrainOptions) -> None:
    """Removes the files of an earlier run, unless it is resumed, and saves the options.

    Temporary files of a process that was killed while it wrote are removed as well. The folder must be locked.
    """
    folder = Path(options.out)
    if not options.resume:
        for name in RUN_FILES:
            if name != CONFIG:
                (folder / name).unlink(missing_ok=True)
    remove_temporary_files(folder, RUN_FILES)
    # Reset resume and overwrite: a run that reads this file has to ask for them again.
    write_text(folder / CONFIG, cli.dump(dataclasses.replace(options, resume=False, overwrite=False)))


class RunLock:
    """The lock of a run folder, so that two trainings never write into one folder; see ``lock_run_folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / LOCK
        self._owner = os.getpid()
        self._file = self._acquire()

    def check(self) -> None:
        """Raises FaultError if the folder was removed, moved or replaced since it was locked."""
        if not self._is_in_place(self._file):
            raise FaultError(
                f"{self.folder}: the run folder, or its file {LOCK}, was removed or replaced during the training"
            )

    def close_in_child(self) -> None:
        """Closes the lock's file in a forked process, which otherwise holds the lock longer than its parent lives."""
        if os.getpid() != self._owner:
            os.close(self._file)

    def release(self) -> None:
        """Removes the file, unless the folder was replaced, and unlocks the folder."""
        if self._is_in_place(self._file):
            with contextlib.suppress(OSError):
                self._path.unlink()
        os.close(self._file)

    def _acquire(self) -> int:
        while True:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError as error:
                raise write_error(self._path, error) from error
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                process = os.read(file, 20).decode("ascii", "replace").strip()
                os.close(file)
                raise UserError(
                    f"{self.folder}: another training writes into this folder (process {process or 'unknown'}); "
                    "wait for its end, or give another --out"
                ) from None
            except OSError:
                pass  # a file system without locks, such as some network shares: train without one
            # Another run may have removed the file at its end, after it was opened here: then lock the new one.
            if self._is_in_place(file):
                os.ftruncate(file, 0)
                with contextlib.suppress(OSError):  # the number is only for the message; the disk may be full
                    os.write(file, f"{os.getpid()}\n".encode())
                return file
            os.close(file)

    def _is_in_place(self, file: int) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(file))
        except OSError:
            return False


@contextlib.contextmanager
def lock_run_folder(folder: str | os.PathLike) -> Iterator[RunLock]:
    """Locks a run folder, which is created if it does not exist. A killed process leaves no lock.

    Raises:
        UserError: another process holds the lock, or the folder cannot be written.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> with lock_run_folder(folder):
        ...     with lock_run_folder(folder):  # doctest: +IGNORE_EXCEPTION_DETAIL
        ...         pass
        Traceback (most recent call last):
        danet.utils.errors.UserError: ...: another training writes into this folder (process ...)...
    """
    lock = RunLock(Path(folder))
    try:
        yield lock
    finally:
        lock.release()
