"""Reads the MATLAB labels of the Svanstrom videos, ``groundTruth`` objects of the Computer Vision Toolbox."""

import contextlib
import faulthandler
import os
import signal
import warnings
from pathlib import Path

import numpy as np

from danet.utils.errors import UserError
from danet.utils.names import quote

CLASSES = ("drone", "bird", "airplane", "helicopter")

Labels = list[dict[str, np.ndarray]]
"""For each frame: class -> its boxes, float64 ``[n, 4]`` (x0, y0, x1, y1) in pixels; only classes that have boxes."""


CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
"""Signals that end a process because of an error in its own code."""


def _check_in_child_process(path: str | os.PathLike) -> None:
    """Reads a label file in a child process first, because mat-io's compiled code crashes on some damaged files.

    Raises UserError if the child process crashes. Other errors are left to the reading in this process.
    """
    if not hasattr(os, "fork"):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns about a fork beside threads; this child only reads the file
        pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            faulthandler.disable()
            _load_mat(path)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in CRASHES:
        raise UserError(
            f"{path}: no readable groundTruth labels (mat-io crashed while it read this file, probably damaged)"
        )


def _load_mat(path: str | os.PathLike) -> dict:
    import matio

    with warnings.catch_warnings():
        # Turn matio's own warnings into errors: it warns and returns other data if it cannot read an object.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", category=UserWarning)
        content: dict = matio.load_from_mat(str(path))
        return content


def read_labels(path: str | os.PathLike) -> Labels:
    """Reads a label file; a frame may have several boxes, and a file several classes.

    Raises:
        UserError: if mat-io is not installed, the file is missing or cannot be read, or it contains an unknown class or
            an invalid box.
    """
    try:
        import matio  # noqa: F401  # optional dependency, slow to import
    except ImportError as error:
        raise UserError(f"{path}: reading MATLAB labels needs mat-io: pip install mat-io ({error})") from error
    if not Path(path).is_file():
        raise UserError(f"{path}: no such label file")
    _check_in_child_process(path)
    try:
        content = _load_mat(path)
        table = content["gTruth"].properties["any"][0, 0]["LabelData"][:, 0]
        columns = {str(name): str(name).lower() for name in table.dtype.names if name != "Time"}
        rows = [{column: np.asarray(row[column]) for column in columns} for row in table]
    except Exception as error:  # matio raises many kinds of errors on broken files
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{path}: no readable groundTruth labels ({problem})") from error
    for name in columns.values():
        if name not in CLASSES:
            raise UserError(f"{path}: unknown class {quote(name)}; known are {', '.join(CLASSES)}")

    labels: Labels = []
    for index, row in enumerate(rows):
        found = {}
        for column, name in columns.items():
            cell = row[column]
            if not cell.size:
                continue
            if cell.ndim != 2 or cell.shape[1] != 4 or cell.dtype.kind not in "fiu":
                raise UserError(f"{path}: frame {index}: boxes of {name} must be n x 4 numbers, got {cell.shape}")
            if not np.isfinite(cell).all() or (cell[:, 2:] <= 0).any():
                values = quote(cell.tolist())
                raise UserError(f"{path}: frame {index}: a box of {name} is not finite or has no area: {values}")
            corner = cell[:, :2].astype(float) - 1.0  # MATLAB's first pixel is 1
            found[name] = np.concatenate([corner, corner + cell[:, 2:]], axis=1)
        labels.append(found)
    return labels
