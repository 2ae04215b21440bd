"""`python -m emulation.program` runs CUDA programs that are not part of this project."""

import subprocess
import sys

import pytest

from emulation.modules import ROOT, missing
from emulation.program import UnsupportedSource, translated

EXAMPLE = ROOT / "examples/cuda/block_sum.cu"


@pytest.mark.parametrize(
    "source, expected",
    [
        ("f<<<4, 32>>>(a, b);", "::emulation::configure(f, 4, 32)(a, b);"),
        (
            "g<int, 8><<<dim3(2, 3), n / 2, 0, stream>>>();",
            "::emulation::configure(g<int, 8>, dim3(2, 3), n / 2, 0, stream)();",
        ),
        ("x <<= 3; y = a << 2 >> 1;", "x <<= 3; y = a << 2 >> 1;"),
        ("__shared__ float a[4][32 + 1];", "EMULATION_SHARED(a, float[4][32 + 1]);"),
        (
            "__shared__ unsigned int n, list[8];",
            "EMULATION_SHARED(n, unsigned int); EMULATION_SHARED(list, unsigned int[8]);",
        ),
        ("__shared__ Pair<int, float> p;", "EMULATION_SHARED(p, Pair<int, float>);"),
        (
            "extern __shared__ float rows[];",
            "float* rows = static_cast<float*>(::emulation::dynamic_shared());",
        ),
        ("// f<<<1, 1>>>(a)\nx;", "                 \nx;"),
        ('puts("// no comment");', 'puts("// no comment");'),
    ],
)
def test_translated(source, expected):
    assert translated(source) == expected


@pytest.mark.parametrize(
    "source, message",
    [
        ('int a;\nasm volatile("bar.sync 0;");', r"line 2: asm volatile\( is not supported"),
        ("namespace cg = cooperative_groups;", "line 1: cooperative_groups is not supported"),
        ("\n\n(*kernel)<<<1, 2>>>(x);", r"line 3: a launch that is not kernel<<<"),
        ("__shared__ float (*rows)[4];", r"__shared__ float \(\*rows\)\[4\]; is not supported"),
    ],
)
def test_unsupported_source(source, message):
    with pytest.raises(UnsupportedSource, match=f"^{message}"):
        translated(source)


def run(*arguments):
    command = [sys.executable, "-m", "emulation.program", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "tests")


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_example_and_its_race():
    right = run(EXAMPLE)
    assert right.returncode == 0, right.stderr
    assert right.stdout.count("sum 5000, expected 5000") == 3 and "seed 7: passed" in right.stdout
    wrong = run(EXAMPLE, "-D", "WITHOUT_BARRIER", "--seeds", "0")
    assert wrong.returncode == 1
    assert "report: race (" in wrong.stderr and "block_sum.cu:" in wrong.stderr
    assert "seed 0: failed with exit code 1" in wrong.stdout


def test_errors(tmp_path):
    assert "missing.cu: no such file" in run("missing.cu").stderr
    source = tmp_path / "cooperative.cu"
    source.write_text("#include <cooperative_groups.h>\n")
    failed = run(source)
    assert failed.returncode == 1
    assert failed.stderr.strip() == f"emulation.program: {source}: line 1: cooperative_groups is not supported"
