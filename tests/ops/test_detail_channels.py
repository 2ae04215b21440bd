"""The operator detail_channels, which danet.data.temporal.extra_channels calls, against the same in OpenCV."""

import itertools

import numpy as np
import pytest
import torch

from danet.data import temporal
from danet.ops import library

pytestmark = pytest.mark.skipif(library.WHY_NOT is not None, reason="needs the compiled operators")

SIZES = [(64, 80), (37, 41), (130, 17), (5, 7), (1, 1), (1, 30), (30, 1)]
FILTERS = {
    "smoothing": [0.25, 0.5, 0.25],
    "detail_size": 5,
    "neighborhood_size": 7,
    "units": 0.5,
    "limit": 4.0,
    "min_deviation": 0.1,
}


def frames_of(size, dtype, count=4):
    """Random frames ``[count, H, W]`` with values up to the largest one of the dtype."""
    frames = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (count, *size), endpoint=True)
    frames[:, size[0] // 2 :] //= 40  # the lower half has little contrast
    return frames.astype(dtype)


def run(image, past, **changes):
    options = {**FILTERS, "with_image": True, **changes}
    return torch.ops.danet.detail_channels(image, past, *options.values())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_extra_channels_equals_its_reference(size, dtype):
    image, *past = frames_of(size, dtype)
    span = np.iinfo(dtype).max / 3
    for frames, with_local_contrast in itertools.product(
        ([], past[:1], past, [None, *past[1:]], [None] * 3), (False, True)
    ):
        options = {"with_local_contrast": with_local_contrast}
        channels = temporal.extra_channels(image, frames, span, **options)
        expected = temporal._extra_channels_reference(image, frames, span, **options)
        assert channels.dtype == np.float32
        np.testing.assert_allclose(channels, expected, rtol=0, atol=3e-4)


@pytest.mark.parametrize("size", [(200, 320), (12, 320), (3, 4000)])
def test_results_do_not_depend_on_the_number_of_threads(size):
    image, *past = (torch.from_numpy(frame) for frame in frames_of(size, np.uint16))
    past[1] = torch.empty(0)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(run(image, past))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("radii", [(0, 0, 0), (1, 0, 3), (5, 2, 20), (0, 31, 8), (127, 127, 127)])
def test_any_size_of_the_filters(radii):
    smoothing_radius, detail_radius, neighborhood_radius = radii
    smoothing = np.random.default_rng(1).random(2 * smoothing_radius + 1)
    smoothing = (smoothing + smoothing[::-1]) / smoothing.sum() / 2
    image = frames_of((40, 50), np.uint8)[0]
    channel = run(
        torch.from_numpy(image),
        [],
        smoothing=smoothing.tolist(),
        detail_size=2 * detail_radius + 1,
        neighborhood_size=2 * neighborhood_radius + 1,
    )[0]

    def filtered(values, weights):
        radius = len(weights) // 2
        padded = np.pad(values, radius, mode="reflect")
        rows = np.apply_along_axis(np.convolve, 0, padded, weights, "valid")
        return np.apply_along_axis(np.convolve, 1, rows, weights, "valid")

    def mean(radius):
        return np.full(2 * radius + 1, 1 / (2 * radius + 1))

    values = image.astype(np.float64)
    details = filtered(values, smoothing) - filtered(values, mean(detail_radius))
    deviation = np.sqrt(filtered(details**2, mean(neighborhood_radius)))
    expected = 0.5 * details / (deviation + 0.1 + np.abs(details) * 0.5 / 4.0)
    np.testing.assert_allclose(channel, expected, rtol=0, atol=3e-4)


def test_extra_channels_takes_any_layout_and_read_only_frames(recwarn):
    image, past, *_ = frames_of((64, 96), np.uint8)
    expected = temporal.extra_channels(image, [past], 60.0, with_local_contrast=True)
    wide = np.zeros((64, 192), np.uint8)
    wide[:, ::2] = past
    read_only = image.copy()
    read_only.flags.writeable = False
    channels = temporal.extra_channels(read_only, [wide[:, ::2]], 60.0, with_local_contrast=True)
    np.testing.assert_array_equal(channels, expected)
    mirrored = temporal.extra_channels(image[:, ::-1], [past[:, ::-1]], 60.0, with_local_contrast=True)
    np.testing.assert_allclose(mirrored[..., ::-1], expected, rtol=0, atol=3e-4)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": torch.zeros(4, 4)}, "image must be"),
        ({"image": torch.zeros(1, 4, 4, dtype=torch.uint8)}, "image must be"),
        ({"image": torch.zeros(0, 4, dtype=torch.uint8)}, "image must be"),
        ({"past": [torch.zeros(4, 5, dtype=torch.uint8)]}, "must be like the image"),
        ({"past": [torch.zeros(4, 4, dtype=torch.uint16)]}, "must be like the image"),
        ({"smoothing": []}, "must be odd"),
        ({"smoothing": [0.5, 0.5]}, "must be odd"),
        ({"detail_size": 4}, "detail_size must be odd"),
        ({"neighborhood_size": 257}, "neighborhood_size must be odd, from 1 to 255, got 257"),
        ({"limit": 0.0}, "must be positive"),
        ({"min_deviation": float("nan")}, "must be positive"),
    ],
)
def test_wrong_arguments_are_refused(changes, message):
    arguments = {"image": torch.zeros(4, 4, dtype=torch.uint8), "past": [], **changes}
    with pytest.raises(RuntimeError, match=message):
        run(arguments.pop("image"), arguments.pop("past"), **arguments)
