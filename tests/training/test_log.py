import resource
import sys

import pytest

from danet.training.log import CsvLog, TrainingLog
from danet.training.options import TrainOptions
from danet.training.state import Progress
from danet.utils.errors import FaultError, UserError


def write(path, step, *rows):
    """Opens a log that is resumed at ``step``, and writes rows of a step and a loss."""
    log = CsvLog(path, step)
    for number, loss in rows:
        log.write({"step": number, "loss": loss})
    log.close()
    return path.read_text()


def test_csv_log_drops_later_and_incomplete_rows(tmp_path):
    path = tmp_path / "metrics.csv"
    write(path, 0, *((step, step / 3) for step in (1, 2, 3)))
    path.write_text(path.read_text() + "4,0.")

    assert write(path, 2, (3, 0.5)) == f"step,loss\n1,{1 / 3}\n2,{2 / 3}\n3,0.5\n"
    assert write(path, 0) == ""  # a new run in the same folder


@pytest.mark.parametrize("content", ["", "step,lo", "step,loss\n"])
def test_csv_log_writes_the_header_of_an_empty_file(tmp_path, content):
    """A validation log is empty until the first validation, however often the run is resumed."""
    path = tmp_path / "validation.csv"
    path.write_text(content)
    assert write(path, 4, (8, 0.5)) == "step,loss\n8,0.5\n"


def test_csv_log_repairs_a_lost_header(tmp_path):
    path = tmp_path / "validation.csv"
    path.write_text("4,0.5\n8,0.25\n12,0.1\n")
    assert write(path, 8, (12, 0.125)) == "step,loss\n4,0.5\n8,0.25\n12,0.125\n"


@pytest.mark.parametrize("step", ["²", "٣", "9" * 5000, "-1", "1e3", "", "nan"])
def test_csv_log_drops_rows_whose_step_is_no_number(tmp_path, step):
    path = tmp_path / "metrics.csv"
    path.write_text(f"step,loss\n1,0.5\n{step},0.25\n2,0.125\n", encoding="utf-8")
    assert write(path, 10) == "step,loss\n1,0.5\n2,0.125\n"


def test_csv_log_refuses_other_columns(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,other\n1,0.5\n")
    with pytest.raises(UserError, match="has the columns step,other, this run writes step,loss; move the file away"):
        write(path, 1, (2, 0.5))


def test_csv_log_on_a_full_disk(tmp_path):
    path = tmp_path / "metrics.csv"
    log = CsvLog(path, 0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30, limits[1]))
    try:
        with pytest.raises(FaultError, match=r"metrics\.csv: cannot be written \(File too large\)"):
            for step in range(1, 9):
                log.write({"step": step, "loss": 0.5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.close()
    assert write(path, 9).startswith("step,loss\n1,0.5\n2,0.5\n")


def test_training_log_goes_on_without_its_terminal(tmp_path, monkeypatch):
    class Closed:
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

        def flush(self):
            pass

    monkeypatch.setattr(sys, "stdout", Closed())
    with TrainingLog(TrainOptions(out=str(tmp_path)), Progress(), total_steps=2, steps_per_epoch=1) as log:
        for step in (1, 2):
            log.step(step, {"loss": 0.5}, 0.1, 1.0)
            log.end_epoch(step, 0.1, None)
    assert (tmp_path / "metrics.csv").read_text().count("\n") == 3


def test_training_log_records_a_validation_within_an_epoch(tmp_path):
    options = TrainOptions(out=str(tmp_path), quiet=True)
    with TrainingLog(options, Progress(), total_steps=8, steps_per_epoch=4) as log:
        assert log.validated_step is None
        log.validation(4, {"ap50": 0.5})
        log.validation(5, {"ap50": 0.5})
        assert log.validated_step == 5
    assert (tmp_path / "validation.csv").read_text() == "step,epoch,ap50\n4,1,0.5\n5,1.25,0.5\n"
    with TrainingLog(options, Progress(5, 4), total_steps=8, steps_per_epoch=4) as log:
        assert log.validated_step == 4


def test_tensorboard_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        UserError, match=r"--tensorboard: the package is not installed; run .* -m pip install tensorboard"
    ):
        TrainingLog(TrainOptions(out=str(tmp_path), tensorboard=True), Progress(), total_steps=1, steps_per_epoch=1)
