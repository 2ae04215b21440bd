"""Tiles: every target gives one box of its full size, wherever the borders of the tiles are."""

import itertools

import cv2
import numpy as np
import pytest
import torch

import danet
from danet.boxes import Detections, iou
from danet.config import ModelConfig
from danet.data.video_writer import VideoWriter
from danet.inference.detector import Detector
from danet.inference.tile_merging import Tile, merge_tiles
from danet.inference.tiling import Tiling, parse_tiling
from danet.models import build_model
from danet.tracking.tracker_options import TrackerOptions
from danet.utils.errors import UserError

HEIGHT, WIDTH = 150, 260


class BrightAreas:
    """A network in the sense of ``danet.inference.network_protocol``: its boxes are those of connected bright areas.

    It finds exactly what a tile shows, so that every error of a test is one of the tiles.
    """

    config = ModelConfig(name="danet_nano", classes=["drone"])
    device, dtype, input_dtype = torch.device("cpu"), torch.float32, torch.float32

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def deploy(self, **_: object) -> "BrightAreas":
        return self

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(images.shape))
        return images

    def decode(self, output: torch.Tensor, *, score_threshold: float, **_: object) -> list[Detections]:
        results = []
        for image in output[:, 0].numpy():
            _, _, stats, _ = cv2.connectedComponentsWithStats((image > 1).astype(np.uint8))
            boxes = stats[1:, :4].astype(np.float32)
            boxes[:, 2:] += boxes[:, :2]
            peaks = [image[int(y0) : int(y1), int(x0) : int(x1)].max() for x0, y0, x1, y1 in boxes]
            peaks = [min(float(peak) / 3, 1.0) for peak in peaks]
            found = Detections(torch.from_numpy(boxes), torch.tensor(peaks), torch.zeros(len(peaks), dtype=torch.int64))
            results.append(found[found.scores > score_threshold])
        return results


def picture(*boxes, size=(HEIGHT, WIDTH), dtype=np.uint8):
    image = np.full(size, 100, dtype)
    for x0, y0, x1, y1 in boxes:
        image[y0:y1, x0:x1] = 250
    return image


def detector(**options):
    network = BrightAreas()
    return Detector(network, polarity="white", score_threshold=0.1, **options), network


def found_boxes(found):
    return sorted(found.boxes.round().int().tolist())


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.6])
@pytest.mark.parametrize("size", [(3, 2), (9, 6), (30, 14), (70, 40)])
def test_a_target_on_a_seam_gives_one_box_of_full_size(overlap, size):
    run, _ = detector(tile=64, overlap=overlap)
    columns = sorted({side for t in Tiling((64, 64), overlap).grid(HEIGHT, WIDTH) for side in (t.left, t.right)})[:5]
    for border, shift, row in itertools.product(columns, (0.0, 0.4, 0.97), (61,)):
        x = min(max(round(border - shift * size[0]), 0), WIDTH - size[0])
        box = [x, row, x + size[0], row + size[1]]
        assert found_boxes(run(picture(box))) == [box], f"a target at {box}"


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.6])
def test_neighbouring_targets_stay_apart(overlap):
    run, _ = detector(tile=64, overlap=overlap, max_detections=1000)
    boxes = sorted([x, y, x + 5, y + 4] for x, y in itertools.product(range(1, WIDTH - 6, 9), range(1, HEIGHT - 5, 7)))
    assert found_boxes(run(picture(*boxes))) == boxes


def test_a_cut_box_loses_against_the_whole_box_of_the_neighbouring_tile():
    tiles = [Tile(0, 0, 64, 64), Tile(48, 0, 112, 64)]

    def one(box, score):
        return Detections(torch.tensor([box]), torch.tensor([score]), torch.tensor([0]))

    cut, whole = one([54.0, 10, 64, 20], 0.9), one([6.0, 10, 30, 20], 0.5)
    merged = merge_tiles([cut, whole], tiles, (64, 112), max_detections=9)
    assert merged.boxes.tolist() == [[54.0, 10.0, 78.0, 20.0]] and merged.scores.tolist() == pytest.approx([0.9])
    uncertain = merge_tiles([cut, one([6.0, 10, 30, 20], 0.1)], tiles, (64, 112), max_detections=9)
    assert uncertain.boxes.tolist() == [[54.0, 10.0, 64.0, 20.0]], (
        "a box with a low score does not replace a certain one"
    )


def test_the_score_of_another_class_is_not_taken():
    tiles = [Tile(0, 0, 64, 64), Tile(48, 0, 112, 64)]
    cut_bird = Detections(torch.tensor([[54.0, 10, 64, 20]]), torch.tensor([0.9]), torch.tensor([1]))
    whole_drone = Detections(torch.tensor([[6.0, 10, 30, 20]]), torch.tensor([0.5]), torch.tensor([0]))
    merged = merge_tiles([cut_bird, whole_drone], tiles, (64, 112), max_detections=9)
    assert merged.labels.tolist() == [0] and merged.scores.tolist() == [0.5]


def test_small_boxes_that_differ_by_a_pixel_are_one_target():
    tiles = [Tile(0, 0, 64, 64), Tile(32, 0, 96, 64)]
    left = Detections(torch.tensor([[40.0, 20, 44, 23], [45.0, 20, 49, 23]]), torch.tensor([0.8, 0.7]), torch.zeros(2))
    right = Detections(torch.tensor([[9.0, 20, 13, 24], [13.0, 20, 17, 23]]), torch.tensor([0.6, 0.9]), torch.zeros(2))
    merged = merge_tiles([left, right], tiles, (64, 96), max_detections=9)
    assert merged.scores.tolist() == pytest.approx([0.9, 0.8]), "two targets, each seen by both tiles"
    assert len(merge_tiles([left, right], tiles, (64, 96), max_detections=1)) == 1


def test_tiles_cover_the_frame_and_overlap():
    for (height, width), overlap in itertools.product([(1080, 1920), (64, 65), (333, 64), (129, 2000)], (0, 0.2, 0.9)):
        covered = np.zeros((height, width), bool)
        tiles = Tiling((64, 64), overlap).grid(height, width)
        for left, top, right, bottom in tiles:
            assert (bottom - top, right - left) == (64, 64) and right <= width and bottom <= height
            covered[top:bottom, left:right] = True
        assert covered.all()
        columns = sorted({tile.left for tile in tiles})
        assert all(b - a <= 64 * (1 - overlap) for a, b in itertools.pairwise(columns))


def test_crops_contain_their_targets():
    tiling, rng = Tiling((64, 80)), np.random.default_rng(0)
    for _ in range(200):
        corners = rng.uniform(-5, [300, 200], (rng.integers(1, 4), 2))
        boxes = np.concatenate([corners, corners + rng.uniform(1, 60, corners.shape)], 1)
        crops = tiling.crops(boxes, 200, 300)
        for x0, y0, x1, y1 in np.clip(boxes, 0, [300, 200, 300, 200]):
            shown = np.zeros((200, 300), bool)
            for left, top, right, bottom in crops:
                assert 0 <= left < right <= 300 and 0 <= top < bottom <= 200
                shown[top:bottom, left:right] = True
            assert shown[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))].all()
    assert len(tiling.crops(np.tile([[10.0, 10, 14, 13], [20, 12, 24, 15]], (5, 1)), 200, 300)) == 1
    assert tiling.crops(np.zeros((0, 4)), 200, 300) == []


def test_an_image_that_fits_into_a_tile_is_detected_as_without_tiles():
    torch.manual_seed(0)
    model = build_model(ModelConfig(name="danet_nano", classes=["drone"]))
    image = np.random.default_rng(0).integers(0, 255, (64, 96)).astype(np.uint8)
    run = Detector(model, score_threshold=0.0, deploy=False, dtype=torch.float32)
    expected = run(image)
    for tile in (96, 4000, (64, 96)):
        assert torch.equal(run(image, tile=tile).boxes, expected.boxes)
    assert len(expected) > 5


def test_tiles_are_normalized_by_the_whole_frame():
    """A tile of empty sky would otherwise be stretched to full contrast."""
    run, network = detector(tile=64)
    image = picture([10, 10, 60, 60])
    image[100:, 200:] += np.random.default_rng(0).integers(0, 2, (50, 60)).astype(np.uint8)
    assert found_boxes(run(image)) == [[10, 10, 60, 60]]
    assert run.preprocess([image])[0].shape == (1, 1, HEIGHT, WIDTH) and len(network.shapes) > 3


def test_tiles_are_scaled_to_the_input_size():
    run, network = detector(tile=64, input_size=(96, 128))
    boxes = found_boxes(run(picture([50, 50, 80, 70])))
    assert np.abs(np.array(boxes) - [[50, 50, 80, 70]]).max() <= 1
    assert {shape[2:] for shape in network.shapes} == {(96, 96)}


@pytest.mark.parametrize("size", [(20, 260), (33, 70), (64, 65), (40, 40)])
def test_odd_sizes(size):
    run, _ = detector(tile=(32, 64), overlap=0.3)
    assert found_boxes(run(picture([20, 8, 31, 15], size=size, dtype=np.uint16))) == [[20, 8, 31, 15]]


def test_a_list_of_mixed_sizes_and_an_empty_frame():
    run, _ = detector(tile=64)
    images = [picture([5, 5, 15, 12], size=size) for size in ((32, 40), (200, 70), (200, 70), (60, 400))]
    assert [found_boxes(each) for each in run([*images, picture()])] == [[[5, 5, 15, 12]]] * 4 + [[]]
    assert [found_boxes(each) for each in run.batch(images)] == [[[5, 5, 15, 12]]] * 4


def test_tile_and_overlap_of_a_call():
    run, network = detector()
    image = picture([50, 50, 80, 70])
    assert found_boxes(run(image, tile=64)) == found_boxes(run(image)) == [[50, 50, 80, 70]]
    assert network.shapes[0][2:] == (64, 64) and network.shapes[-1][2:] == (HEIGHT, WIDTH)
    with pytest.raises(ValueError, match=r"overlap needs tile, got overlap 0\.5 without"):
        run(image, overlap=0.5)


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [(16, 0.2, "tile must be one or two integers from 32"), ((64, 64, 64), 0.2, "tile must be"), (64, 0.95, "overlap"),
     ("native", 0.2, "tile must be"), (64, -0.1, "overlap must lie between 0 and 0.9")],
)  # fmt: skip
def test_invalid_tiles_are_errors(tile, overlap, message):
    with pytest.raises(ValueError, match=message):
        parse_tiling(tile, overlap)
    with pytest.raises(ValueError, match=f"Detector: {message}"):
        detector(tile=tile, overlap=overlap)


def test_tiles_agree_in_polarity():
    network = BrightAreas()
    metadata = {"trained_for": {"image_sizes": [[64, 64]] * 2, "pixel_scale": [0.5, 2.0], "polarity": "white"}}
    run = Detector(network, score_threshold=0.1, tile=64, metadata=metadata)
    dark = 350 - picture([50, 50, 80, 70], [200, 100, 220, 110], dtype=np.uint16)
    found = [found_boxes(run(dark)) for _ in range(4)]
    assert found[-1] == [[50, 50, 80, 70], [200, 100, 220, 110]]


def write_clip(path, boxes, size=(HEIGHT, WIDTH)):
    with VideoWriter(path, fps=20, codec="FFV1") as writer:
        for each in boxes:
            writer.write(picture(*each, size=size))
    return path


def test_video_is_searched_completely_every_few_frames(tmp_path):
    boxes = [[(20 + 4 * index, 30, 32 + 4 * index, 36)] for index in range(25)]
    boxes = [each + [(200, 100, 210, 106)] * (index >= 3) for index, each in enumerate(boxes)]
    clip = write_clip(tmp_path / "clip.avi", boxes)
    run, network = detector(tile=64)
    seen = [found_boxes(found) for _, found in run.stream(clip, tile_every=10)]
    assert seen[:3] == [[list(box) for box in each] for each in boxes[:3]]
    assert seen[3:10] == [[list(each[0])] for each in boxes[3:10]], "the second target is found at the next full search"
    assert seen[10:] == [[list(box) for box in each] for each in boxes[10:]]
    tiles = sum(shape[0] for shape in network.shapes)
    assert tiles == 3 * len(Tiling((64, 64)).grid(HEIGHT, WIDTH)) + 9 + 9 * 2 + 4 * 2
    assert [found_boxes(found) for _, found in run.stream(clip, tile_every=1)] == [
        [list(box) for box in each] for each in boxes
    ]
    with pytest.raises(ValueError, match="tile_every must be at least 1, got 0"):
        run.stream(clip, tile_every=0)
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        run.stream(clip, batch=0)


def test_tracker_follows_between_complete_searches(tmp_path):
    boxes = [[(20 + 4 * index, 30, 32 + 4 * index, 36)] for index in range(25)]
    clip = write_clip(tmp_path / "clip.avi", boxes)
    run, network = detector()
    tracker = danet.Tracker(TrackerOptions(camera_motion=False, high_score=0.2, neutral_score=0.1, confirm=1.0))
    tracks = [each for _, _, each in run.stream(clip, tracker=tracker, tile=64, tile_every=100)]
    assert all(len(each) == 1 and each[0].is_detected for each in tracks[3:])
    assert sum(shape[0] for shape in network.shapes) < 15 + 25


def test_a_cut_starts_a_complete_search(tmp_path):
    rng = np.random.default_rng(0)
    scenes = [cv2.resize(rng.integers(0, 90, (8, 13)).astype(np.uint8), (WIDTH, HEIGHT)) for _ in range(2)]
    with VideoWriter(tmp_path / "clip.avi", fps=20, codec="FFV1") as writer:
        for index in range(20):
            frame = scenes[index // 10].copy()
            x = 200 if index >= 10 else 40
            frame[60:68, x : x + 12] = 255
            writer.write(frame)
    run, _ = detector(tile=64)
    tracker = danet.Tracker(TrackerOptions(high_score=0.2, low_score=0.1, neutral_score=0.1, confirm=1.0))
    found = [each for _, each, _ in run.stream(tmp_path / "clip.avi", tracker=tracker, tile_every=100)]
    assert tracker.cuts == 1 and [200, 60, 212, 68] in found_boxes(found[12])


def test_networks_with_earlier_frames_detect_in_tiles(tmp_path):
    """The differences to earlier frames are computed for the whole frame, so that all tiles agree."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(name="danet_nano", classes=["drone"], lags=[0.1], local_contrast=True))
    images = np.tile(np.random.default_rng(0).integers(60, 120, (64, 128)).astype(np.uint8), (4, 1, 1))
    for index, image in enumerate(images):
        image[30:34, 80 + 5 * index : 85 + 5 * index] = 200
    with VideoWriter(tmp_path / "clip.avi", fps=20, codec="FFV1") as writer:
        for image in images:
            writer.write(image)
    run = Detector(model, score_threshold=0.0, tile=64, overlap=0.0, polarity="white", deploy=False)
    *_, (_, found) = run.stream(tmp_path / "clip.avi", tile_every=1)
    tensor, _ = run.preprocess([images[3]], [{0.1: images[1]}])
    assert tensor[:, 2].abs().max() > 0.1, "the difference to the earlier frame is an input"
    with torch.inference_mode():
        output = run.model(tensor[..., 64:])
        (own,) = run.model.decode(output, score_threshold=0.0, iou_threshold=0.5, max_detections=8)
    own = own.boxes[(own.boxes[:, 0] > 10) & (own.boxes[:, 2] < 60)] + torch.tensor([64.0, 0, 64, 0])
    assert len(own) and all(iou(one, found.boxes).max() > 0.99 for one in own)


def test_options_without_tiles_are_errors():
    from danet.evaluation.evaluate_options import EvaluateOptions
    from danet.inference.frame_options import FrameOptions

    tile = {"tile": [64]}
    for options in ({"overlap": 0.5}, {"tile_every": 3}, {**tile, "overlap": 1.0}, {**tile, "tile_every": 0}):
        with pytest.raises(UserError, match=f"--{list(options)[-1]}"):
            FrameOptions(["a.mp4"], **options).check()
    with pytest.raises(UserError, match="--overlap: needs --tile"):
        EvaluateOptions("a.safetensors", "a.json", overlap=0.5)
