"""Programs of the CUDA toolkit that tests run."""

import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "build_tools"))
from backend import nvcc

sys.path.pop(0)


def cuobjdump() -> dict | None:
    """Arguments for subprocess.run to run cuobjdump, from the CUDA toolkit or from pip packages; None if not found."""
    packages = [Path(folder) / "nvidia" / "cu13" / "bin" for folder in sys.path]
    path = os.pathsep.join(map(str, [Path(nvcc() or "/").parent, *packages, os.environ.get("PATH", "")]))
    found = shutil.which("cuobjdump", path=path)
    return {"executable": found, "env": {**os.environ, "PATH": path}} if found else None
