from collections import Counter

import cv2
import numpy as np
import pytest
from helpers import check_that_lists_need_different_names

from danet.data.__main__ import main
from danet.data.coco_dataset import load_coco
from danet.utils.files import read_json


def make(folder, mask=None, image=None, ending="_pixels0"):
    """Two images; the mask of the first has two diagonal pixels and a block of 4 x 3, that of the second is empty."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    if mask is None:
        mask = np.zeros((30, 40), np.uint8)
        mask[5, 6] = mask[6, 7] = 255
        mask[20:23, 30:34] = 255
    image = np.full((30, 40), 9, np.uint8) if image is None else image
    cv2.imwrite(str(folder / "images" / "a.png"), image)
    cv2.imwrite(str(folder / "masks" / f"a{ending}.png"), mask)
    cv2.imwrite(str(folder / "images" / "b.png"), np.full((10, 12), 9, np.uint8))
    cv2.imwrite(str(folder / "masks" / f"b{ending}.png"), np.zeros((10, 12), np.uint8))
    return folder


def run(source, *options):
    return main(["import", "masks", str(source), str(source.parent / "out"), *options])


@pytest.mark.parametrize("ending", ["", "_pixels0", "_mask"])
def test_masks_8_connected_pixels_are_one_box(tmp_path, ending):
    assert run(make(tmp_path / "in", ending=ending), "--category", "drone") == 0
    a, b = load_coco(tmp_path / "out").records
    np.testing.assert_array_equal(a.boxes, [[6, 5, 8, 7], [30, 20, 34, 23]])
    assert a.names == ["drone", "drone"] and (a.width, a.height) == (40, 30)
    assert b.names == [] and (b.width, b.height) == (12, 10)


def test_masks_json_states_the_counts(tmp_path, capsys):
    source = make(tmp_path / "in")
    assert run(source, "--json", str(tmp_path / "counts.json"), "--quiet") == 0
    counts = read_json(tmp_path / "counts.json")[str(tmp_path / "out/annotations.json")]
    assert counts == {"images": 2, "recordings": 2, "images_without_boxes": 1, "boxes": {"target": 2}}
    assert run(source, "--json", str(tmp_path / "out/annotations.json")) == 2
    assert "is the dataset itself" in capsys.readouterr().err
    assert len(load_coco(tmp_path / "out").records) == 2


@pytest.mark.parametrize(
    "image", [np.full((30, 40), 9999, np.uint16), np.arange(3600, dtype=np.uint8).reshape(30, 40, 3)]
)
def test_masks_copies_16_bit_and_colour_images(tmp_path, image):
    mask = np.zeros((30, 40, 3), np.uint8)
    mask[2:4, 3:6] = (0, 0, 255)
    assert run(make(tmp_path / "in", mask, image)) == 0
    item = load_coco(tmp_path / "out").records[0]
    np.testing.assert_array_equal(item.boxes, [[3, 2, 6, 4]])
    np.testing.assert_array_equal(cv2.imread(str(item.path), cv2.IMREAD_UNCHANGED), image)


def test_masks_lists_write_jsons_and_share_images(tmp_path):
    source = make(tmp_path / "in")
    (source / "idx").mkdir()
    (source / "idx" / "train.txt").write_text("b\n\na.png\n")
    (tmp_path / "val.txt").write_text("a\n")
    assert run(source, "--lists", "idx/train.txt", str(tmp_path / "val.txt")) == 0
    assert [item.path.name for item in load_coco(tmp_path / "out/train.json").records] == ["b.png", "a.png"]
    assert [item.path.name for item in load_coco(tmp_path / "out/val.json").records] == ["a.png"]
    assert len(list((tmp_path / "out").rglob("*.png"))) == 2


def remove_mask(source):
    (source / "masks/b_pixels0.png").unlink()


def cut_image(source):
    (source / "images/b.png").write_bytes((source / "images/b.png").read_bytes()[:50])


def empty_folder(source):
    for path in (source / "images").iterdir():
        path.unlink()


def wrong_size(source):
    cv2.imwrite(str(source / "masks/b_pixels0.png"), np.zeros((12, 10), np.uint8))


def same_name(source):
    cv2.imwrite(str(source / "images/b.jpg"), np.zeros((12, 10), np.uint8))


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (wrong_size, [], "b_pixels0.png: the mask is 10 x 12, its image 12 x 10"),
        (remove_mask, [], "b.png: no mask in"),
        (cut_image, [], "b.png: not a readable image"),
        (empty_folder, [], "images: no images in this folder"),
        (same_name, [], "b.png: another image has this name (b.jpg)"),
        (None, ["--lists", "none.txt"], "none.txt: no such list file"),
        (None, ["--masks", "mask"], "mask: no such folder"),
    ],
)
def test_masks_names_the_error_and_writes_nothing(tmp_path, capfd, damage, options, message):
    source = make(tmp_path / "in")
    if damage:
        damage(source)
    assert run(source, *options) == 2
    error = capfd.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_masks_names_a_wrong_list(tmp_path, capsys):
    source = make(tmp_path / "in")
    (source / "train.txt").write_text("a\nc\n")
    assert run(source, "--lists", "train.txt") == 2
    assert "train.json lists 'c', but there is no such image" in capsys.readouterr().err
    (source / "train.txt").write_bytes(b"\x89PNG")
    assert run(source, "--lists", "train.txt") == 2
    assert "train.txt: not UTF-8 text (byte 0)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_masks_sirst_has_its_published_counts(real_data, tmp_path):
    lists = ["idx_427/train.txt", "idx_427/val.txt"]
    command = ["import", "masks", str(real_data / "sirst"), str(tmp_path), "--lists", *lists, "--quiet", "true"]
    assert main(command) == 0
    for split, images, targets, buckets in (("train", 256, 327, (85, 187, 55)), ("val", 85, 97, (26, 48, 23))):
        records = load_coco(tmp_path / f"{split}.json").records
        boxes = np.concatenate([item.boxes for item in records])
        sides = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
        assert (len(records), len(boxes)) == (images, targets)
        assert tuple(Counter(np.digitize(sides, [4, 8]).tolist())[bucket] for bucket in range(3)) == buckets


def soft_mask(kind):
    """One target of 5 x 5 with the soft edges that editors, scaling and JPEG make."""
    mask = np.zeros((30, 40), np.uint8)
    mask[8:13, 18:23] = 255
    if kind == "rim":  # as in IRSTD-1k
        mask[7, 17:24] = mask[13, 17:24] = 64
        mask[20, 30], mask[25:27, 2] = 1, 7
    elif kind == "levels":
        mask[8:13, 23] = 120
    elif kind == "16 bits":
        mask = mask.astype(np.uint16) * 257
        mask[7, 17:24] = 20_000
    elif kind == "instances":
        mask[8:13, 18:23] = 2
        mask[20:23, 30:34] = 1
    return mask


@pytest.mark.parametrize("kind", ["binary", "rim", "levels", "16 bits", "jpeg", "instances"])
def test_masks_threshold_soft_masks_at_half_and_name_them(tmp_path, capsys, kind):
    source = make(tmp_path / "in", soft_mask(kind))
    if kind == "jpeg":
        (source / "masks/a_pixels0.png").unlink()
        cv2.imwrite(str(source / "masks/a_pixels0.jpg"), soft_mask(kind), [cv2.IMWRITE_JPEG_QUALITY, 80])
    assert run(source) == 0
    boxes = load_coco(tmp_path / "out").records[0].boxes
    others = [[30, 20, 34, 23]] if kind == "instances" else []
    np.testing.assert_array_equal(boxes, [[18, 8, 23, 13], *others])
    error = capsys.readouterr().err
    assert ("1 masks with values between 0 and their maximum" in error) == (kind not in ("binary", "instances"))
    assert ("a_pixels0" in error) == (kind not in ("binary", "instances"))


def test_masks_without_any_target_give_a_warning(tmp_path, capsys):
    assert run(make(tmp_path / "in", np.zeros((30, 40), np.uint8))) == 0
    assert "warning: annotations.json: none of the 2 images has a box" in capsys.readouterr().err


def test_masks_follow_links(tmp_path):
    source = make(tmp_path / "in")
    (source / "images").rename(tmp_path / "raw")
    (source / "images").symlink_to(tmp_path / "raw")
    (source / "masks").rename(tmp_path / "drawn")
    (source / "masks").mkdir()
    (source / "masks/person1").symlink_to(tmp_path / "drawn")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/person1").symlink_to(tmp_path / "raw")
    assert run(source, "--images", "../images") == 0
    assert len(load_coco(tmp_path / "out").records[0].boxes) == 2


def test_masks_check_the_category(tmp_path, capsys):
    assert run(make(tmp_path / "in"), "--category", "a\nb") == 2
    assert "--category: a name must not contain control characters" in capsys.readouterr().err


def test_masks_lists_need_different_names(tmp_path, capsys):
    source = make(tmp_path / "in")
    check_that_lists_need_different_names(run, source, tmp_path / "out", capsys)


def test_masks_image_named_twice_in_a_list_is_one_record(tmp_path, capsys):
    source = make(tmp_path / "in")
    (source / "train.txt").write_text("a\nb\na\n")
    assert run(source, "--lists", "train.txt") == 0
    assert [item.path.stem for item in load_coco(tmp_path / "out/train.json").records] == ["a", "b"]
    error = capsys.readouterr().err
    assert "1 lines dropped: the list names an image twice, the first: train.json: a\n" in error
