import math

import cv2
import pytest

from danet.training.learning_curves import drawable, read_columns, read_steps, smooth, write_curve_pictures
from danet.training.run_folder import LOSS_CURVES, STEPS, VALIDATION_CURVES, VALIDATIONS
from danet.utils.errors import UserError

HEAD = "step,epoch,lr,loss,cls,grad_norm\n"


def test_read_columns_of_a_running_training(tmp_path):
    (tmp_path / STEPS).write_text(f"{HEAD}1,1,0.1,nan,1.5,inf\n2,1,0.1,2.5,1.5,0\n3,1,0.1,2.")
    steps = read_steps(tmp_path)
    assert steps["step"] == [1.0, 2.0] and math.isnan(steps["loss"][0]) and steps["grad_norm"] == [math.inf, 0.0]
    for text in ("", "step,lo", HEAD):
        (tmp_path / STEPS).write_text(text)
        assert read_steps(tmp_path) == {}
    assert read_columns(tmp_path / "missing.csv", ["step"]) == {}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("4,2,0.5,0.1,0.2,0.3\n5,2,0.5,0.1,0.2,0.3\n", "has no column step"),
        (f"{HEAD}inf,1,0.1,2.5,1.5,0\n", "step must be a number of at least 0"),
        (f"{HEAD}1,nan,0.1,2.5,1.5,0\n", "epoch must be a number of at least 0"),
        (f"{HEAD}-1,1,0.1,2.5,1.5,0\n", "step must be a number of at least 0"),
        (f"{HEAD}1e300,1,0.1,2.5,1.5,0\n", "step must be a number of at least 0"),
        (f"{HEAD}1,1,0.1,x,1.5,0\n", "could not convert string to float: 'x'"),
        (f"{HEAD}1,1,0.1\n", "a row has not 6 values"),
        (f"{HEAD}1,1,0.1,2,3,4,5\n", "a row has not 6 values"),
        (f"{HEAD}1,1,0.1,2,3,{'9' * 200_000}\n", "field larger than field limit"),
        (f"{HEAD}1,1,0.1,{'z' * 5000},3,4\n", "could not convert"),
    ],
)
def test_read_columns_refuses_other_content(tmp_path, text, reason):
    (tmp_path / STEPS).write_text(text)
    with pytest.raises(UserError, match=rf"metrics\.csv: not the metrics of a training \(.*{reason}") as error:
        read_steps(tmp_path)
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


def test_smooth_averages_finite_values():
    assert smooth([1.0] * 80)[40] == 1.0
    assert smooth([1.0, math.nan, 3.0]) == pytest.approx([1.0, math.nan, 3.0], nan_ok=True)
    values = smooth([2.0, math.inf, 4.0, 1e308] * 40)
    assert all(math.isfinite(value) for value in values) and values[80] == pytest.approx(3.0, abs=0.7)
    assert drawable([1e-320, 1e308, -math.inf, 2.0]) == pytest.approx([0.0, math.nan, math.nan, 2.0], nan_ok=True)


@pytest.mark.parametrize("value", ["nan", "1e-320", "1e308"])
def test_curves_of_any_numbers_are_drawn(tmp_path, value):
    (tmp_path / STEPS).write_text(HEAD + "".join(f"{step},1,{value},{value},{value},{value}\n" for step in (1, 2)))
    (tmp_path / VALIDATIONS).write_text(f"step,epoch,ap50,f1,precision,recall\n2,1,{value},{value},{value},{value}\n")
    write_curve_pictures(tmp_path)
    assert all(cv2.imread(str(tmp_path / name)).std() > 5 for name in (LOSS_CURVES, VALIDATION_CURVES))
