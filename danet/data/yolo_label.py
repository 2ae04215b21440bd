"""Finds and reads the label files of YOLO datasets.

A label file has one line ``class x y width height`` per box, relative to the image size, or ``class x1 y1 x2 y2 ...``
with the corners of a polygon, of which the extent is used.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from danet.data.image_record import Repairs, check_box_count
from danet.utils.errors import UserError
from danet.utils.files import read_text
from danet.utils.names import quote

RELATIVE_TOLERANCE = 0.1
"""How far a coordinate may lie outside of the range from 0 to 1; tools write such values for boxes at the image's edge.
Labels in pixels exceed it."""

POLYGON = "polygons changed: replaced by their extent"
KEYPOINTS = "key points dropped: only the box is used"
CONFIDENCE = "confidences dropped: labels of a detector"
DECIMAL_CLASS = "classes changed: written with a decimal point"


def find_label(image: Path, root: Path) -> Path | None:
    """Finds the label file of an image.

    One folder ``images`` of the path is replaced by ``labels``; folders below ``root`` are tried first, and the last
    one before the others. If no such file exists, the label is searched beside the image.

    If the image is a link, the label of the link's own path comes before that of the file it refers to.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> (folder / "a.txt").touch()
        >>> find_label(folder / "a.png", folder).name
        'a.txt'
    """
    paths = [image]
    if (real := image.resolve()) != image:
        paths.append(real)
    return next((label for path in paths for label in _label_paths(path, root) if label.is_file()), None)


def _label_paths(image: Path, root: Path) -> Iterator[Path]:
    """Yields the places where the label file of an image may be, the most usual one first."""
    start = len(root.parts) if image.is_relative_to(root) else 0
    parts = list(image.with_suffix(".txt").parts)
    folders = [index for index, part in enumerate(parts[:-1]) if part == "images"]
    # Below the dataset's folder first: a folder above it may be called images, too.
    for index in sorted(folders, key=lambda index: (index >= start, index), reverse=True):
        yield Path(*parts[:index], "labels", *parts[index + 1 :])
    yield Path(*parts)


def read_label(
    path: Path, size: Sequence[int], names: Sequence[str], repairs: Repairs, keypoint_values: int = 0
) -> tuple[list[list[float]], list[str]]:
    """Reads a label file.

    Args:
        path: the file.
        size: (width, height) of the image in pixels.
        names: the class names.
        repairs: counts polygons, and what else was changed.
        keypoint_values: number of values after the box in the lines of a pose dataset.

    Returns:
        Boxes (x0, y0, x1, y1) in pixels, not clipped to the image, and the class name of each.

    Raises:
        UserError: if a line is neither a box nor a polygon, a value is out of its range by more than
            RELATIVE_TOLERANCE, or there are too many boxes.

    Example:
        >>> path = getfixture("tmp_path") / "a.txt"
        >>> _ = path.write_text("0 0.5 0.5 0.25 0.5")
        >>> read_label(path, (64, 48), ["drone"], Repairs())
        ([[24.0, 12.0, 40.0, 36.0]], ['drone'])
    """
    width, height = size
    boxes, classes = [], []
    lines = read_text(path).split("\n")
    check_box_count(sum(map(bool, map(str.strip, lines))), str(path))
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        place = f"{path}: line {number}"
        try:
            index, values = _class_index(words[0], place, repairs), list(map(float, words[1:]))
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{place}: must be an integer and four numbers, got {quote(line.strip())}") from None
        if not 0 <= index < len(names):
            known = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            raise UserError(f"{place}: class {quote(index)} has no name; there are {len(names)} ({known})")
        x0, y0, x1, y1 = _extent(values, place, line, repairs, keypoint_values)
        boxes.append([x0 * width, y0 * height, x1 * width, y1 * height])
        classes.append(names[index])
    return boxes, classes


def _class_index(word: str, place: str, repairs: Repairs) -> int:
    """The class of a line, an integer; some tools write 0.0."""
    try:
        return int(word)
    except ValueError:
        value = float(word)
        if not value.is_integer():
            raise
        repairs.add(DECIMAL_CLASS, place)
        return int(value)


def _extent(values: list[float], place: str, line: str, repairs: Repairs, keypoint_values: int) -> tuple[float, ...]:
    """Corners (x0, y0, x1, y1), relative to the image size, of the values after the class."""
    count = len(values)
    is_polygon = count >= 6 and count % 2 == 0
    if keypoint_values and count == 4 + keypoint_values:
        repairs.add(KEYPOINTS, place)
        values, is_polygon = values[:4], False
    elif count == 5 and 0 <= values[4] <= 1:
        repairs.add(CONFIDENCE, place)
        values = values[:4]
    elif count != 4 and not is_polygon:
        raise UserError(f"{place}: must be 'class x y width height', got {count + 1} words")
    # The comparison is false for values that are not finite, too.
    in_range = all(-RELATIVE_TOLERANCE <= value <= 1 + RELATIVE_TOLERANCE for value in values)
    if not in_range or (not is_polygon and min(values[2:]) < 0):
        problem = "coordinates must be between 0 and 1, relative to the image size"
        raise UserError(f"{place}: {problem}, got {quote(line.strip())}")
    if is_polygon:
        repairs.add(POLYGON, place)
        return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
    x, y, w, h = values
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2
