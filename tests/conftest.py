"""Fixtures of the whole suite."""

import os
import signal
from pathlib import Path

import pytest
import torch

from danet.ops import info


def pytest_sessionstart() -> None:
    """A broken build must not pass on the reference operators; Ctrl-C must reach the programs that tests start.

    Processes of pytest-xdist share the processors: threads that wait for one another's take ten times as long.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    if (processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))) > 1:
        threads = max(1, (os.cpu_count() or 1) // processes)
        torch.set_num_threads(threads)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # of the programs that tests start
    if info()["operators"] != "compiled":
        pytest.exit(f"the tests need the compiled kernels: {info()['why']}", returncode=1)


def pytest_terminal_summary(terminalreporter) -> None:
    """The table of the CUDA kernels' registers (tests/packaging/test_cuda_build.py), where they were compiled."""
    reports = terminalreporter.getreports("passed")
    rows = [text for report in reports for name, text in report.user_properties if name == "registers"]
    if rows:
        terminalreporter.section("CUDA kernels")
        for row in sorted(rows):
            terminalreporter.write_line(row)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the public infrared data: DANET_DATA, or shared/data beside the repository."""
    folder = Path(os.environ.get("DANET_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set DANET_DATA)")
    return folder
