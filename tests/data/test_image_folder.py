import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from danet.data.image_folder import find_images, image_size
from danet.utils.errors import UserError
from danet.utils.image_io import read_image


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_find_images_follows_links_and_ends_loops(tmp_path):
    touch(tmp_path / "raw/flight/a.png", tmp_path / "set/b/x.PNG", tmp_path / "single.jpg")
    os.symlink(tmp_path / "raw/flight", tmp_path / "set/linked")
    os.symlink("../set", tmp_path / "set/loop")
    os.symlink(tmp_path, tmp_path / "raw/flight/above")
    os.symlink(tmp_path / "single.jpg", tmp_path / "set/file.jpg")
    names = list(find_images(tmp_path / "set"))
    assert {"b/x", "file", "linked/a"} <= set(names) and len(names) < 20
    assert find_images(tmp_path / "set")["linked/a"] == tmp_path / "set/linked/a.png"


def test_find_images_does_not_search_the_whole_file_system(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/link").symlink_to("/")
    for root in (Path("/"), Path("/usr/.."), tmp_path / "set/link", tmp_path / "set"):
        with pytest.raises(UserError, match="is the root of the file system; name the folder of the dataset"):
            find_images(root)


def test_find_images_leaves_files_of_macos_out(tmp_path):
    touch(tmp_path / "a.jpg", tmp_path / "._a.jpg", tmp_path / "__MACOSX/a.jpg", tmp_path / ".DS_Store")
    assert list(find_images(tmp_path)) == ["a"]


def test_find_images_refuses_a_name_that_cannot_be_printed(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.png", "wb"):
        pass
    with pytest.raises(UserError, match="image: a name must not contain control characters") as caught:
        find_images(tmp_path)
    str(caught.value).encode()


def with_app_segment(jpeg, content):
    return jpeg[:2] + b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content + jpeg[2:]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
def test_image_size_equals_the_decoded_size(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    cv2.imwrite(str(path), np.zeros((48, 64, 3), np.uint8))
    assert image_size(path) == (64, 48)
    if suffix == ".jpg":
        jpeg = path.read_bytes()
        path.write_bytes(with_app_segment(jpeg, b"http://ns.adobe.com/xap/1.0/\0" + b"x" * 30_000))
        assert image_size(path) == (64, 48)
        # Orientation 6 in the EXIF data of a JPEG: the size is that of the image as it is read.
        tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
        path.write_bytes(with_app_segment(jpeg, b"Exif\0\0" + tiff))
        assert image_size(path) == read_image(path).shape[1::-1]


def test_image_size_names_a_broken_file(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8\xff")
    for name in ("a.png", "b.jpg", "none.png"):
        with pytest.raises(UserError, match=name):
            image_size(tmp_path / name)
