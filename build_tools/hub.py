"""Lays the built operators out as the `kernels` hub loads them: python build_tools/hub.py build/hub

    build/hub/build/torch-stable-abi210-cpu-x86_64-linux/    danet/ops with its library, and metadata.json
    build/hub/build/torch-stable-abi210-cu130-x86_64-linux/  the same with the CUDA library, where that was built

`kernels.get_local_kernel(Path("build/hub"))` loads it; uploaded as it is, it is a repository of the hub.
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
"""What CMakeLists.txt asks for (TORCH_TARGET_VERSION)."""

VERSION = 1
"""Of the hub's repository; a larger one where a call that worked works no more."""

CPU, CUDA = "libdanet.so", "libdanet_cuda.so"


def assemble(folder: Path, libraries: Path = OPS) -> list[Path]:
    """Writes a variant for each backend that is built, in the place of old ones; returns their folders."""
    if not (libraries / CPU).exists():
        raise SystemExit(f"danet: {libraries / CPU} is missing; build it with: make kernels")
    shutil.rmtree(folder / "build", ignore_errors=True)
    variants = [_variant(folder, "cpu", {"type": "cpu"}, [libraries / CPU])]
    if (libraries / CUDA).exists():
        version, architectures = _facts_of(libraries / CUDA)
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
        "id": f"_danet_{backend['type']}_{digest[:7]}",  # what the module is called
        "version": VERSION,
        "license": "MIT",
        "python-depends": [],
        "backend": backend,
    }
    (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
    return variant


def relative(source: str) -> str:
    """The imports of danet.ops within itself as relative ones: on the hub the package has another name."""
    source = re.sub(r"^from danet\.ops import ", "from . import ", source, flags=re.MULTILINE)
    return re.sub(r"^from danet\.ops\.", "from .", source, flags=re.MULTILINE)


def _facts_of(library: Path) -> tuple[str, list[str]]:
    """CUDA's version, and the architectures as TORCH_CUDA_ARCH_LIST has them; read, since it may not load here."""
    facts = re.search(rb"danet_cuda_facts:([\d.]+):([\w,-]+)\0", library.read_bytes())
    if facts is None:
        raise SystemExit(f"danet: {library} does not say what it was built with; build it anew: make kernels")
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
