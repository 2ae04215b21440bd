import json

import cv2
import numpy as np
import pytest

from danet.data.__main__ import main
from danet.data.coco_dataset import ImageRecord, write_coco
from danet.data.importers.svanstrom import decode
from danet.data.leakage import average_hash, near_pairs

RNG = np.random.default_rng(5)


def scene(seed):
    """An image with smooth structure, like a landscape."""
    coarse = np.random.default_rng(seed).uniform(40, 200, (6, 8)).astype(np.float32)
    return cv2.resize(coarse, (80, 60), interpolation=cv2.INTER_CUBIC).astype(np.uint8)


def make(folder, name, images, recording=None, boxes=((10, 10, 22, 18),)):
    records = []
    for index, image in enumerate(images):
        path = folder / "images" / f"{name}{index}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), image)
        array = np.array(boxes, np.float32).reshape(-1, 4)
        names = ["drone"] * len(array)
        ignore = np.zeros(len(array), bool)
        records.append(ImageRecord(path, 80, 60, array, names, ignore, frame=index, recording=recording))
    write_coco(folder / f"{name}.json", records, ["drone", "bird"])
    return folder / f"{name}.json"


def inspect(folder, *options):
    result = folder / "result.json"
    assert main(["inspect", *map(str, options), "--json", str(result)]) == 0
    return json.loads(result.read_text())


def test_inspect_counts_boxes_sizes_and_buckets(tmp_path, capsys):
    boxes = [(0, 0, 10, 10), (0, 0, 14, 14), (0, 0, 32, 8), (0, 0, 18, 18), (0, 0, 40, 40)]
    path = make(tmp_path, "a", [scene(1), scene(2)], "r", boxes)
    counts = inspect(tmp_path, path)["datasets"][0]
    assert counts["images"] == 2 and counts["recordings"] == 1 and counts["boxes"] == {"drone": 10, "bird": 0}
    assert counts["scale_buckets"] == {"drone": {"small": 2, "medium": 4, "large": 4}}
    quantiles = counts["size_quantiles"]["drone"]
    assert (quantiles["min"], quantiles["50%"], quantiles["max"]) == (10, 16, 40)
    assert counts["warnings"] == []
    output = capsys.readouterr().out
    assert "14-18" in output and "drone" in output
    counts = inspect(tmp_path, path, "--edges", "10", "41")["datasets"][0]
    assert counts["scale_buckets"]["drone"] == {"small": 0, "medium": 10, "large": 0}


def test_inspect_warns_about_wrong_boxes_and_images(tmp_path, capsys):
    boxes = [(10, 10, 10, 14), (70, 50, 90, 58), (100, 100, 110, 110)]
    path = make(tmp_path, "a", [scene(1)], boxes=boxes)
    cv2.imwrite(str(tmp_path / "images/a0.png"), np.zeros((30, 40), np.uint8))
    warnings = inspect(tmp_path, path)["datasets"][0]["warnings"]
    endings = (
        "has no area, dropped",
        "reaches outside the image (80 x 60), clipped",
        "is outside the image",
        "40 x 30",
    )
    assert len(warnings) == 4
    assert all(ending in warning for ending, warning in zip(endings, warnings, strict=True))
    assert "a0.png: the file is 40 x 30, the json says 80 x 60" in capsys.readouterr().out
    (tmp_path / "images/a0.png").write_bytes(b"")
    assert "a0.png: not a readable image" in inspect(tmp_path, path)["datasets"][0]["warnings"][-1]


def test_inspect_warns_about_masks_of_another_size(tmp_path):
    path = make(tmp_path, "a", [scene(1)], boxes=[(10, 10, 22, 18)] * 6)
    content = json.loads(path.read_text())
    masks = [
        {"size": [60, 80], "counts": [4800]},
        {"size": [80, 60], "counts": [4800]},
        [[10, 10, 80, 10, 80, 60]],
        [[10, 10, 22, 10, 22, 18], [10, 10, 22, 10, 22, 64]],
        [[1, 2, 3]],
        [],
    ]
    for annotation, mask in zip(content["annotations"], masks, strict=True):
        annotation["segmentation"] = mask
    path.write_text(json.dumps(content))
    assert inspect(tmp_path, path, "--images", "false")["datasets"][0]["warnings"] == [
        "images/a0.png: mask of annotation 2 is 60 x 80, the image 80 x 60",
        "images/a0.png: mask of annotation 4 reaches outside the image (80 x 60)",
        "images/a0.png: mask of annotation 5 is neither RLE nor polygons",
    ]


def test_inspect_finds_leakage_by_recording_file_and_image(tmp_path):
    a = make(tmp_path, "a", [scene(1), scene(2), scene(3)], "r1")
    noisy = np.clip(scene(2) + RNG.normal(0, 1, (60, 80)), 0, 255).astype(np.uint8)
    b = make(tmp_path, "b", [scene(11), noisy], "r2")
    c = make(tmp_path, "c", [scene(21)], "r1")
    d = make(tmp_path, "d", [scene(31)], "r4")
    assert inspect(tmp_path, a, d)["leakage"] == []
    (line,) = inspect(tmp_path, a, b)["leakage"]
    assert "near-identical images in both (1): images/a1.png ~ images/b1.png" in line
    assert inspect(tmp_path, a, b, "--images", "false")["leakage"] == []
    (line,) = inspect(tmp_path, a, c)["leakage"]
    assert line.endswith("the same recordings in both (1): r1")
    lines = inspect(tmp_path, a, tmp_path / "a.json")["leakage"]
    assert [word in line for word, line in zip(("image files", "recordings", "near-identical"), lines, strict=True)]


def test_average_hash_without_contrast_is_near_to_nothing():
    flat = average_hash(np.full((60, 80), 7, np.uint8))
    assert near_pairs(flat[None], flat[None], 12) == []


def test_average_hash_separates_videos(real_data):
    hashes = {}
    for name in ("IR_DRONE_001", "IR_DRONE_014", "IR_BIRD_001"):
        frames = decode(real_data / f"svanstrom-ir/{name}.mp4", 3)
        hashes[name] = np.array([average_hash(image) for _, image in frames if image is not None])
    assert len(near_pairs(hashes["IR_DRONE_001"][::2], hashes["IR_DRONE_001"][1::2], 12)) > 40
    assert near_pairs(hashes["IR_DRONE_001"], hashes["IR_DRONE_014"], 12) == []
    assert near_pairs(hashes["IR_DRONE_001"], hashes["IR_BIRD_001"], 12) == []


def test_inspect_draws_boxes_on_the_sheet(tmp_path):
    path = make(tmp_path, "a", [np.full((60, 80), 50, np.uint8) for _ in range(7)])
    inspect(tmp_path, path, "--sheet", tmp_path / "sheet.png", "--pictures", 5)
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape[0] > 2 * 60 and sheet.shape[1] > 4 * 80
    coloured = sheet.max(axis=2).astype(int) - sheet.min(axis=2) > 60
    assert coloured.sum() > 5 * 2 * (12 + 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--edges", "18", "14"], "--edges must be two ascending positive numbers"),
        (["--edges", "14"], "--edges must be two ascending positive numbers"),
        (["--seed", "-1", "--sheet", "sheet.png"], "--seed must be 0 or more"),
        (["--sheet", "sheet.unknown"], "sheet.unknown: not a name for an image"),
        (["--pictures", "0", "--sheet", "sheet.png"], "--pictures must be 1 or more"),
    ],
)
def test_inspect_names_wrong_options(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    path = make(tmp_path, "a", [scene(1)])
    assert main(["inspect", str(path), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "sheet.png").exists()


def test_inspect_names_a_missing_file(tmp_path, capsys):
    assert main(["inspect"]) == 2
    assert main(["inspect", str(tmp_path / "none.json")]) == 2
    assert "none.json: no such file" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["[/]", "[red]drone", "[link=http://x]y", ":smile:", "[bold]", "\\[x]"])
def test_inspect_prints_names_as_they_are(tmp_path, capsys, name):
    path = make(tmp_path, "a", [scene(1)])
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = name
    (tmp_path / "images/a0.png").rename(tmp_path / "images/[b]0.png")
    content["images"][0]["file_name"] = "images/[b]0.png"
    content["annotations"][0]["bbox"] = [70, 50, 20, 8]
    path.write_text(json.dumps(content))
    assert main(["inspect", str(path), "--sheet", str(tmp_path / "sheet.png")]) == 0
    output = capsys.readouterr().out
    assert name in output and "[b]0.png: box" in output


def test_inspect_names_a_class_that_cannot_be_drawn(tmp_path, capsys):
    path = make(tmp_path, "a", [scene(1)])
    path.write_text(path.read_text().replace('"drone"', '"\\ud800"'))
    assert main(["inspect", str(path), "--sheet", str(tmp_path / "sheet.png")]) == 2
    error = capsys.readouterr().err
    assert "a.json: category 1: a name must not contain control characters" in error and error.count("\n") == 1


def test_inspect_reads_all_splits_of_a_folder(tmp_path):
    for name in ("train", "val"):
        make(tmp_path, name, [scene(len(name))], name)
    result = inspect(tmp_path / "images", tmp_path)
    assert [item["path"].rpartition("/")[2] for item in result["datasets"]] == ["train.json", "val.json"]
    assert result["leakage"] == []


def test_inspect_counts_repairs(tmp_path, capsys):
    path = make(tmp_path, "a", [scene(1)], boxes=[(10, 10, 22, 18)] * 3)
    counts = inspect(tmp_path, path)["datasets"][0]
    assert counts["boxes"]["drone"] == 1
    assert counts["repairs"][0].startswith("2 boxes dropped: exact duplicates of another box")
    assert "repaired: 2 boxes dropped" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--json", "--sheet"])
def test_inspect_replaces_none_of_its_inputs(tmp_path, capsys, option):
    path = make(tmp_path, "a", [scene(1)])
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
    for data, out in ((path, path), (tmp_path, path), (path, tmp_path / "images/a0.png")):
        if option == "--sheet" or out == path:
            assert main(["inspect", str(data), option, str(out)]) == 2
            assert f"{out}: is an input of this command" in capsys.readouterr().err
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
