import cv2
import numpy as np
import pytest

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
