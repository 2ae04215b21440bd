"""The launches of DCNv4 in the comparison of benchmarks/gpu_model/dcnv4. No checkout of DCNv4 is needed."""

import pytest

from benchmarks.gpu_model.dcnv4 import baseline
from benchmarks.gpu_model.dcnv4.shapes import SHAPES, Shape


def test_launch_of_the_table_is_preferred(tmp_path):
    path = tmp_path / baseline.TABLES
    path.parent.mkdir(parents=True)
    path.write_text('TABLE = {"64x56x56x4x32": [8, 448, 28]}\n\n\nBWDTABLE = {"64x56x56x4x32": [1, 256, 2]}\n')
    tuned = baseline.tuned_launches(tmp_path)
    shape = Shape(64, 56, 56, 4, 32)
    assert baseline.choose_launch(shape, "forward", tuned) == (8, 28)
    assert baseline.choose_launch(shape, "backward", tuned) == (1, 2)


@pytest.mark.parametrize(
    "shape, forward, backward",
    [
        (Shape(64, 14, 14, 16, 32), (8, 8), (1, 1)),
        (Shape(128, 8, 8, 4, 16), (8, 64), (1, 4)),
        (Shape(64, 7, 7, 32, 32), (8, 4), (1, 1)),
    ],
)
def test_launch_without_a_table_has_as_many_threads_as_allowed(shape, forward, backward):
    """dcnv4_func.py: at most 512 threads (256 backward), a number of pixels that divides those of the batch."""
    assert baseline.choose_launch(shape, "forward", {}) == forward
    assert baseline.choose_launch(shape, "backward", {}) == backward


def test_bytes_of_a_shape():
    shape = Shape(2, 3, 4, 5, 16)
    assert shape.offset_channels == 136  # 135, rounded up
    assert shape.bytes("forward") == 2 * 24 * (2 * 80 + 136)
    assert baseline.bytes(shape, "backward") - shape.bytes("backward") == 2 * 24 * 136
    assert len({str(shape) for shape in SHAPES}) == len(SHAPES)
