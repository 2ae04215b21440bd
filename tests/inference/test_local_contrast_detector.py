import cv2
import numpy as np
import pytest
import torch
from detections import TRUTH, record

from danet.data.coco_dataset import ImageRecord, write_coco
from danet.evaluate import main
from danet.inference.local_contrast_detector import LocalContrastDetector
from danet.inference.predict import predict
from danet.losses.local_contrast import CELLS, find_peaks, local_contrast, significance


def by_loops(image: np.ndarray, cells) -> np.ndarray:
    """Evaluates the formula at every pixel by loops."""
    height, width = image.shape
    best = np.zeros(image.shape)
    for cell in cells:
        half = cell // 2

        def mean(y, x, half=half):
            return image[max(y - half, 0) : y + half + 1, max(x - half, 0) : x + half + 1].mean()

        for y in range(height):
            for x in range(width):
                rings = {1: [], 2: []}
                for dy in range(-2, 3):
                    for dx in range(-2, 3):
                        place = y + dy * cell, x + dx * cell
                        if (dy, dx) != (0, 0) and 0 <= place[0] < height and 0 <= place[1] < width:
                            rings[max(abs(dy), abs(dx))].append(mean(*place))
                middle = mean(y, x)
                for sign in (1, -1):
                    gaps = [min(sign * (middle - other) for other in rings[ring]) for ring in (1, 2)]
                    best[y, x] = max(best[y, x], max(gaps[0], 0) * max(gaps[1], 0))
    return np.sqrt(best)


def test_local_contrast_matches_its_definition():
    rng = np.random.default_rng(0)
    images = rng.normal(0, 1, (2, 1, 26, 31))
    contrast, side = local_contrast(torch.from_numpy(images), (3, 5))
    for image, found in zip(images, contrast.numpy(), strict=True):
        np.testing.assert_allclose(found, by_loops(image[0], (3, 5)), atol=1e-5)
    assert contrast.dtype == torch.float32 and set(side.unique().tolist()) == {0.0, 3.0, 5.0}
    assert torch.equal(side > 0, contrast > 0)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("size", [3, 7, 15])
def test_local_contrast_responds_to_spots_but_not_to_edges(sign, size):
    image = torch.zeros(1, 1, 128, 160)
    image[..., :40] = 5.0  # an edge, stronger than the spot
    image[..., 20, :] += 4.0 * sign  # a line
    image[..., 80 - size // 2 : 81 + size // 2, 110 - size // 2 : 111 + size // 2] += sign
    contrast, side = local_contrast(image)
    values, y, x = find_peaks(contrast, 3)
    assert values[0, 0] == pytest.approx(1.0, abs=1e-5) and side[0, y[0, 0], x[0, 0]] == size
    assert abs(y[0, 0] - 80) <= 1 and abs(x[0, 0] - 110) <= 1
    assert values[0, 1] < 0.5


def test_local_contrast_at_borders_and_in_constant_images():
    image = torch.zeros(1, 1, 64, 64)
    image[..., :3, :3] = 1.0
    contrast, _ = local_contrast(image)
    assert contrast[0, 1, 1] == pytest.approx(1.0)  # cells beyond the border are ignored
    for size in ((64, 64), (1, 1), (3, 40), (16, 15)):
        contrast, side = local_contrast(torch.full((1, 3, *size), 7.0))
        assert not contrast.any() and not side.any()
        assert significance(contrast).eq(0).all()
        assert find_peaks(contrast, 5)[0].shape == (1, min(5, size[0] * size[1]))
    assert torch.isfinite(local_contrast(torch.randn(2, 1, 76, 75), CELLS)[0]).all()


def scene(rng, spots, size=(96, 128)):
    """Smooth noise with spots of 5 x 5 pixels at (y, x)."""
    image = 90 + 8 * cv2.GaussianBlur(rng.normal(0, 8, size), (0, 0), 8) + rng.normal(0, 1, size)
    for y, x in spots:
        image[y - 2 : y + 3, x - 2 : x + 3] += 70
    return image.clip(0, 255).astype(np.uint8)


@pytest.fixture
def data(tmp_path):
    """Two images with boxes of 12 x 8 pixels around their spots; and the json."""
    rng = np.random.default_rng(0)
    records = []
    for index, spots in enumerate(([(30, 40), (60, 90)], [(50, 64)])):
        path = tmp_path / f"{index}.png"
        cv2.imwrite(str(path), scene(rng, spots))
        boxes = np.array([(x + 0.5 - 6, y + 0.5 - 4, x + 0.5 + 6, y + 0.5 + 4) for y, x in spots], np.float32)
        names = ["drone", "bird"][: len(spots)]
        records.append(ImageRecord(path, 128, 96, boxes, names, np.zeros(len(spots), bool), f"v{index}", 0, None))
    write_coco(tmp_path / "annotations.json", records, ["drone", "bird"])
    return records, tmp_path / "annotations.json"


def test_calibrate_sets_boxes_to_the_annotated_size(data):
    records, _ = data
    detector = LocalContrastDetector("drone")
    assert detector.box_size == (1.0, 1.0)
    detector.calibrate([record([TRUTH], ["bird"])])  # no target to measure
    assert detector.box_size == (1.0, 1.0)
    detector.calibrate(records)
    assert detector.box_size == pytest.approx((12 / 5, 8 / 5))
    predictions, _ = predict(detector, records, quiet=True)
    for each, (boxes, scores, labels) in zip(records, predictions, strict=True):
        assert scores.dtype == torch.float32 and (scores.diff() <= 0).all() and not labels.any()
        best = boxes[: len(each.boxes)].numpy()
        order = np.lexsort(best.T[:1])
        np.testing.assert_allclose(best[order], each.boxes[np.argsort(each.boxes[:, 0])], atol=1.0)


def test_evaluate_runs_the_local_contrast_detector(data, tmp_path, capsys):
    path = str(data[1])
    out = ["--out", str(tmp_path / "out"), "--quiet"]
    assert main(["local_contrast", path, "--target", "drone", *out]) == 0
    assert (tmp_path / "out" / "pr_curve.png").exists()
    assert main(["local_contrast", path, *out]) == 2
    assert "--target: name the class that local_contrast is to find" in capsys.readouterr().err
