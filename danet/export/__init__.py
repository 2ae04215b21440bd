"""DANet in other runtimes: ``danet export``, and networks that can be exported by ``torch.export``.

Importing this package does not load torch; its modules and names do.

Example:
    >>> from danet.export import Predictions, export_onnx
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from danet.export.network import Predictions
    from danet.export.onnx_file import export_onnx

__all__ = ["Predictions", "export_onnx"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "network" if name == "Predictions" else "onnx_file"
    return getattr(importlib.import_module(f"danet.export.{module}"), name)
