import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_commands_survive_damaged_files(tmp_path):
    words = ["--cases", "320", "--seed", "7", "--keep", tmp_path / "failed", "--json", tmp_path / "table.json"]
    command = [sys.executable, ROOT / "tools/fuzz_commands.py", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    table = json.loads((tmp_path / "table.json").read_text())["table"]
    assert sum(row["cases"] for row in table.values()) == 320
    assert len(table) >= 15 and sum(row["accepted"] for row in table.values()) > 30
