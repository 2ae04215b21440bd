"""Imports Pascal VOC: one xml file per image, with the corners of boxes in pixels.

In Pascal VOC the corners are integers, both corners belong to the box, and the first pixel of an image has the number
1: the box covers ``[xmin - 1, xmax)``. Tools that write decimals, such as CVAT, mean positions in the image, which
starts at 0: the box covers ``[xmin, xmax)``. ``--corners`` chooses one of the two; by default it is decided from the
numbers.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from danet.data.coco_files import split_of
from danet.data.image_folder import find_images, walk_files
from danet.data.image_record import check_box_count, check_categories
from danet.data.importers.base import ImportFolder, ImportOptions, read_lists, run_import
from danet.data.yolo_config import SPLITS
from danet.utils.errors import UserError
from danet.utils.files import read_xml
from danet.utils.names import check_name, quote
from danet.utils.progress import track

XML_SUFFIXES = frozenset({".xml"})
CORNERS = ("xmin", "ymin", "xmax", "ymax")

DECIMALS = "boxes with decimal corners: read as positions, so that a box is xmax - xmin wide"
NO_SIZE = "image sizes of 0 replaced by those of the images"
BY_FILENAME = "images found by the <filename> in the xml file"


@dataclass
class Options(ImportOptions):
    """Options of ``danet data import voc``."""

    source: str
    """Folder that contains the images and the xml files, such as VOC2007; labelImg and Roboflow write both into one
    folder."""

    out: str
    """Output folder; the import writes images/ and annotations.json, or one json per list or per folder train, valid
    and test."""

    images: str | None = None
    """Folder of the images, relative to the source ('.' is the source itself); by default JPEGImages or images if there
    is one, or else the source."""

    annotations: str | None = None
    """Folder of the xml files, relative to the source; by default Annotations or annotations if there is one, or else
    the source."""

    lists: list[str] = field(default_factory=list)
    """Text files with one image name per line, such as ImageSets/Main/train.txt; the import writes a json for each of
    them. Without lists, the images of all xml files go into annotations.json."""

    corners: Literal["auto", "inclusive", "exclusive"] = "auto"
    """inclusive: a box is xmax - xmin + 1 pixels wide, as in Pascal VOC; exclusive: it is xmax - xmin wide, as in CVAT;
    auto: exclusive if most boxes are written with decimals."""

    first_pixel: int | None = None
    """Number of the first pixel of an image: 1 in Pascal VOC, 0 in the xml files of some tools. By default 1 with
    inclusive corners and 0 with exclusive ones."""


class Annotation(NamedTuple):
    """The content of an xml file."""

    xml: Path
    filename: str
    size: list[int] | None
    """(width, height) as stated in the file."""
    names: list[str]
    corners: list[list[float]]
    """xmin, ymin, xmax and ymax of each object, as stated in the file."""
    ignore: list[bool]
    decimal: int
    """Number of objects whose corners are written with a decimal point."""


def import_voc(options: Options) -> None:
    """Imports Pascal VOC xml files; objects marked difficult become ignore regions."""
    source = Path(options.source)
    if not source.is_dir():
        raise UserError(f"{source}: no such folder")
    image_folder = _choose_folder(source, options.images, "JPEGImages", "images")
    folder = _choose_folder(source, options.annotations, "Annotations", "annotations")
    images = find_images(image_folder)
    lists = _list_names(options, source, folder, images)
    annotations = {json: {name: _read(folder / f"{name}.xml") for name in names} for json, names in lists.items()}
    every = [item for items in annotations.values() for item in items.values()]
    is_exclusive = options.corners == "exclusive"
    if options.corners == "auto":
        is_exclusive = 0 < sum(len(item.names) for item in every) <= 2 * sum(item.decimal for item in every)
    first_pixel = int(not is_exclusive) if options.first_pixel is None else options.first_pixel
    categories = check_categories(sorted({name for item in every for name in item.names}), str(folder))
    used: set[Path] = set()
    own = {name for items in annotations.values() for name in items}
    with ImportFolder(options) as out:
        for json, items in annotations.items():
            records = []
            for name in track(out.without_repetitions(lists[json], json), f"importing {json}", quiet=options.quiet):
                item = items[name]
                image = _find_image(name, item, images, own, out)
                used.add(image)
                path, *size = out.copy(image, name + image.suffix)
                _check_size(item, image, size, out)
                shifts = (first_pixel, first_pixel, first_pixel - (not is_exclusive), first_pixel - (not is_exclusive))
                boxes = [[value - shift for value, shift in zip(box, shifts, strict=True)] for box in item.corners]
                if is_exclusive and item.decimal and options.corners == "auto":
                    out.repairs.add(DECIMALS, str(item.xml), item.decimal)
                records.append(out.record(path, size, boxes, item.names, ignore=item.ignore, place=str(item.xml)))
            out.write(json, records, categories)
    left = len(images) - len(used)
    if left > 0 and not options.lists:
        out.note(f"{image_folder}: {left} images without an xml file are left out")


def _choose_folder(source: Path, requested: str | None, *usual: str) -> Path:
    """The requested folder below the source, or the first usual one that exists, or the source itself."""
    if requested is not None:
        return source / requested
    return next((source / name for name in usual if (source / name).is_dir()), source)


def _list_names(options: Options, source: Path, folder: Path, images: dict[str, Path]) -> dict[str, list[str]]:
    """The xml files of each json to write, without suffix and relative to their folder."""
    if options.lists:
        lists = read_lists(options.lists, source)
        return {json: [_listed_name(name, images) for name in names] for json, names in lists.items()}
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in walk_files(folder, XML_SUFFIXES)]
    if not names:
        raise UserError(f"{folder}: no xml files in this folder")
    # Roboflow: folders train, valid and test.
    if {name.partition("/")[0] if "/" in name else "" for name in names} <= SPLITS.keys():
        jsons: dict[str, list[str]] = {}
        for name in names:
            jsons.setdefault(f"{split_of(name.partition('/')[0])}.json", []).append(name)
        return jsons
    return {"annotations.json": sorted(names)}


def _listed_name(name: str, images: dict[str, Path]) -> str:
    """An entry of a list; the lists of single classes have 1 or -1 after the name."""
    first, _, flag = name.rpartition(" ")
    return first.strip() if name not in images and flag in ("1", "-1", "0") and first else name


def _find_image(name: str, item: Annotation, images: dict[str, Path], own: set[str], out: ImportFolder) -> Path:
    """The image of an xml file: it has the same name, or that of <filename> if no other xml file has that name."""
    if name in images:
        return images[name]
    stated = os.path.splitext(item.filename.replace("\\", "/").rpartition("/")[2])[0]
    beside = os.path.join(os.path.dirname(name), stated)
    if beside not in images or beside in own:
        raise UserError(f"{item.xml}: there is no image {name!r}")
    out.repairs.add(BY_FILENAME, str(item.xml))
    return images[beside]


def _check_size(item: Annotation, image: Path, size: Sequence[int], out: ImportFolder) -> None:
    """Compares the size that an xml file states with that of the image; some tools write 0."""
    if item.size == [0, 0]:
        out.repairs.add(NO_SIZE, str(item.xml))
    elif item.size is not None and item.size != list(size):
        stated = f"{item.size[0]} x {item.size[1]}"
        raise UserError(f"{item.xml}: says {stated}, but {image} is {size[0]} x {size[1]}")


def _read(xml: Path) -> Annotation:
    """Reads an xml file."""
    if not xml.is_file():
        raise UserError(f"{xml}: cannot be read (No such file or directory)")
    root = read_xml(xml)
    if root.tag != "annotation":
        raise UserError(f"{xml}: not Pascal VOC (the root element must be <annotation>, got <{quote(root.tag)[1:-1]}>)")
    size = None
    if root.find("size") is not None:
        size = [int(_number(xml, root.findtext(key), key)) for key in ("size/width", "size/height")]
    found = Annotation(xml, (root.findtext("filename") or "").strip(), size, [], [], [], 0)
    decimal = 0
    objects = list(root.iter("object"))
    check_box_count(len(objects), str(xml))
    for item in objects:
        box = item.find("bndbox")
        texts = {f"bndbox/{key}": None if box is None else box.findtext(key) for key in CORNERS}
        corners = [_number(xml, text, key) for key, text in texts.items()]
        if corners[2] < corners[0] or corners[3] < corners[1]:
            raise UserError(f"{xml}: a box has a negative size: {quote(corners)}")
        name = (item.findtext("name") or "").strip()
        if not name:
            raise UserError(f"{xml}: an object has no name")
        found.names.append(check_name(name, f"{xml}: object"))
        found.corners.append(corners)
        found.ignore.append((item.findtext("difficult") or "0").strip().lower() in ("1", "true"))
        decimal += any("." in (text or "") for text in texts.values())
    return found._replace(decimal=decimal)


def _number(xml: Path, text: str | None, key: str) -> float:
    """Reads a finite number from the text of the element ``key``."""
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{xml}: {key} must be a number, got {quote(text)}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``danet data import voc``."""
    return run_import(import_voc, Options, argv)
