import json
import math
from pathlib import Path

import numpy as np
import pytest

from danet.data.coco_dataset import ImageRecord
from danet.data.image_domain import ImageDomain
from danet.data.transforms import Augmentation
from danet.utils.errors import UserError

DOMAIN = ImageDomain((256, 320), (256, 320), (0.8, 1.05))


def record(height, width):
    return ImageRecord(Path("a.png"), width, height, np.zeros((0, 4), np.float32), [], np.zeros(0, bool))


@pytest.mark.parametrize("size", [(256, 320), (240, 320), (320, 256), (216, 288)])
def test_fitted_size_leaves_images_of_the_trained_scale(size):
    assert DOMAIN.fitted_size(*size) is None


@pytest.mark.parametrize("size", [(512, 640), (128, 160), (384, 480), (1080, 1920), (1024, 1280), (640, 512)])
def test_fitted_size_gives_the_trained_area_and_keeps_the_aspect(size):
    height, width = DOMAIN.fitted_size(*size)
    assert height * width == pytest.approx(256 * 320 * 0.8 * 1.05, rel=0.02)
    assert width / height == pytest.approx(size[1] / size[0], rel=0.02)
    assert DOMAIN.fitted_size(height, width) is None


def test_fitted_size_of_mixed_training_images_uses_the_nearest():
    domain = ImageDomain((100, 150), (400, 600), (0.9, 1.1))
    assert domain.fitted_size(200, 300) is None and domain.fitted_size(100, 150) is None
    assert math.prod(domain.fitted_size(50, 75)) == pytest.approx(100 * 150, rel=0.05)
    assert math.prod(domain.fitted_size(800, 1200)) == pytest.approx(400 * 600, rel=0.05)


def test_domain_of_training_uses_whole_images_without_outliers():
    records = [record(512, 640)] * 60 + [record(4000, 3000)]
    domain = ImageDomain.of_training(records, Augmentation(crop=(192, 192), scale=(0.5, 2.0)))
    assert domain.smallest == domain.largest == (512, 640) and domain.polarity == "white"
    assert domain.pixel_scale == pytest.approx((2 ** (-1 / 3), 2 ** (1 / 3)), abs=1e-3)
    low, high = ImageDomain.of_training(records, Augmentation.off()).pixel_scale
    assert low < 0.96 and high > 1.04, "images that are nearly of the trained size are not resampled"
    assert ImageDomain.of_training(records, Augmentation(polarity=0.5)).polarity == "any"


def test_domain_metadata_round_trip_and_errors():
    stored = json.loads(json.dumps(DOMAIN.to_metadata()))
    assert ImageDomain.from_metadata(stored) == DOMAIN and ImageDomain.from_metadata({}) is None
    for change in (
        {"image_sizes": None},
        {"image_sizes": [[0, 5], [5, 5]]},
        {"image_sizes": [[10**9, 5], [5, 5]]},
        {"image_sizes": [[1, 2, 3], [5, 5]]},
        {"pixel_scale": [2, 1]},
        {"pixel_scale": [float("nan"), 1]},
        {"pixel_scale": "x"},
        {"polarity": "red"},
        {"polarity": []},
    ):
        with pytest.raises(UserError, match="trained_for must state"):
            ImageDomain.from_metadata({"trained_for": {**stored["trained_for"], **change}})
    with pytest.raises(UserError, match="trained_for must state"):
        ImageDomain.from_metadata({"trained_for": 7})
