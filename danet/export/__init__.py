"""DANet in other runtimes: ``danet export``, and networks that can be exported by ``torch.export``.

Importing this package does not load torch; its modules and names do.

Example:
    >>> from danet.export import Predictions, export_onnx
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from danet.export.network import Predictions
    from danet.export.onnx_file import export_onnx

__all__ = ["Predictions", "export_onnx"]


def __getattr__(name: str) -> object:
    if name == "Predictions":
        from danet.export.network import Predictions

        return Predictions
    if name == "export_onnx":
        from danet.export.onnx_file import export_onnx

        return export_onnx
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
