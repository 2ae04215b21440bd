"""The weights in the package and their names. Importing this module does not load torch."""

import os
from pathlib import Path

SHIPPED_FOLDER = Path(__file__).parents[1] / "weights"
"""Folder of the weights in the package; each can be named without its folder and suffix."""


def shipped_names() -> list[str]:
    """Names of the weights in the package, which can be used instead of a path.

    Example:
        >>> "danet_s" in shipped_names()
        True
    """
    return sorted(path.stem for path in SHIPPED_FOLDER.glob("*.safetensors"))


def find_weights(path: str | os.PathLike) -> str | os.PathLike:
    """The path of a weights file: that of the weights in the package if ``path`` is their name, otherwise ``path``.

    A file or folder of that name in the working directory comes first.

    Example:
        >>> find_weights("danet_s") == SHIPPED_FOLDER / "danet_s.safetensors", find_weights("own.safetensors")
        (True, 'own.safetensors')
    """
    is_name = str(path) in shipped_names() and not Path(path).exists()
    return SHIPPED_FOLDER / f"{path}.safetensors" if is_name else path
