import cv2
import numpy as np
import pytest
from helpers import check_that_lists_need_different_names

from danet.data.__main__ import main
from danet.data.coco_dataset import load_coco

XML = """<annotation><filename>a.jpg</filename><size><width>40</width><height>30</height><depth>1</depth></size>
<object><name>drone</name><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>3</ymin><xmax>10</xmax><ymax>12</ymax></bndbox></object>
<object><name>bird</name><difficult>1</difficult>
<bndbox><xmin>20</xmin><ymin>20</ymin><xmax>22</xmax><ymax>23</ymax></bndbox></object></annotation>"""


def make(folder, xml=XML):
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for name in "ab":
        cv2.imwrite(str(folder / f"JPEGImages/{name}.jpg"), np.full((30, 40), 80, np.uint8))
    (folder / "Annotations/a.xml").write_text(xml)
    return folder


def run(source, *options):
    return main(["import", "voc", str(source), str(source.parent / "out"), *options])


@pytest.mark.parametrize(("first_pixel", "first"), [("1", [0, 2, 10, 12]), ("0", [1, 3, 11, 13])])
def test_voc_includes_both_corners_and_ignores_difficult(tmp_path, capsys, first_pixel, first):
    assert run(make(tmp_path / "in"), "--first_pixel", first_pixel) == 0
    dataset = load_coco(tmp_path / "out")
    (item,) = dataset.records
    np.testing.assert_array_equal(item.boxes[0], first)
    assert item.names == ["drone", "bird"] and item.ignore.tolist() == [False, True]
    assert dataset.categories == ["bird", "drone"]
    assert "1 images without an xml file are left out" in capsys.readouterr().err


def test_voc_lists_select_images(tmp_path):
    source = make(tmp_path / "in")
    (source / "ImageSets/Main/val.txt").write_text("b\n")
    (source / "Annotations/b.xml").write_text("<annotation/>")
    assert run(source, "--lists", "ImageSets/Main/val.txt") == 0
    assert [item.path.name for item in load_coco(tmp_path / "out/val.json").records] == ["b.jpg"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<xmin>1</xmin>", "<xmin>nan</xmin>", "a.xml: bndbox/xmin must be a number, got 'nan'"),
        ("<xmin>1</xmin>", "", "a.xml: bndbox/xmin must be a number, got None"),
        ("<xmin>1</xmin>", "<xmin>11</xmin>", "a.xml: a box has a negative size"),
        ("<name>drone</name>", "", "a.xml: an object has no name"),
        ("<width>40", "<width>41", "a.xml: says 41 x 30, but"),
        ("</annotation>", "", "a.xml: not valid XML"),
    ],
)
def test_voc_names_a_wrong_xml_and_writes_nothing(tmp_path, capsys, old, new, message):
    assert run(make(tmp_path / "in", XML.replace(old, new))) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_voc_names_missing_files(tmp_path, capsys):
    source = make(tmp_path / "in")
    (source / "Annotations/c.xml").write_text(XML)
    assert run(source) == 2
    assert "there is no image 'c'" in capsys.readouterr().err
    (source / "ImageSets/Main/val.txt").write_text("b\n")
    assert run(source, "--lists", "ImageSets/Main/val.txt") == 2
    assert "b.xml: cannot be read (No such file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_voc_and_masks_agree_on_sirst(real_data, tmp_path):
    lists = ["--lists", "idx_427/val.txt", "--quiet", "true"]
    folders = ["--images", "images", "--annotations", "masks"]
    assert main(["import", "voc", str(real_data / "sirst"), str(tmp_path / "voc"), *folders, *lists]) == 0
    assert main(["import", "masks", str(real_data / "sirst"), str(tmp_path / "masks"), *lists]) == 0
    inside = []
    pairs = zip(load_coco(tmp_path / "voc").records, load_coco(tmp_path / "masks").records, strict=True)
    for xml, mask in pairs:
        assert xml.names == ["Target"] and xml.path.name == mask.path.name
        low, high = mask.boxes[:, :2].min(axis=0), mask.boxes[:, 2:].max(axis=0)
        inside.append((np.abs(xml.boxes[0] - np.concatenate([low, high])) <= 2).all())
    assert np.mean(inside) > 0.9


SIZE = "<size><width>40</width><height>30</height><depth>1</depth></size>"
BOX = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


def annotation(*boxes, size=SIZE, filename="a.jpg"):
    objects = "".join(BOX.format("drone", *box) for box in boxes)
    return f"<annotation><filename>{filename}</filename>{size}{objects}</annotation>"


@pytest.mark.parametrize(
    ("boxes", "options", "expected"),
    [
        ([(5.25, 2.5, 10.25, 7.5)], [], [[5.25, 2.5, 10.25, 7.5]]),
        ([(5.25, 2.5, 10.25, 7.5)], ["--first_pixel", "0"], [[5.25, 2.5, 10.25, 7.5]]),
        ([("5.0", "2.0", "10.0", "7.0")], [], [[5, 2, 10, 7]]),
        ([(5.25, 2.5, 10.25, 7.5), (1, 1, 4, 4)], [], [[5.25, 2.5, 10.25, 7.5], [1, 1, 4, 4]]),
        # One stray decimal, as VOC 2012 has it, among integers.
        ([(5, 3, 10, 7), (1, 1, 4, 4), (2, 2.5, 8, 8)], [], [[4, 2, 10, 7], [0, 0, 4, 4], [1, 1.5, 8, 8]]),
        ([(5, 3, 10, 7)], ["--corners", "exclusive"], [[5, 3, 10, 7]]),
        ([(5.5, 3, 10, 7)], ["--corners", "inclusive"], [[4.5, 2, 10, 7]]),
        ([(5.5, 3, 10, 7)], ["--first_pixel", "1"], [[4.5, 2, 9, 6]]),
    ],
)
def test_voc_decimal_corners_are_positions(tmp_path, capsys, boxes, options, expected):
    assert run(make(tmp_path / "in", annotation(*boxes)), *options) == 0
    np.testing.assert_allclose(load_coco(tmp_path / "out").records[0].boxes, expected)
    is_noted = "boxes with decimal corners: read as positions" in capsys.readouterr().err
    assert is_noted == ("." in str(boxes[0]) and "--corners" not in options)


def test_voc_clips_boxes_and_counts_them(tmp_path, capsys):
    assert run(make(tmp_path / "in", annotation((0, 1, 41, 30), (0, 1, 41, 30)))) == 0
    np.testing.assert_array_equal(load_coco(tmp_path / "out").records[0].boxes, [[0, 0, 40, 30]])
    error = capsys.readouterr().err
    assert "2 boxes changed: clipped to the image, the first: " in error
    assert "1 boxes dropped: exact duplicates" in error


def test_voc_reads_one_folder_of_images_and_xmls(tmp_path, capsys):
    """labelImg writes the xml beside the image; some versions state the size 0 x 0; macOS adds ._ files."""
    source = tmp_path / "in"
    source.mkdir()
    for name in "ab":
        cv2.imwrite(str(source / f"{name}.jpg"), np.full((30, 40), 80, np.uint8))
    empty = SIZE.replace("40", "0").replace("30", "0")
    (source / "a.xml").write_text(annotation((1, 1, 4, 4), size=empty))
    (source / "renamed.xml").write_text(annotation((2, 2, 5, 5), filename="b.jpg"))
    (source / "._a.xml").write_bytes(b"\x00\x05\x16\x07")
    (source / "._a.jpg").write_bytes(b"\x00\x05\x16\x07")
    assert run(source) == 0
    records = load_coco(tmp_path / "out").records
    np.testing.assert_array_equal(np.concatenate([item.boxes for item in records]), [[0, 0, 4, 4], [1, 1, 5, 5]])
    error = capsys.readouterr().err
    assert "1 image sizes of 0 replaced" in error and "1 images found by the <filename>" in error


def test_voc_reads_the_splits_of_roboflow(tmp_path):
    for index, split in enumerate(("train", "valid")):
        (tmp_path / "in" / split).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / f"in/{split}/a_jpg.rf.1.jpg"), np.full((30, 40), 80 + index, np.uint8))
        (tmp_path / f"in/{split}/a_jpg.rf.1.xml").write_text(annotation((1 + index, 1, 4, 4)))
    assert run(tmp_path / "in") == 0
    for index, split in enumerate(("train", "val")):
        (item,) = load_coco(tmp_path / f"out/{split}.json").records
        np.testing.assert_array_equal(item.boxes, [[index, 0, 4, 4]])


def test_voc_reads_lists_of_single_classes(tmp_path):
    source = make(tmp_path / "in")
    (source / "ImageSets/Main/drone_train.txt").write_text("a  1\n")
    assert run(source, "--lists", "ImageSets/Main/drone_train.txt") == 0
    assert [item.path.name for item in load_coco(tmp_path / "out/drone_train.json").records] == ["a.jpg"]


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<annotations><image/></annotations>", "the root element must be <annotation>, got <annotations>"),
        (annotation((1, 1, "9" * 5000, 4)), "bndbox/xmax must be a number, got '999"),
        (annotation((1, 1, 4, 4)).replace("drone", "a&#10;b"), "object: a name must not contain control characters"),
        (annotation((1, 1, 4, 4)).replace("drone", "x" * 300), "object: a name must have at most 200 characters"),
    ],
)
def test_voc_refuses_other_files_in_one_short_line(tmp_path, capsys, xml, message):
    assert run(make(tmp_path / "in", xml)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and len(error) < 400


def test_voc_lists_cannot_lead_out_of_the_output_folder(tmp_path, capsys):
    source = make(tmp_path / "in")
    (source / "list.txt").write_text("../../escaped\n")
    assert run(source, "--lists", "list.txt") == 2
    assert "escaped" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_voc_lists_need_different_names(tmp_path, capsys):
    source = make(tmp_path / "in")
    (source / "Annotations/b.xml").write_text("<annotation/>")
    check_that_lists_need_different_names(run, source, tmp_path / "out", capsys)


def test_voc_image_named_twice_in_a_list_is_one_record(tmp_path, capsys):
    source = make(tmp_path / "in")
    (source / "Annotations/b.xml").write_text("<annotation/>")
    (source / "train.txt").write_text("a\nb\na\n")
    assert run(source, "--lists", "train.txt") == 0
    assert [item.path.stem for item in load_coco(tmp_path / "out/train.json").records] == ["a", "b"]
    error = capsys.readouterr().err
    assert "1 lines dropped: the list names an image twice, the first: train.json: a\n" in error
