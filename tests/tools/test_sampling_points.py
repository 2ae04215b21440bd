import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def draw(tmp_path):
    image = tmp_path / "frame.png"
    cv2.imwrite(str(image), np.random.default_rng(0).integers(60, 90, (64, 96), np.uint8))

    def run(*words):
        words = [word.replace("FRAME", str(image)) for word in words]
        command = [sys.executable, ROOT / "tools/sampling_points.py", tmp_path / "sheet.png", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)

    return run


@pytest.mark.long
def test_sampling_points_draws_targets_by_stages(draw, tmp_path):
    assert (result := draw("FRAME:48,32", "FRAME:0,63")).returncode == 0, result.stderr
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape[0] > 2 * 360 and sheet.shape[1] > 3 * 360
    colourful = np.ptp(sheet.astype(int), axis=2) > 60
    assert all(colourful[:, left : left + 360].any() for left in (4, 368, 732))


@pytest.mark.long
@pytest.mark.parametrize(
    ("target", "error"),
    [("FRAME", "must be IMAGE:X,Y"), ("FRAME:96,1", "the pixel is outside of the image"), ("no.png:1,1", "no.png")],
)
def test_sampling_points_rejects_wrong_targets(draw, tmp_path, target, error):
    result = draw(target)
    assert result.returncode == 2 and error in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "sheet.png").exists()
