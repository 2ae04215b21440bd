"""The emulator finds every seeded bug, and reports nothing for correct kernels."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from emulation.modules import MODES, build, load_module, missing, traced
from emulation.seeded_outcomes import SEEDS, outcomes

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
    "cluster_start": {"check": "report: access to another block before a cluster barrier, when it may not"},
    "cluster_exit": {
        "check": r"report: access to another block that may have exited: shared memory at seeded\.cu:\d+",
        "sanitize": "AddressSanitizer: use-after-poison",
    },
    "cluster_race": {"check": r"report: (access to another block before|race \(write after write\))"},
    "cluster_two_arrivals": {"plain": "error: .*cluster_arrive without a cluster_wait since the last one"},
    "cluster_no_arrival": {"plain": "error: .*cluster_wait without a cluster_arrive"},
    "cluster_rank": {"plain": "error: .*map_shared to a block outside the cluster"},
    "cluster_copy": {"plain": "error: .*asynchronous copy to an address outside the shared arrays"},
    "cluster_deadlock": {"plain": r"error: .*deadlock: .*cluster_wait \(seeded\.cu:\d+\)"},
    "cluster_turns": {"check": r"report: race \(\w+ after \w+\): shared .* by block .*other .* by block"},
    "cluster_size": {"plain": "error: seeded: invalid size of the cluster"},
    "no_clusters": {"plain": "error: seeded: the device has no clusters"},
    "launch_read": {"check": r"report: read before the wait for the previous launch: global .*the previous launch"},
    "launch_write": {"check": "report: write before the wait for the previous launch: global"},
    "launch_no_wait": {"plain": "error: .*a block of a programmatic launch exits without a wait for the previous"},
    "launch_barrier": {"check": "report: read before the wait for the previous launch"},
    "launch_chain": {"check": "report: read before the wait for the previous launch"},
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

FOLDER = Path(__file__).parents[1]
ASAN = ("libasan.so", "libstdc++.so.6")
"""libstdc++ is preloaded too: AddressSanitizer must intercept its exceptions before Python loads it."""

# How many of the four seeds may miss a bug: for single bytes, the checker stores one write per pair of bytes.
MAX_MISSED_SEEDS = {"byte_neighbours": 3}


@pytest.fixture(scope="module")
def seeded() -> dict:
    """The module `seeded` in each mode; its path in mode "sanitize", which needs a process of its own."""
    paths = {mode: build(mode, "seeded") for mode in MODES}
    return {mode: path if mode == "sanitize" else load_module(path) for mode, path in paths.items()}


def run(seeded: dict, mode: str, names: list[str], bug: bool) -> tuple[list[str], str]:
    """The outcomes for each kernel and seed, and what a sanitizer wrote."""
    if mode != "sanitize":
        return [outcome for name in names for outcome in outcomes(seeded[mode], name, bug)], ""
    libraries = [subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip() for name in ASAN]
    environment = {
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=0",
        "LD_PRELOAD": ":".join(libraries),
    }
    command = [sys.executable, "-m", "emulation.seeded_outcomes", seeded[mode], "bug" if bug else "right", *names]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, cwd=FOLDER, timeout=60)
    return done.stdout.splitlines(), done.stderr


@pytest.mark.parametrize("mode", MODES)
def test_seeded_correct_kernels_pass(seeded: dict, mode: str) -> None:
    found, errors = run(seeded, mode, list(BUGS), bug=False)
    assert errors == ""
    assert found == ["ok"] * len(SEEDS) * len(BUGS)


@pytest.mark.parametrize(("bug", "mode"), [(bug, mode) for bug, modes in BUGS.items() for mode in modes])
def test_seeded_bug_is_found(seeded: dict, bug: str, mode: str) -> None:
    found, errors = run(seeded, mode, [bug], bug=True)
    expected = BUGS[bug][mode]
    if expected == "values":
        assert "values" in found, found
    elif not expected.startswith(("error", "report")):
        assert re.search(expected, errors)
    else:
        assert (len(found), errors) == (len(SEEDS), "")
        missed = [outcome for outcome in found if not re.match(expected, outcome)]
        assert len(missed) <= MAX_MISSED_SEEDS.get(bug, 0), missed


def test_seeded_kernels_are_all_tested(seeded: dict) -> None:
    assert seeded["plain"].names() == list(BUGS)


def test_report_names_both_accesses(seeded: dict) -> None:
    module = seeded["check"]
    outcomes(module, "loop_barrier", True)
    report = module.reports()[0]
    assert report.memory == "shared" and report.kind.startswith("race")
    assert re.match(r"seeded\.cu:\d+$", report.source) and re.match(r"seeded\.cu:\d+$", report.other_source)
    assert report.thread.startswith("block (0,0,0) thread") and report.other_thread != report.thread
    module.clear_reports()
    assert module.reports() == []


def test_trace_lists_every_access(seeded: dict) -> None:
    """64 threads write and read shared memory, and write their results to global memory."""
    module = seeded["check"]
    module.settings.seed = 0
    with traced(module) as traces:
        module.run("missing_barrier", False)
    (trace,) = traces
    assert not trace.flags.owndata and trace.base is not None  # the emulator's memory, not a copy
    shared, result = trace[trace["shared"]], trace[~trace["shared"]]
    kinds = shared["kind"]
    assert (kinds == np.repeat([module.WRITE, module.READ], 64)).all()
    assert (trace["bytes"] == 4).all() and (shared["thread"] == np.tile(np.arange(64), 2)).all()
    assert (np.diff(shared["address"][:64]) == 4).all()
    assert (shared["address"][64:] == shared["address"][:64][::-1]).all()
    assert (np.diff(result["address"]) == 4).all() and (result["kind"] == module.WRITE).all()
    assert {module.source_of_site(site)[:10] for site in trace["site"]} == {"seeded.cu:"}
    module.run("missing_barrier", False)
    assert len(module.take_trace()) == 0  # nothing is recorded outside the block


def test_trace_needs_the_checker(seeded: dict) -> None:
    with (
        pytest.raises(RuntimeError, match='traces of memory accesses need the emulator in mode "check"'),
        traced(seeded["plain"]),
    ):
        pass


def test_modules_have_settings_of_their_own(seeded: dict) -> None:
    seeded["plain"].settings.seed, seeded["check"].settings.seed = 3, 4
    assert seeded["plain"].settings.seed == 3
