import json
import math
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from danet.data.coco_dataset import load_coco
from danet.data.synthetic import objects, scene, synthesize
from danet.utils.image_io import read_image


def make(out, *words):
    return synthesize.main([str(out), "--quiet", *words])


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "scenes"
    assert make(out, "--images", "24", "--val_images", "6", "--video_frames", "12", "--seed", "3") == 0
    return out


def test_synthesize_writes_complete_datasets(dataset):
    train, val = load_coco(dataset / "train.json"), load_coco(dataset / "val.json")
    assert len(train.records) == 24 and len(val.records) == 6
    assert train.categories == ["drone", "bird", "leaf", "corner", "airplane"]
    assert train.warnings == [] and val.warnings == []  # no box leaves its image
    recordings = [record.recording for record in train.records + val.records]
    assert len(set(recordings)) == 30
    for record in train.records + val.records:
        image = read_image(record.path)
        assert image.shape == (256, 320) and image.dtype == np.uint8
        sides = record.boxes[:, 2:] - record.boxes[:, :2]
        assert (sides >= objects.MIN_SIDE_PIXELS).all()


def test_synthesize_val_scenes_differ_from_train_scenes(dataset):
    digests = [path.read_bytes() for name in ("train", "val") for path in (dataset / name).iterdir()]
    assert len(set(digests)) == len(digests) == 30


def test_synthesize_depends_on_the_seed(tmp_path):
    words = ["--images", "3", "--val_images", "1", "--video_frames", "3", "--size", "96x128"]
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert make(tmp_path / name, *words, "--seed", seed) == 0
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a.keys() == b.keys() == c.keys()
    for name in set(a) - {synthesize.MARKER_FILE}:  # it contains the name of the folder
        assert a[name] == b[name], name
    assert all(a[name] != c[name] for name in a if name.endswith(".png"))


def test_synthesize_scene_depends_only_on_its_number(tmp_path):
    assert make(tmp_path / "few", "--images", "2", "--val_images", "1", "--size", "64x64") == 0
    assert make(tmp_path / "more", "--images", "4", "--val_images", "1", "--size", "64x64") == 0
    few, more = contents(tmp_path / "few"), contents(tmp_path / "more")
    for name in ("train/00000.png", "train/00001.png", "val/00000.png"):
        assert few[name] == more[name]


def test_synthesize_16_bit_scenes_have_14_bit_counts(tmp_path):
    assert make(tmp_path / "deep", "--images", "2", "--val_images", "0", "--bits", "16", "--video_frames", "2") == 0
    assert not (tmp_path / "deep" / "val.json").exists()
    for path in tmp_path.glob("deep/*/*.png"):
        image = read_image(path)
        assert image.dtype == np.uint16 and image.max() < 2**14
        assert len(np.unique(image)) > 64


def test_random_size_has_the_proportions_of_the_paper():
    rng = np.random.default_rng(0)
    sizes = []
    for _ in range(1200):
        parts, rotation = objects.drone(rng), objects.random_pose("drone", rng)
        scale = objects.fit_scale(parts, rotation, scene.random_size("drone", (256, 320), rng), 0.7)
        box = objects.render(parts, rotation, scale, (50.0, 50.0), 0.7).box
        sizes.append(math.sqrt((box[2] - box[0]) * (box[3] - box[1])))
    sizes = np.array(sizes)
    shares = [np.mean(sizes < 14), np.mean((sizes >= 14) & (sizes < 18)), np.mean(sizes >= 18)]
    np.testing.assert_allclose(shares, np.array([13489, 11039, 6801]) / 31329, atol=0.045)
    assert 3 <= sizes.min() < 4.5 and 45 < sizes.max() < 66


@pytest.mark.parametrize("name", list(objects.MODELS))
def test_render_box_is_tight(name):
    """On a flat background, the pixels above the level fill the box exactly."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        parts, rotation = objects.MODELS[name](rng), objects.random_pose(name, rng)
        scale = objects.fit_scale(parts, rotation, rng.uniform(8, 40), 0.7)
        patch = objects.render(parts, rotation, scale, (100.3, 90.6), 0.7)
        image = np.full((200, 200), 0.3, np.float32)
        assert scene.compose(image, patch, 0.5) == pytest.approx(0.5)
        lit = image > 0.3 + objects.BOX_LEVEL * 0.5 + 1e-6
        columns, rows = np.flatnonzero(lit.any(axis=0)), np.flatnonzero(lit.any(axis=1))
        extent = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(patch.box, extent, atol=1.01 if min(np.ptp(columns), np.ptp(rows)) < 3 else 1e-6)
        assert image.max() == pytest.approx(0.8, abs=0.01)


def test_render_places_objects_with_subpixel_accuracy():
    parts = objects.drone(np.random.default_rng(0))
    level = objects.pose(0.0, 0.0, 0.0, 0.0)
    for centre in ((40.0, 30.0), (40.5, 30.25), (41.7, 33.9)):
        patch = objects.render(parts, level, 12.0, centre, 0.7)
        columns = patch.heat.sum(axis=0)
        middle = (columns * (np.arange(len(columns)) + 0.5)).sum() / columns.sum() + patch.corner[0]
        reference = objects.render(parts, level, 12.0, (40.0, 30.0), 0.7)
        columns = reference.heat.sum(axis=0)
        start = (columns * (np.arange(len(columns)) + 0.5)).sum() / columns.sum() + reference.corner[0]
        assert middle - start == pytest.approx(centre[0] - 40.0, abs=0.05)


def test_synthesize_labelled_objects_are_visible(dataset):
    """The maximum deviation inside each box, also of dim objects, exceeds the noise around it."""
    weak = total = 0
    for record in load_coco(dataset / "train.json").records:
        image = read_image(record.path).astype(np.float32)
        for x0, y0, x1, y1 in record.boxes.astype(int):
            around = image[max(y0 - 6, 0) : y1 + 6, max(x0 - 6, 0) : x1 + 6]
            inside = image[y0:y1, x0:x1]
            total += 1
            weak += np.abs(inside - np.median(around)).max() < 8
    assert total > 20 and weak == 0


def test_visible_contrast_on_bright_dark_and_cluttered_regions():
    rng = np.random.default_rng(0)
    patch = objects.render(objects.drone(rng), objects.pose(0.3, 0, 0, 0), 10.0, (50.0, 50.0), 0.7)
    bright = np.full((100, 100), 0.9, np.float32)
    assert scene.visible_contrast(bright, patch, 0.4, 0.01, rng) < -0.3
    dark = np.full((100, 100), 0.2, np.float32)
    assert scene.visible_contrast(dark, patch, 0.4, 0.01, rng) == pytest.approx(0.4)
    assert scene.visible_contrast(dark, patch, 0.001, 0.01, rng) == pytest.approx(scene.MIN_CONTRAST)
    clutter = rng.uniform(0, 1, (100, 100)).astype(np.float32)
    assert scene.visible_contrast(clutter, patch, 0.4, 0.01, rng) is None


def test_synthesize_video_is_smooth_and_matches_its_labels(dataset):
    video = load_coco(dataset / "video.json")
    assert [record.frame for record in video.records] == list(range(12))
    assert {record.recording for record in video.records} == {"synthetic-3-2"}  # contains the seed
    assert any("drone" in record.names for record in video.records)

    capture = cv2.VideoCapture(str(dataset / "video.mp4"))
    for record in video.records:
        ok, frame = capture.read()
        assert ok
        assert np.abs(frame[..., 0].astype(int) - read_image(record.path)).mean() < 6  # the same image, compressed
    assert not capture.read()[0]

    for before, after in zip(video.records, video.records[1:], strict=False):
        if before.names == after.names:
            moved = np.abs((before.boxes[:, :2] + before.boxes[:, 2:] - after.boxes[:, :2] - after.boxes[:, 2:]) / 2)
            assert moved.max(initial=0) < 12  # pixels per frame, including the beat of wings


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "big"], "--size must be height x width"),
        (["--size", "32x32"], "--size must lie between"),
        (["--bits", "12"], "--bits"),
        (["--images", "-1"], "--images must be 0 or more"),
        (["--images", "0", "--val_images", "0"], "nothing to make"),
        (["--image", "3"], "did you mean --images?"),
    ],
)
def test_synthesize_wrong_options_give_one_line_and_exit_code_2(tmp_path, capsys, words, message):
    assert make(tmp_path / "out", *words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_synthesize_overwrites_only_its_own_folders(tmp_path, capsys):
    words = ["--images", "1", "--val_images", "0", "--size", "64x64"]
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    assert make(ours, *words) == 0
    assert make(ours, *words) == 2
    assert "exists already" in capsys.readouterr().err
    assert make(ours, *words, "--seed", "1", "--images", "2", "--overwrite") == 0
    assert len(json.loads((ours / "train.json").read_text())["images"]) == 2

    theirs.mkdir()
    (theirs / "thesis.txt").write_text("precious")
    assert make(theirs, *words, "--overwrite") == 2
    assert "not made by this command" in capsys.readouterr().err
    assert contents(theirs) == {"thesis.txt": b"precious"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "theirs"]


def test_synthesize_names_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert make(tmp_path / "file" / "out", "--images", "1") == 2
    assert "cannot be written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_synthesize_interrupted_leaves_nothing(tmp_path):
    command = [sys.executable, "-m", "danet.data.synthetic.synthesize", str(tmp_path / "out"), "--images", "100000"]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.rglob("*.png")) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert list(tmp_path.rglob("*.png")) and not (tmp_path / "out").exists()
        run.send_signal(signal.SIGINT)
        assert run.wait(30) == 130
    finally:
        run.kill()
    assert run.stderr.read().strip().endswith("interrupted")
    assert list(tmp_path.iterdir()) == []
