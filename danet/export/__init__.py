"""DANet in other runtimes: ``danet export``, and networks that can be exported by ``torch.export``.

``export(ExportOptions("weights.safetensors"))`` does the same as ``danet export weights.safetensors``. Importing this
package does not load torch; its modules and names do.

Example:
    >>> from danet.export import ExportOptions, Predictions, export, export_onnx
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from danet.export.network import Predictions
    from danet.export.onnx_file import export_onnx

__all__ = ["ExportOptions", "Predictions", "export", "export_onnx"]
_MODULES = {"Predictions": "network", "export_onnx": "onnx_file", "ExportOptions": "__main__", "export": "__main__"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"danet.export.{_MODULES[name]}"), name)
