import sys

import pytest

from danet.training.log import CsvLog, TrainingLog
from danet.training.options import TrainOptions
from danet.training.state import Progress
from danet.utils.errors import UserError


def test_csv_log_drops_later_and_incomplete_rows(tmp_path):
    path = tmp_path / "metrics.csv"
    log = CsvLog(path, 0)
    for step in (1, 2, 3):
        log.write({"step": step, "loss": step / 3})
    log.close()
    path.write_text(path.read_text() + "4,0.")

    log = CsvLog(path, 2)
    log.write({"step": 3, "loss": 0.5})
    log.close()
    assert path.read_text() == f"step,loss\n1,{1 / 3}\n2,{2 / 3}\n3,0.5\n"

    log = CsvLog(path, 0)  # a new run in the same folder
    log.close()
    assert path.read_text() == ""


def test_tensorboard_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        UserError, match=r"--tensorboard: the package is not installed; run .* -m pip install tensorboard"
    ):
        TrainingLog(TrainOptions(out=str(tmp_path), tensorboard=True), Progress(), total_steps=1, steps_per_epoch=1)
