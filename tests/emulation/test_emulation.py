"""The emulator finds every seeded bug, and reports nothing for correct kernels."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from emulation.emulated import MODES, build, missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

# The kernels of seeded.cu with the outcome that each mode must give, as a regular expression. "values" means wrong
# results with at least one seed, because the order of the threads may hide the bug. All other outcomes must occur with
# every seed. Sanitizers write to stderr.
PLAIN_VALUES = {"plain": "values"}
BUGS: dict[str, dict[str, str]] = {
    "missing_barrier": PLAIN_VALUES
    | {"check": r"report: read of uninitialised memory: shared .* seeded\.cu:\d+ by block"},
    "loop_barrier": {
        "check": r"report: race \((write after read|read after write)\): shared memory at seeded\.cu:\d+ .*"
        r"other at seeded\.cu:\d+ by block \(0,0,0\) thread"
    },
    "uninitialised": PLAIN_VALUES | {"check": "report: read of uninitialised memory"},
    "static_overrun": {"sanitize": "AddressSanitizer: use-after-poison", "check": "report: access outside the arrays"},
    "dynamic_overrun": {"sanitize": "AddressSanitizer: use-after-poison", "check": "report: access outside the arrays"},
    "diverged_barrier": {"plain": r"error: seeded: threads of the block diverged: __syncthreads \(seeded\.cu:\d+\)"},
    "exit_before_barrier": {"plain": r"error: .*(exits while others wait in|after 1 threads of the block have exited)"},
    "deadlock": dict.fromkeys(MODES, r"error: seeded: deadlock: 64 of 64 .*__syncwarp.*__syncthreads"),
    "block_votes": PLAIN_VALUES,
    "race_of_threads": {"check": r"report: race \(\w+ after \w+\): global"},
    "race_of_blocks": {"check": r"report: race \(\w+ after \w+\): global .*another block"},
    "atomic_and_plain": {"check": r"report: race \(\w+ after \w+\): global"},
    "global_read_overrun": {"sanitize": "AddressSanitizer: heap-buffer-overflow"},
    "global_write_overrun": {"sanitize": "AddressSanitizer: heap-buffer-overflow"},
    "last_block": {"check": r"report: race \(read after write\): global .*another block"},
    "last_warp": {"check": r"report: race \(read after write\): global .*another block"},
    "order": PLAIN_VALUES,
    "byte_neighbours": {"check": r"report: race \(write after write\)"},
    "half_neighbours": {"check": r"report: race \(write after write\)"},
    "misaligned_packet": {"sanitize": "runtime error: .*misaligned address"},
    "missing_syncwarp": {"check": r"report: (race|read of uninitialised)"},
    "shuffle_mask": {"plain": "error: .*shuffle from lane 20, which is not in the mask"},
    "shuffle_exited": {"plain": "error: .*shuffle from lane 5, which is not in the mask or has exited"},
    "shuffle_diverged": {"plain": "error: .*lanes of a warp diverged"},
    "part_of_warp": PLAIN_VALUES,
    "copy_wait": PLAIN_VALUES | {"check": "report: touches the destination of a pending asynchronous copy"},
    "copy_barrier": PLAIN_VALUES | {"check": "report: "},
    "copy_touched": {"check": "report: touches the destination of a pending asynchronous copy"},
    "copy_unwaited": dict.fromkeys(MODES, "error: .*exits with asynchronous copies that no wait covers"),
    "copy_alignment": {"plain": "error: .*misaligned asynchronous copy of 16 bytes"},
    "copy_tail": PLAIN_VALUES,
    "matrix_alignment": {"plain": "error: .*misaligned ldmatrix_x4"},
    "matrix_order": PLAIN_VALUES,
    "matrix_order_bfloat16": PLAIN_VALUES,
    "matrix_order_tf32": PLAIN_VALUES,
    "matrix_sync": {"check": "report: "},
    "large_dynamic": {"plain": "error: seeded: too much shared memory"},
    "large_static": {"plain": "error: seeded: too much shared memory"},
    "block_size": {"plain": "error: seeded: invalid size of the block"},
    "grid_size": {"plain": "error: seeded: invalid size of the grid"},
    "no_device": {"plain": "error: seeded: not launched on the current stream of a guarded device"},
    "other_stream": {"plain": "error: seeded: not launched on the current stream of a guarded device"},
    "assert": {"plain": r"error: seeded: assert\(!bug\) fails at .*seeded\.cu:\d+"},
    "trap": {"plain": r"error: seeded: __trap at .*seeded\.cu:\d+"},
    "conversions": PLAIN_VALUES,
}

# How many of the four seeds may miss a bug: for single bytes, the checker stores one write per pair of bytes.
MAX_MISSED_SEEDS = {"byte_neighbours": 3}


@pytest.fixture(scope="module")
def seeded() -> dict[str, Path]:
    return {mode: build(mode, "seeded") for mode in MODES}


def run(program: Path, name: str, kind: str) -> tuple[list[str], str]:
    """The outcome for each seed, and stderr."""
    options = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=0"}
    done = subprocess.run([program, name, kind], capture_output=True, text=True, env=os.environ | options, timeout=60)
    return [line.split(" ", 1)[1] for line in done.stdout.splitlines()], done.stderr


@pytest.mark.parametrize("mode", MODES)
def test_seeded_correct_kernels_pass(seeded: dict[str, Path], mode: str) -> None:
    outcomes, errors = run(seeded[mode], "all", "right")
    assert errors == ""
    assert [outcome for outcome in outcomes if not outcome.endswith(" ok")] == []
    assert len(outcomes) == 4 * len(BUGS)


@pytest.mark.parametrize(("bug", "mode"), [(bug, mode) for bug, modes in BUGS.items() for mode in modes])
def test_seeded_bug_is_found(seeded: dict[str, Path], bug: str, mode: str) -> None:
    outcomes, errors = run(seeded[mode], bug, "bug")
    expected = BUGS[bug][mode]
    if expected == "values":
        assert "values" in outcomes, outcomes
    elif not expected.startswith(("error", "report")):
        assert re.search(expected, errors)
    else:
        assert (len(outcomes), errors) == (4, "")
        missed = [outcome for outcome in outcomes if not re.match(expected, outcome)]
        assert len(missed) <= MAX_MISSED_SEEDS.get(bug, 0), missed


def test_seeded_kernels_are_all_tested(seeded: dict[str, Path]) -> None:
    names = subprocess.run([seeded["plain"], "list"], capture_output=True, text=True, check=True).stdout.split()
    assert names == list(BUGS)
