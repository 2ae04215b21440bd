"""Fixtures of the whole suite."""

import os
import signal
from pathlib import Path

import pytest

from danet.ops import info


def pytest_sessionstart() -> None:
    """A broken build must not pass on the reference operators; Ctrl-C must reach the programs that tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    if info()["operators"] != "compiled":
        pytest.exit(f"the tests need the compiled kernels: {info()['why']}", returncode=1)


def pytest_terminal_summary(terminalreporter) -> None:
    """The table of the CUDA kernels' registers (tests/test_cuda_build.py), where they were compiled."""
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
