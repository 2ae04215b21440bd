"""Long runs keep their memory: nothing grows with the number of frames."""

import gc
import tracemalloc

import pytest

from benchmarks.long_run import run_results


@pytest.mark.long
def test_tracks_alarms_and_files_do_not_grow(tmp_path):
    """Measured by Python's own memory, which is exact where the memory of the process is not."""
    for name in ("warm_up", "short", "long"):
        (tmp_path / name).mkdir()
    run_results(300, tmp_path / "warm_up")
    peaks = {}
    for name, frames in (("short", 1100), ("long", 2200)):
        gc.collect()
        tracemalloc.start()
        result = run_results(frames, tmp_path / name, samples=10)
        peaks[name] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert result["alarms"] > 3 and result["tracks"] >= result["alarms"]
    assert peaks["long"] - peaks["short"] < 60_000
