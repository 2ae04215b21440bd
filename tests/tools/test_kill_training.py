import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_kill_training_resumes_exactly(tmp_path):
    words = ["--kills", "4", "--seed", "3", "--epochs", "6", "--longest", "2", "--json", str(tmp_path / "table.json")]
    command = [sys.executable, ROOT / "tools/kill_training.py", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["kills"] == 4 and table["exact"] == table["trainings"] >= 1
    assert table["broken_files"] == table["differences"] == []
