"""Assembles the built operators in the layout of the `kernels` hub: python build_tools/hub.py build/hub

    build/hub/build/torch-stable-abi210-cpu-x86_64-linux/    danet/ops with its library, and metadata.json
    build/hub/build/torch-stable-abi210-cu130-x86_64-linux/  the same with the CUDA library, if it was built

`kernels.get_local_kernel(Path("build/hub"))` loads it. Uploaded unchanged, the folder is a repository of the hub.
"""

import hashlib
import json
import platform
import re
import shutil
import sys
from pathlib import Path

OPS = Path(__file__).resolve().parents[1] / "danet/ops"

ABI = "torch-stable-abi210"
"""The stable ABI that CMakeLists.txt builds for (TORCH_TARGET_VERSION)."""

VERSION = 1
"""Version of the hub repository; increase it with every incompatible change of the operators."""

CPU, CUDA = "libdanet.so", "libdanet_cuda.so"


def assemble(folder: Path, libraries: Path = OPS) -> list[Path]:
    """Write one variant per built backend, replacing older ones, and return their folders."""
    if not (libraries / CPU).exists():
        raise SystemExit(f"danet: {libraries / CPU} is missing; build it with: make kernels")
    shutil.rmtree(folder / "build", ignore_errors=True)
    variants = [_variant(folder, "cpu", {"type": "cpu"}, [libraries / CPU])]
    if (libraries / CUDA).exists():
        version, architectures = _cuda_facts(libraries / CUDA)
        backend = {"type": "cuda", "archs": architectures}
        major, minor = version.split(".")[:2]
        variants.append(_variant(folder, f"cu{major}{minor}", backend, [libraries / CPU, libraries / CUDA]))
    return variants


def _variant(folder: Path, name: str, backend: dict, libraries: list[Path]) -> Path:
    system = f"{platform.machine()}-{platform.system().lower()}"
    variant = folder / "build" / f"{ABI}-{name}-{system}"
    variant.mkdir(parents=True)
    for source in sorted(OPS.glob("*.py")):
        if source.name != "__main__.py":
            (variant / source.name).write_text(relative(source.read_text()))
    for library in libraries:
        shutil.copy2(library, variant)
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(variant.iterdir()))).hexdigest()
    metadata = {
        "name": "danet",
        "id": f"_danet_{backend['type']}_{digest[:7]}",  # the name of the module
        "version": VERSION,
        "license": "MIT",
        "python-depends": [],
        "backend": backend,
    }
    (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
    return variant


def relative(source: str) -> str:
    """Make the imports within danet.ops relative: on the hub the package has another name."""
    source = re.sub(r"^from danet\.ops import ", "from . import ", source, flags=re.MULTILINE)
    return re.sub(r"^from danet\.ops\.", "from .", source, flags=re.MULTILINE)


def _cuda_facts(library: Path) -> tuple[str, list[str]]:
    """The library's CUDA version, and its architectures as in TORCH_CUDA_ARCH_LIST.

    Reads them from the file (csrc/common/cuda_info.cpp), because the library may not load on this machine.
    """
    facts = re.search(rb"danet_cuda_facts:([\d.]+):([\w,-]+)\0", library.read_bytes())
    if facts is None:
        raise SystemExit(f"danet: {library} holds no build information; rebuild it with: make kernels")
    version, architectures = (fact.decode() for fact in facts.groups())
    names = []
    for digits, specific, real in re.findall(r"(\d+)(a?)(-real)?", architectures):
        names.append(f"{digits[:-1]}.{digits[-1]}{specific}" + ("" if real else "+PTX"))
    return version, names


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python build_tools/hub.py FOLDER")
    for written in assemble(Path(sys.argv[1])):
        print(written)
