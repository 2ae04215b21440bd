from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scenes import write_scenes

from danet.data.coco_dataset import ImageRecord, load_coco, write_coco
from danet.data.epoch_sampler import EpochSampler
from danet.data.loader import (
    MINIMUM_SIZE,
    DataSource,
    DetectionDataset,
    Sample,
    collate,
    load_source,
    make_loader,
)
from danet.data.transforms import Augmentation
from danet.utils.errors import UserError


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return str(write_scenes(tmp_path_factory.mktemp("data") / "scenes", 6))


@pytest.fixture
def mixed(tmp_path):
    """A dataset of one image with a uav, a bird and a cloud."""
    cv2.imwrite(str(tmp_path / "a.png"), np.full((40, 60), 9, np.uint8))
    boxes = np.array([[1, 2, 11, 12], [20, 5, 26, 9], [0, 0, 60, 20]], np.float32)
    record = ImageRecord(tmp_path / "a.png", 60, 40, boxes, ["uav", "bird", "cloud"], np.zeros(3, bool))
    write_coco(tmp_path / "annotations.json", [record], ["uav", "bird", "cloud"])
    return str(tmp_path / "annotations.json")


def equal(a: Sample, b: Sample) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_dataset_maps_names_to_labels(mixed):
    source = DataSource(mixed, class_map={"uav": "drone", "cloud": "ignore"})
    sample = DetectionDataset([source], ["drone"])[0, 0]
    assert sample.labels.tolist() == [0, -1, -1]
    assert sample.ignore.tolist() == [False, False, True]
    assert sample.boxes.tolist() == [[1, 2, 11, 12], [20, 5, 26, 9], [0, 0, 60, 20]]
    assert sample.image.shape == (1, 40, 60) and sample.image.dtype == torch.float32
    assert (sample.labels.dtype, sample.ignore.dtype, sample.boxes.dtype) == (torch.int64, torch.bool, torch.float32)

    both = DetectionDataset([DataSource(mixed)], ["bird", "uav"])[0, 0]
    assert both.labels.tolist() == [1, 0, -1]


def test_dataset_plain_index_is_epoch_0(scenes):
    dataset = DetectionDataset([scenes], ["drone"], augmentation=Augmentation(crop=(48, 48)))
    assert equal(dataset[0], dataset[0, 0]) and equal(dataset[-1], dataset[0, 5])
    assert len(list(dataset)) == 6  # an IndexError ends the iteration
    for index in (6, -7):
        with pytest.raises(IndexError, match="in a dataset of 6 images"):
            dataset[index]


def test_dataset_ignores_sources_of_weight_0(scenes, mixed):
    unused = DataSource(mixed, weight=0.0)
    with pytest.raises(UserError, match="no box named 'uav'"):
        DetectionDataset([scenes, unused], ["uav"])
    options = Augmentation(crop=(48, 48), copy_paste=1.0)
    dataset = DetectionDataset([unused, scenes], ["drone"], augmentation=options, cache_bytes=2**20)
    for epoch in range(8):
        for index in range(1, 7):
            dataset[epoch, index]
    assert {path.parent.name for path in dataset._cache} == {"scenes"} and len(dataset._cache) == 6


def test_dataset_three_channels(mixed):
    sample = DetectionDataset([mixed], ["uav"], channels=3)[0, 0]
    assert sample.image.shape == (3, 40, 60)


def test_load_source_and_dataset_name_unknown_classes(mixed):
    with pytest.raises(UserError, match=r"annotations\.json: class_map renames 'uavs', .*it has: uav, bird, cloud"):
        load_source(DataSource(mixed, class_map={"uavs": "drone"}))
    with pytest.raises(UserError, match=r"no box named 'dron' \(it has: bird, cloud, uav\)"):
        DetectionDataset([mixed], ["uav", "dron"])
    with pytest.raises(UserError, match="no box named 'uav'"):  # ignore regions do not count
        DetectionDataset([DataSource(mixed, class_map={"uav": "ignore"})], ["uav"])
    with pytest.raises(UserError, match="weight must be 0 or more, got -1"):
        load_source(DataSource(mixed, weight=-1))


def test_dataset_names_an_image_of_another_size(mixed, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((20, 30), np.uint8))
    with pytest.raises(UserError, match=r"a\.png: is 30 x 20 pixels, its json says 60 x 40"):
        DetectionDataset([mixed], ["uav"])[0, 0]


def test_sample_depends_only_on_seed_epoch_and_index(scenes):
    options = {"augmentation": Augmentation(crop=(48, 48), copy_paste=0.5), "seed": 3}
    plain = DetectionDataset([scenes], ["drone"], **options)
    cached = DetectionDataset([scenes], ["drone"], cache_bytes=2**20, **options)
    for key in ((0, 1), (0, 5), (0, 1), (4, 1)):
        assert equal(plain[key], cached[key])
        assert equal(plain[key], plain[key])
    assert not equal(plain[0, 1], plain[1, 1])
    assert not equal(plain[0, 1], plain[0, 1 + len(plain)])  # a repetition within the epoch
    other = DetectionDataset([scenes], ["drone"], augmentation=options["augmentation"], seed=4)
    assert not equal(plain[0, 1], other[0, 1])


def test_dataset_cache_respects_its_limit(scenes):
    dataset = DetectionDataset([scenes], ["drone"], cache_bytes=3 * 64 * 64 + 100)
    for index in range(6):
        dataset[0, index]
    assert sum(image.nbytes for image in dataset._cache.values()) == 3 * 64 * 64


def test_loader_workers_give_the_same_batches(scenes):
    dataset = DetectionDataset([scenes], ["drone"], augmentation=Augmentation(crop=(48, 48)))
    sampler = EpochSampler([6], [1.0], batch=2, epochs=2)
    cv2.GaussianBlur(np.zeros((2000, 2000), np.float32), (0, 0), 3)  # starts OpenCV's threads in this process
    count = 0
    for here, there in zip(*(make_loader(dataset, sampler, workers=n) for n in (0, 2)), strict=True):
        assert torch.equal(here.images, there.images)
        assert all(torch.equal(a, b) for a, b in zip(here.boxes, there.boxes, strict=True))
        count += 1
    assert count == 6


def test_collate_pads_at_the_right_and_bottom_with_zeros():
    def sample(height, width, boxes):
        return Sample(torch.ones(1, height, width), torch.ones(boxes, 4), torch.zeros(boxes), torch.zeros(boxes))

    batch = collate([sample(70, 90, 2), sample(80, 30, 0)])
    assert batch.images.shape == (2, 1, 80, 90)
    assert batch.images[0, :, :70].eq(1).all() and batch.images[0, :, 70:].eq(0).all()
    assert batch.images[1, :, :, :30].eq(1).all() and batch.images[1, :, :, 30:].eq(0).all()
    assert [len(boxes) for boxes in batch.boxes] == [2, 0]
    assert collate([sample(4, 6, 0)]).images.shape == (1, 1, MINIMUM_SIZE, MINIMUM_SIZE)


def test_fingerprint_depends_on_the_annotations(scenes, mixed):
    assert DetectionDataset([scenes], ["drone"]).fingerprint() == DetectionDataset([scenes], ["drone"]).fingerprint()
    renamed = DataSource(mixed, class_map={"bird": "ignore"})
    weighted = DataSource(mixed, weight=2.0)
    prints = {DetectionDataset([source], ["uav"]).fingerprint() for source in (mixed, renamed, weighted)}
    assert len(prints) == 3


def test_fingerprint_depends_on_earlier_frames_only_with_lags(clip):
    records = load_coco(clip).records
    prints = {}
    changes = {
        "same": records[2].past,
        "age": ((0.6, records[1].path),),
        "frame": ((0.5, records[0].path),),
        "none": (),
    }
    for name, past in changes.items():
        path = Path(clip).with_name(f"{name}.json")
        write_coco(path, [*records[:2], replace(records[2], past=past)], ["drone"])
        prints[name] = [DetectionDataset([str(path)], ["drone"], lags=lags).fingerprint() for lags in ((), (0.5,))]
    plain, with_lags = zip(*prints.values(), strict=True)
    assert len(set(plain)) == 1 and len(set(with_lags)) == 4
    assert prints["same"] == [DetectionDataset([clip], ["drone"], lags=lags).fingerprint() for lags in ((), (0.5,))]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A clip of three frames in which a target moves by 6 pixels in half a second."""
    folder = tmp_path_factory.mktemp("clip")
    background = np.random.default_rng(0).integers(90, 110, (96, 128)).astype(np.uint8)
    records = []
    for index in range(3):
        image = background.copy()
        x = 40 + 6 * index
        image[50:54, x : x + 4] = 200
        path = folder / f"{index}.png"
        cv2.imwrite(str(path), image)
        boxes = np.array([[x, 50, x + 4, 54]], np.float32)
        past = tuple((0.5 * (index - other), folder / f"{other}.png") for other in range(index))
        records.append(ImageRecord(path, 128, 96, boxes, ["drone"], np.zeros(1, bool), past=past))
    write_coco(folder / "train.json", records, ["drone"])
    return str(folder / "train.json")


def test_dataset_adds_the_differences_to_earlier_frames(clip):
    dataset = DetectionDataset([clip], ["drone"], lags=[0.5, 1.0], local_contrast=True)
    first, second, third = (dataset[index].image for index in range(3))
    assert first.shape == (5, 96, 128)
    assert not first[2:].any() and not second[3].any() and third[3].any()
    assert second[2, 51, 47] > 1 and second[2, 51, 41] < -1  # where the target is, and where it was
    assert third[3, 51, 53] > 1 and third[3, 51, 41] < -1
    assert third[4, 51, 53] > 1 and third[4, 51, 41] > -0.5  # what both differences share
    plain = DetectionDataset([clip], ["drone"])
    assert torch.equal(plain[2].image, third[:1])


def test_dataset_crops_all_channels_alike(clip):
    options = Augmentation.off(crop=(48, 64), around_target=1.0, scale=(0.8, 1.5), flip=0.5)
    dataset = DetectionDataset([clip], ["drone"], lags=[0.5], augmentation=options, seed=1)
    for epoch in range(12):
        sample = dataset[epoch, 1]
        x, y = ((sample.boxes[0, :2] + sample.boxes[0, 2:]) / 2).int().tolist()
        assert sample.image[0, y, x] > 1 and sample.image[1, y, x] > 1


def test_dataset_varies_the_brightness_of_all_frames_alike(clip):
    options = Augmentation.off(polarity=0.5, gamma=0.3, contrast=(0.6, 1.3), shading=0.15, blur=0.5)
    dataset = DetectionDataset([clip], ["drone"], lags=[0.5], augmentation=options)
    for epoch in range(12):
        image, difference = dataset[epoch, 1].image
        assert (difference.abs() < 1).float().mean() > 0.97  # the background does not change
        assert difference[51, 47] * torch.sign(image[51, 47]) > 1


def test_dataset_moves_pasted_objects_through_the_earlier_frames(clip):
    options = Augmentation.off(copy_paste=1.0)
    dataset = DetectionDataset([clip], ["drone"], lags=[0.5], augmentation=options)
    moved = still = 0
    for epoch in range(20):
        sample = dataset[epoch, 1]
        for x0, y0, x1, y1 in sample.boxes[1:].int().tolist():
            peak = sample.image[1, y0 : y1 + 1, x0 : x1 + 1].max()
            moved, still = moved + int(peak > 1), still + int(peak <= 1)
    assert moved > 5 and moved > still


def test_dataset_leaves_out_the_earlier_frames_at_random(clip):
    options = Augmentation.off(past_dropout=0.5)
    dataset = DetectionDataset([clip], ["drone"], lags=[0.5], augmentation=options)
    empty = sum(not dataset[epoch, 1].image[1].any() for epoch in range(40))
    assert 10 <= empty <= 30


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_annotated_sizes_are_checked_with_a_cache_too(tmp_path, cache_bytes):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((64, 80), 9, np.uint8))
    box = np.array([[1, 2, 11, 12]], np.float32)
    for name, scale in (("right", 1), ("wrong", 10)):
        record = ImageRecord(tmp_path / "a.png", 80 * scale, 64 * scale, box, ["uav"], np.zeros(1, bool))
        write_coco(tmp_path / f"{name}.json", [record], ["uav"])
    files = [str(tmp_path / f"{name}.json") for name in ("right", "wrong")]
    dataset = DetectionDataset(files, ["uav"], cache_bytes=cache_bytes)
    assert dataset[0].image.shape[-2:] == (64, 80)
    with pytest.raises(UserError, match="is 80 x 64 pixels, its json says 800 x 640"):
        dataset[1]


def test_used_records_leave_out_sources_of_weight_zero(scenes, mixed):
    dataset = DetectionDataset([DataSource(mixed), DataSource(scenes, weight=0.0)], ["uav"])
    assert [(record.width, record.height) for record in dataset.used_records()] == [(60, 40)]
