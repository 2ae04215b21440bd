"""Reads the MATLAB labels of the Svanstrom videos, ``groundTruth`` objects of the Computer Vision Toolbox."""

import contextlib
import faulthandler
import os
import pickle
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


def _load_mat(path: str | os.PathLike) -> dict:
    import matio

    with warnings.catch_warnings():
        # Turn matio's own warnings into errors: it warns and returns other data if it cannot read an object.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", category=UserWarning)
        content: dict = matio.load_from_mat(str(path))
        return content


def _read_table(path: str | os.PathLike) -> list[dict[str, np.ndarray]] | str:
    """The table of a label file: for each frame column -> boxes; or what is wrong with the file, as a text."""
    try:
        table = _load_mat(path)["gTruth"].properties["any"][0, 0]["LabelData"][:, 0]
        columns = [name for name in table.dtype.names if name != "Time"]
        return [{str(name): np.asarray(row[name]) for name in columns} for row in table]
    except Exception as error:  # matio raises many kinds of errors on broken files
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _read_table_in_child_process(path: str | os.PathLike) -> list[dict[str, np.ndarray]] | str:
    """``_read_table`` in a child process, because mat-io's compiled code crashes on some damaged files."""
    if not hasattr(os, "fork"):
        return _read_table(path)
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns about a fork beside threads; this child only reads the file
        pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            faulthandler.disable()
            os.close(reader)
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(pickle.dumps(_read_table(path)))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        content = pipe.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in CRASHES:
        return "mat-io crashed while it read this file, probably damaged"
    if not content:  # it was killed, or the table cannot be sent
        return "the process that read this file sent no table"
    table: list[dict[str, np.ndarray]] | str = pickle.loads(content)
    return table


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
    rows = _read_table_in_child_process(path)
    if isinstance(rows, str):
        raise UserError(f"{path}: no readable groundTruth labels ({rows})")
    columns = {name: name.lower() for row in rows[:1] for name in row}
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
