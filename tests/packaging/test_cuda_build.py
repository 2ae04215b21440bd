"""The CUDA kernels compile without warnings, register spills and local memory, to the expected instructions.

Skipped without nvcc. The instructions are checked only if cuobjdump is installed, too.
"""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from cuda_tools import cuobjdump

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "build_tools"))
from backend import ARCHITECTURES, nvcc  # noqa: E402

sys.path.pop(0)

FILES = sorted(ROOT.glob("csrc/*/*_cuda.cu"))
NAMES = [name.removesuffix("+PTX").replace(".", "") for name in ARCHITECTURES.split(";")]

EXPECTED = {
    "sdc": {
        "forward_kernel<danet::BFloat16, int, 8, 9, false>": ["LDG.E.128", "STG.E.128", "LDS.128"],
        "backward_kernel<danet::BFloat16, int, 8, 9, false, true, false>": ["LDG.E.128", ".ADD.F32x4", "SHFL"],
    },
    "ms_deform_attn": {
        "ms_forward_kernel<danet::BFloat16, float, int, 8>": ["LDG.E.128", "STG.E.128", "LDS.128"],
        "ms_backward_kernel<danet::BFloat16, float, int, 8, true>": ["LDG.E.128", ".ADD.F32x4", "SHFL"],
    },
    "lcdc": {"lcdc_forward_packets<danet::BFloat16": ["LDG.E.128", "STG.E.128", "SHFL"]},
    "softmax_gate": {"softmax_gate_in_registers<false, danet::BFloat16, 8": ["LDG.E.128", "STG.E.128", "SHFL.BFLY"]},
    "rep_conv": {
        "rep_conv_gemm<danet::BFloat16, true": ["HMMA.16816", "LDSM.16.M88.4", "LDGSTS", "STG.E.128", "UCGABAR_ARV"]
    },
    "safem": {
        "safem_kernel<danet::BFloat16": ["HMMA.16816", "LDG.E.128", "LDS.128", "STG.E.128", "UCGABAR_ARV"],
        "sample_sums_kernel<danet::BFloat16": ["HMMA.16816", "LDG.E.128", "UCGABAR_ARV"],
    },
}
"""For each operator: its hot kernels, with instructions that at least one of them must contain on sm_90."""

ABSENT = {"sdc": {"forward_kernel<danet::BFloat16, int, 8, 9, false>": ["PRMT"]}}
"""Instructions that the sums over the taps must not contain, from the barrier after the taps to the first store. PRMT:
packets must be moved as words, not assembled from halves."""


def compile_kernels(file: Path, architecture: str, folder: Path) -> tuple[Path, str]:
    """Compile one file; return the cubin and the report of ptxas."""
    cubin = folder / f"{file.stem}-{architecture}.cubin"
    options = [
        "-std=c++17",
        "-O3",
        "-DUSE_CUDA",
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
        "-Werror",
        "all-warnings",
    ]
    include = Path(torch.__path__[0]) / "include"
    command = [nvcc(), *options, "-cubin", f"-arch=sm_{architecture}", "-isystem", include, "-Xptxas", "-v"]
    done = subprocess.run([*command, file, "-o", cubin], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return cubin, done.stderr


def demangled(text: str) -> str:
    tool = shutil.which("c++filt")
    return subprocess.run([tool], input=text, capture_output=True, text=True).stdout if tool else text


def compilations():
    """Every file for every architecture. Only a file that compiles in a few seconds runs without the mark "long"."""
    for name in NAMES:
        for file in FILES:
            quick = name == "90" and file.parent.name == "softmax_gate"
            marks = [] if quick else [pytest.mark.long]
            yield pytest.param(file, name, id=f"{file.parent.name}-sm_{name}", marks=marks)


@pytest.fixture(scope="module")
def compiled(request, tmp_path_factory):
    """Futures of `compile_kernels` for all selected tests, so that nvcc runs on all cores."""
    folder = tmp_path_factory.mktemp("cubins")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [item.callspec.params for item in request.session.items if item.module is request.module]
        yield {
            (job["file"], job["architecture"]): pool.submit(compile_kernels, job["file"], job["architecture"], folder)
            for job in jobs
        }
        pool.shutdown(cancel_futures=True)


@pytest.mark.skipif(nvcc() is None, reason="no nvcc")
@pytest.mark.parametrize(("file", "architecture"), list(compilations()))
def test_cuda_kernels_compile_without_spills(file, architecture, compiled, record_property):
    operator = file.parent.name
    cubin, report = compiled[file, architecture].result()
    kernels = re.findall(r"Compiling entry function '(\S+)'", report)
    frames = [int(size) for size in re.findall(r"(\d+) bytes stack frame", report)]
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", report)]
    assert kernels and len(kernels) == len(frames) == len(registers)
    names = demangled("\n".join(kernels)).splitlines()
    used = dict(zip(names, registers, strict=True))
    hot = [count for name, count in used.items() if any(key in name for key in EXPECTED[operator])]
    record_property(
        "registers",
        f"{operator:<13} sm_{architecture:<4} {len(kernels):3} kernels, at most {max(registers):3} registers, "
        f"the hot ones {min(hot)} to {max(hot)}, no stack",
    )
    assert [name for name, frame in zip(names, frames, strict=True) if frame] == []
    if architecture == "90" and cuobjdump():
        check_instructions(operator, cubin)


def check_instructions(operator: str, cubin: Path) -> None:
    listing = subprocess.run(["cuobjdump", "-sass", cubin], capture_output=True, text=True, **cuobjdump())
    assert listing.returncode == 0, listing.stderr
    bodies = {}
    for part in listing.stdout.split("Function : ")[1:]:
        name, _, body = part.partition("\n")
        bodies[demangled(name.strip()).strip()] = body
    assert not any(re.search(r"\b(LDL|STL)\b", body) for body in bodies.values())
    for kernel, instructions in EXPECTED[operator].items():
        found = [body for name, body in bodies.items() if kernel in name]
        assert found, (kernel, list(bodies))
        for instruction in instructions:
            assert any(instruction in body for body in found), (kernel, instruction)
        for instruction in ABSENT.get(operator, {}).get(kernel, []):
            sums = [body.partition("BAR.SYNC")[2].partition("STG.")[0] for body in found]
            assert all("LDG.E.128" in body and instruction not in body for body in sums), (kernel, instruction)
