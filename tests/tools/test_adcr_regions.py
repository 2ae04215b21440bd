import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from scenes import write_scenes

from danet.train import main as train

ROOT = Path(__file__).parents[2]
NANO = ["--model.name", "danet_nano", "--model.classes", "[drone, bird]", "--augmentation.crop", "[64, 64]"]


def run(*words):
    command = [sys.executable, ROOT / "tools/adcr_regions.py", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)


@pytest.mark.long
def test_adcr_regions_writes_table_and_sheet(tmp_path):
    data = write_scenes(tmp_path / "scenes", 24)
    words = ["--data", str(data), "--out", str(tmp_path / "run"), "--quiet", "true", *NANO, "--batch", "8"]
    assert train([*words, "--epochs", "12", "--adcr.weight", "1", "--adcr.levels", "2"]) == 0
    sheet = tmp_path / "sheet.png"
    result = run(tmp_path / "run", data, sheet, "--batches", "3")
    assert result.returncode == 0, result.stderr

    counts, _, head, _, *rows = result.stdout.splitlines()
    targets, labelled, others = (float(word) for word in counts.split() if "." in word)
    assert labelled > 1 and targets * 3 * 0.8 < labelled + others <= targets * 3 + 0.1
    assert head == "| stride in pixels | learned | AUC labelled | AUC others | gradient | cosine |"
    cells = {row.split("|")[1].strip(): [c.strip() for c in row.split("|")[2:-1]] for row in rows}
    assert list(cells) == ["4", "8", "score"]
    for stride in ("4", "8"):
        learned, against_labelled, against_others, gradient, cosine = map(float, cells[stride])
        assert 0.3 < learned < 1.01, "bright and dark spots are easy to distinguish"
        assert 0.8 < against_labelled <= 1 and 0.8 < against_others <= 1
        assert gradient > 0 and -1 <= cosine <= 1
    assert cells["score"][0] == cells["score"][3] == "" and float(cells["score"][2]) > 0.8

    rows = np.array_split(cv2.imread(str(sheet), cv2.IMREAD_GRAYSCALE)[:, :100], 3)
    assert all(np.ptp(row[20:].astype(int)) > 60 for row in rows)


@pytest.mark.long
def test_adcr_regions_rejects_other_folders(tmp_path):
    data = write_scenes(tmp_path / "scenes", 4)
    words = ["--data", str(data), "--out", str(tmp_path / "run"), "--quiet", "true", *NANO, "--batch", "4"]
    assert train([*words, "--epochs", "1"]) == 0
    for folder, error in (("run", "must be a training with --adcr.weight"), ("none", "config.yaml is missing")):
        result = run(tmp_path / folder, data, tmp_path / "sheet.png")
        assert result.returncode == 2 and error in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "sheet.png").exists()
