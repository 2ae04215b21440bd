"""Set-up and fixtures of the whole test suite."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from danet.ops import info
from danet.utils.image_io import quiet_opencv


def pytest_sessionstart() -> None:
    """Prepares the process, and stops the run if the compiled kernels are missing."""
    quiet_opencv()  # FFmpeg reads its log level when the first video is opened
    # A shell starts background jobs with SIGINT ignored, and nohup ignores SIGHUP; the programs that tests start would
    # inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # The processes of pytest-xdist share the cores: with one thread per core each, tests are ten times slower.
    if (processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))) > 1:
        threads = max(1, (os.cpu_count() or 1) // processes)
        torch.set_num_threads(threads)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # for the programs that tests start
    if info()["operators"] != "compiled":
        pytest.exit(f"the tests need the compiled kernels: {info()['why']}", returncode=1)


def pytest_terminal_summary(terminalreporter) -> None:
    """Prints the register counts of the CUDA kernels if tests/packaging/test_cuda_build.py compiled them."""
    reports = terminalreporter.getreports("passed")
    rows = [text for report in reports for name, text in report.user_properties if name == "registers"]
    if rows:
        terminalreporter.section("CUDA kernels")
        for row in sorted(rows):
            terminalreporter.write_line(row)


@pytest.fixture(autouse=True)
def keep_number_of_threads() -> Iterator[None]:
    """Restores torch's number of threads after each test: commands set it for their process."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the public infrared datasets; without it, tests that need them are skipped.

    The variable DANET_TEST_DATA names the folder; the default is ../shared/data beside the repository.
    """
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("DANET_TEST_DATA") or default)
    if not folder.is_dir():
        pytest.skip(f"no test data in {folder}; set DANET_TEST_DATA to the folder with the datasets")
    return folder
