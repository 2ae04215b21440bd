"""Pascal VOC: one xml an image, with ``bndbox`` corners in whole pixels.

Both corners are pixels that belong to the box: where an image's first pixel has the number ``first``, the
box covers ``[xmin - first, xmax + 1 - first)``.
"""

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from danet.data.coco_dataset import ImageRecord
from danet.data.importers.base import ImportFolder, ImportOptions, find_images, make_record, read_names, run_import
from danet.utils.errors import UserError
from danet.utils.progress import track


@dataclass
class Options(ImportOptions):
    """Options of ``danet data import voc``."""

    source: str
    """Folder that holds the images and the xml files, such as VOC2007."""

    out: str
    """Folder to write: images/ and annotations.json, or one json a list."""

    images: str = "JPEGImages"
    """Folder of the images below the source ('.' is the source itself)."""

    annotations: str = "Annotations"
    """Folder of the xml files below the source."""

    lists: list[str] = field(default_factory=list)
    """Text files with one image name a line, each of which gives a json of its name
    (ImageSets/Main/train.txt); without them all xml files go into annotations.json."""

    first_pixel: int = 1
    """Number of an image's first pixel: 1 in Pascal VOC itself, 0 in the xml files of some tools. Either way
    pixel xmax is part of the box, which is xmax - xmin + 1 wide."""


def import_voc(options: Options) -> None:
    """Imports Pascal VOC xml files; objects marked difficult become ignore regions."""
    source = Path(options.source)
    images = find_images(source / options.images)
    folder = source / options.annotations
    lists = {f"{Path(name).stem}.json": read_names(name, source) for name in options.lists}
    if not lists:
        lists = {"annotations.json": [path.relative_to(folder).with_suffix("").as_posix() for path in _xmls(folder)]}
    with ImportFolder(options) as out:
        jsons: dict[str, list[ImageRecord]] = {}
        for json, names in lists.items():
            jsons[json] = []
            for name in track(names, f"importing {json}", quiet=options.quiet):
                if name not in images:
                    raise UserError(f"{folder / name}.xml: there is no image {name!r} in {source / options.images}")
                jsons[json].append(_import_image(images[name], name, folder / f"{name}.xml", options.first_pixel, out))
        categories = sorted({name for records in jsons.values() for item in records for name in item.names})
        for json, records in jsons.items():
            out.write(json, records, categories)
    left = len(images) - sum(map(len, jsons.values()))
    if left > 0 and not options.lists:
        out.note(f"{source / options.images}: {left} images without an xml file are left out")


def _import_image(image: Path, name: str, xml: Path, first_pixel: int, out: ImportFolder) -> ImageRecord:
    try:
        root = ElementTree.parse(xml).getroot()
    except OSError as error:
        raise UserError(f"{xml}: cannot be read ({error.strerror})") from error
    except ElementTree.ParseError as error:
        raise UserError(f"{xml}: not valid XML ({error})") from error
    path, *size = out.copy(image, name + image.suffix)
    if root.find("size") is not None:
        said = [int(_number(xml, root, f"size/{side}")) for side in ("width", "height")]
        if said != size:
            raise UserError(f"{xml}: says {said[0]} x {said[1]}, but {image} is {size[0]} x {size[1]}")
    boxes, names, ignore = [], [], []
    for item in root.iter("object"):
        x0, y0, x1, y1 = (_number(xml, item, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax"))
        if x1 < x0 or y1 < y0:
            raise UserError(f"{xml}: a box has a negative size: {[x0, y0, x1, y1]}")
        category = (item.findtext("name") or "").strip()
        if not category:
            raise UserError(f"{xml}: an object has no name")
        boxes.append([x0 - first_pixel, y0 - first_pixel, x1 + 1 - first_pixel, y1 + 1 - first_pixel])
        names.append(category)
        ignore.append((item.findtext("difficult") or "0").strip() == "1")
    return make_record(path, size, boxes, names, ignore=ignore)


def _xmls(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found = sorted(folder.rglob("*.xml"))
    if not found:
        raise UserError(f"{folder}: no xml files in this folder")
    return found


def _number(xml: Path, item: ElementTree.Element, key: str) -> float:
    text = item.findtext(key)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{xml}: {key} must be a number, got {text!r}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``danet data import voc``."""
    return run_import(import_voc, Options, argv)
