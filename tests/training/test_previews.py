import numpy as np
import torch
from scenes import write_scenes

from danet.data.loader import DISTRACTOR, DetectionDataset, Sample
from danet.training.previews import COLUMNS, SHOWN_SAMPLES, label_figure, sample_sheet
from danet.utils.drawing import PALETTE, UNLABELLED_COLOR


def has_color(image, color):
    return (np.abs(image.astype(int) - color).max(axis=2) < 12).any()


def test_sample_sheet_colors_tell_classes_ignored_and_background():
    boxes = torch.tensor([[10.0, 10.0, 30.0, 20.0]])
    images = torch.zeros(1, 48, 64)

    def body(label, ignore):
        sheet = sample_sheet([Sample(images, boxes, torch.tensor([label]), torch.tensor([ignore]))], ["drone", "bird"])
        return sheet[-230:]  # without the legend

    expected = {(0, False): PALETTE[0], (1, False): PALETTE[1], (0, True): PALETTE[2], (DISTRACTOR, True): PALETTE[2]}
    expected[DISTRACTOR, False] = UNLABELLED_COLOR
    for case, color in expected.items():
        drawn = body(*case)
        assert has_color(drawn, color)
        assert not any(has_color(drawn, other) for other in {*expected.values()} - {color})


def test_sample_sheet_arranges_samples_of_any_size():
    none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool)
    samples = [Sample(torch.randn(3, 700, 500), *none)] * SHOWN_SAMPLES
    sheet = sample_sheet(samples, ["drone"], channels=3)
    assert COLUMNS * 220 < sheet.shape[1] < COLUMNS * 340 and sheet.std() > 5


def test_sample_sheet_shows_further_channels_beside_the_image():
    none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool)
    image = torch.stack([torch.full((64, 64), value) for value in (-1.0, 0.0, 1.0)])
    sheet = sample_sheet([Sample(image, *none)], ["drone"])
    shown = {tuple(color) for color in sheet.reshape(-1, 3).tolist()}
    assert {(63, 63, 63), (127, 127, 127), (191, 191, 191)} <= shown


def test_label_figure_counts_boxes(tmp_path):
    dataset = DetectionDataset([str(write_scenes(tmp_path / "scenes", 12))], ["drone"])
    by_class, _, _, by_image = label_figure(dataset).axes
    names = [name for record in dataset.records for name in record.names]
    shown = dict(zip([text.get_text() for text in by_class.get_yticklabels()], by_class.patches, strict=True))
    assert {name: bar.get_width() for name, bar in shown.items()} == {
        name: names.count(name) for name in ("drone", "bird")
    }
    assert "brown: not a class" in by_class.get_title()
    assert sum(bar.get_height() for bar in by_image.patches) == 12
