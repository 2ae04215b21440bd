"""The log of a training run: CSV files, TensorBoard and the terminal."""

import contextlib
import re
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from danet.training.options import TrainOptions
from danet.training.run_folder import STEPS, VALIDATIONS
from danet.training.state import Progress as TrainingProgress
from danet.utils.errors import UserError
from danet.utils.files import read_text, write_error, write_text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SHOWN_METRICS = {"precision": "P", "recall": "R", "f1": "F1", "ap50": "AP50"}
"""Validation metrics in the line of an epoch, with their labels there."""


class CsvLog:
    """A CSV file whose rows begin with a step.

    Args:
        path: the file.
        step: rows after this step are removed, since a resumed run writes them again.

    Raises:
        UserError: the file cannot be read or written. From ``write``: the file has other columns than the row.

    Example:
        >>> path = getfixture("tmp_path") / "metrics.csv"
        >>> log = CsvLog(path, 0)
        >>> log.write({"step": 1, "loss": 0.5})
        >>> log.close()
        >>> path.read_text()
        'step,loss\\n1,0.5\\n'
    """

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        self._header, rows = _rows_until(path, step) if step > 0 and path.is_file() else ("", [])
        self.last_step = _step_of(rows[-1]) if rows else None
        """The step of the last row."""
        write_text(path, self._header + "".join(rows))
        self._file = path.open("a", newline="", encoding="utf-8", buffering=1)

    def write(self, row: dict[str, int | float]) -> None:
        header = ",".join(row) + "\n"
        if not self._header:
            self._write_header(header)
        elif self._header != header:
            there = self._header.strip()
            raise UserError(
                f"{self._path}: has the columns {there}, this run writes {','.join(row)}; move the file away"
            )
        self._write(",".join(map(str, row.values())) + "\n")
        self.last_step = int(row["step"])

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise write_error(self._path, error) from error

    def _write(self, text: str) -> None:
        try:
            self._file.write(text)
        except OSError as error:
            raise write_error(self._path, error) from error

    def _write_header(self, header: str) -> None:
        """Puts the header before the rows that a file without one may have: earlier versions lost it."""
        self._file.close()
        write_text(self._path, header + read_text(self._path))
        self._file = self._path.open("a", newline="", encoding="utf-8", buffering=1)
        self._header = header


def _rows_until(path: Path, step: int) -> tuple[str, list[str]]:
    """The header of a log ("" if it has none) and its complete rows up to ``step``."""
    lines = read_text(path).splitlines(keepends=True)
    header = lines[0] if lines and lines[0].startswith("step,") and lines[0].endswith("\n") else ""
    # A killed run may leave an incomplete last line.
    rows = (line for line in lines if line.endswith("\n"))
    return header, [row for row in rows if (number := _step_of(row)) is not None and number <= step]


def _step_of(row: str) -> int | None:
    first = row.split(",")[0]
    return int(first) if re.fullmatch(r"[0-9]{1,18}", first) else None


class TrainingLog:
    """The log of a training run in the folder ``options.out``; use it as a context manager.

    Writes a row per step to ``metrics.csv``, a row per validation to ``validation.csv``, and a line per epoch to
    standard output. On a terminal, a progress bar shows the loss terms.

    Args:
        options: options of the run.
        progress: what was done before; rows of later steps and epochs are removed from the files.
        total_steps: steps of the whole run.
        steps_per_epoch: steps of an epoch.

    Raises:
        UserError: ``options.tensorboard`` is set, but TensorBoard is not installed.
    """

    def __init__(
        self, options: TrainOptions, progress: TrainingProgress, *, total_steps: int, steps_per_epoch: int
    ) -> None:
        folder = Path(options.out)
        self.quiet = options.quiet
        self.batch = options.batch
        self.steps_per_epoch = steps_per_epoch
        self.epochs = total_steps // steps_per_epoch
        self._tensorboard = _tensorboard_writer(folder, progress.step) if options.tensorboard else None
        self._steps = CsvLog(folder / STEPS, progress.step)
        self._validations = CsvLog(folder / VALIDATIONS, progress.finished_epoch_at)
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/" + str(self.epochs)),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f} %  {task.fields[terms]}  {task.fields[speed]:.1f} images/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=self.quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total_steps, completed=progress.step, epoch=1, terms="", speed=0.0)
        self._sums: dict[str, float] = {}
        self._count, self._speed, self._started = 0, 0.0, time.monotonic()

    def __enter__(self) -> "TrainingLog":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # the terminal may be closed
            self._bar.stop()
        for log in (self._steps, self._validations, self._tensorboard):
            if log is not None:
                # After an error, such as a full disk, closing fails in the same way and must not hide it.
                with contextlib.suppress(OSError, UserError) if error else contextlib.nullcontext():
                    log.close()

    def step(self, step: int, losses: dict[str, float], lr: float, grad_norm: float) -> None:
        """Records a step.

        Args:
            step: the step, from 1.
            losses: the total loss as "loss", then its terms.
            lr: learning rate.
            grad_norm: norm of the model's gradient before clipping.
        """
        epoch = (step - 1) // self.steps_per_epoch + 1
        self._steps.write({"step": step, "epoch": epoch, "lr": lr, **losses, "grad_norm": grad_norm})
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        self._speed = self._count * self.batch / max(time.monotonic() - self._started, 1e-9)
        if self._tensorboard:
            for name, value in {**losses, "lr": lr, "grad_norm": grad_norm}.items():
                self._tensorboard.add_scalar(f"train/{name}", value, step)
        terms = " ".join(f"{name} {value / self._count:.3f}" for name, value in self._sums.items())
        self._bar.update(self._task, completed=step, epoch=epoch, terms=terms, speed=self._speed)

    @property
    def validated_step(self) -> int | None:
        """The step of the last recorded validation."""
        return self._validations.last_step

    def validation(self, step: int, metrics: dict[str, float]) -> None:
        """Records the metrics of a validation after step ``step``, in an unfinished epoch after a time limit."""
        epoch = epochs_after(step, self.steps_per_epoch)
        self._validations.write({"step": step, "epoch": epoch, **metrics})
        if self._tensorboard:
            for name, value in metrics.items():
                self._tensorboard.add_scalar(f"val/{name}", value, step)

    def end_epoch(self, epoch: int, lr: float, metrics: dict[str, float] | None) -> None:
        """Prints the line of epoch ``epoch`` (from 1): mean losses, speed and validation metrics."""
        losses = "  ".join(f"{name} {value / max(1, self._count):.4f}" for name, value in self._sums.items())
        line = f"epoch {epoch}/{self.epochs}  {losses}  lr {lr:.2g}  {self._speed:.1f} images/s"
        if metrics:
            shown = (f"{label} {metrics[name]:.3f}" for name, label in SHOWN_METRICS.items() if name in metrics)
            line += "  val " + "  ".join(shown)
        if not self.quiet:
            self._print(line)
        self._sums = {}
        self._count, self._speed, self._started = 0, 0.0, time.monotonic()

    def _print(self, line: str) -> None:
        """Prints a line; a terminal that was closed must not end the training."""
        try:
            print(line, flush=True)
        except OSError:
            self.quiet = True


def epochs_after(step: int, steps_per_epoch: int) -> int | float:
    """The number of epochs after ``step`` steps: whole where an epoch ends, otherwise with two digits.

    Example:
        >>> epochs_after(20, 10), epochs_after(25, 10)
        (2, 2.5)
    """
    return step // steps_per_epoch if step % steps_per_epoch == 0 else round(step / steps_per_epoch, 2)


def _tensorboard_writer(folder: Path, step: int) -> "SummaryWriter":
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            f"--tensorboard: the package is not installed; run {sys.executable} -m pip install tensorboard"
        ) from None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
