"""Draws boxes on small infrared frames, and contact sheets of images."""

from collections.abc import Sequence

import cv2
import numpy as np

from danet.utils.image_io import to_display
from danet.utils.printable import printable

# BGR colours that colour-blind people can distinguish, and that stand out from grey (after Okabe and Ito, and P. Tol).
PALETTE: tuple[tuple[int, int, int], ...] = (
    (66, 228, 240),  # yellow
    (255, 190, 86),  # sky blue
    (51, 119, 255),  # orange
    (170, 210, 60),  # mint
    (200, 170, 255),  # pink
)
SHADOW_COLOR = (24, 24, 24)
UNLABELLED_COLOR = (190, 190, 190)
FONT = cv2.FONT_HERSHEY_SIMPLEX
# Pixels between a box and its outline, so that a target of a few pixels stays visible with its surroundings.
OUTLINE_GAP_PIXELS = 1


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    scores: Sequence[float] | None = None,
    labels: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    colors: Sequence[tuple[int, int, int]] | None = None,
) -> np.ndarray:
    """Draws boxes with class names and scores, as thin lines outside of the box, so that the target stays visible.

    Args:
        image: ``[H, W]`` or ``[H, W, 3]`` BGR, uint8 or uint16; it is not changed.
        boxes: ``[M, 4]`` (x0, y0, x1, y1) in pixels: an array or a CPU tensor.
        scores: ``[M]``, drawn as 0.87.
        labels: ``[M]`` class indices; None means 0 for all. Boxes with negative labels are grey and have no name.
        names: class names, drawn before the score.
        colors: BGR of each class index, repeated if there are more classes; None means PALETTE.

    Returns:
        A new uint8 BGR image ``[H, W, 3]``.

    Example:
        >>> drawn = draw_boxes(np.zeros((64, 96), np.uint8), np.array([[20, 20, 30, 28]]), scores=[0.9])
        >>> drawn.shape
        (64, 96, 3)
    """
    canvas = to_display(image)
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    labels = [0] * len(boxes) if labels is None else [int(label) for label in labels]
    colors = PALETTE if colors is None else colors
    outlines = [_outline(box, canvas.shape) for box in boxes]
    paint = [colors[label % len(colors)] if label >= 0 else UNLABELLED_COLOR for label in labels]
    thickness = max(1, round(min(canvas.shape[:2]) / 600))
    for (x0, y0, x1, y1), color in zip(outlines, paint, strict=True):
        # Draw a dark line around the bright one, which is visible on a hot background too.
        cv2.rectangle(canvas, (x0 - 1, y0 - 1), (x1 + 1, y1 + 1), SHADOW_COLOR, thickness)
        cv2.rectangle(canvas, (x0, y0), (x1, y1), color, thickness)

    occupied = list(outlines)
    for index, (outline, color) in enumerate(zip(outlines, paint, strict=True)):
        words = []
        if names is not None and labels[index] >= 0:
            words.append(names[labels[index]])
        if scores is not None:
            words.append(f"{float(scores[index]):.2f}")
        if words:
            occupied.append(_label(canvas, printable(" ".join(words)), outline, color, occupied))
    return canvas


def draw_text(
    image: np.ndarray, text: str, origin: tuple[int, int], color: tuple[int, int, int] = (255, 255, 255)
) -> None:
    """Draws ``text`` with a dark outline into ``image`` (uint8 BGR, in place); ``origin`` is its lower left (x, y).

    Example:
        >>> image = np.zeros((32, 64, 3), np.uint8)
        >>> draw_text(image, "drone", (4, 20))
        >>> bool(image.any())
        True
    """
    text, scale = printable(text), _font_scale(image.shape)
    # Draw shifted copies instead of thick text: OpenCV 5 makes thick text wider, not only bolder.
    for dx, dy in ((-1, -1), (0, -1), (1, -1), (-1, 0), (1, 0), (-1, 1), (0, 1), (1, 1)):
        cv2.putText(image, text, (origin[0] + dx, origin[1] + dy), FONT, scale, SHADOW_COLOR, 1, cv2.LINE_AA)
    cv2.putText(image, text, origin, FONT, scale, color, 1, cv2.LINE_AA)


def enlarge(image: np.ndarray, factor: float) -> np.ndarray:
    """Resizes an image by ``factor``: cubic for enlargement, by area for reduction. Boxes scale by ``factor``.

    Example:
        >>> enlarge(np.zeros((20, 30), np.uint8), 2).shape
        (40, 60)
    """
    if factor == 1:
        return image
    height, width = image.shape[:2]
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA)


def contact_sheet(tiles: Sequence[np.ndarray], columns: int, titles: Sequence[str] | None = None) -> np.ndarray:
    """Arranges images in a grid on dark grey, each centred in a cell of the size of the largest, below its title.

    Args:
        tiles: at least one image ``[H, W]`` or ``[H, W, 3]`` BGR, uint8 or uint16; their sizes may differ.
        columns: maximum number of cells per row.
        titles: a line for each image, shortened if it is wider than the cell.

    Returns:
        uint8 BGR ``[H, W, 3]``.

    Raises:
        ValueError: there are no tiles.

    Example:
        >>> contact_sheet([np.zeros((20, 30), np.uint8)] * 3, columns=2).shape
        (52, 72, 3)
    """
    if not tiles:
        raise ValueError("contact_sheet: no tiles given")
    tiles = [to_display(tile) for tile in tiles]
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    height = max(tile.shape[0] for tile in tiles)
    width = max(tile.shape[1] for tile in tiles)
    title_height, border = (16 if titles is not None else 0), 4
    cell_height, cell_width = height + title_height + border, width + border
    sheet = np.full((rows * cell_height + border, columns * cell_width + border, 3), 40, np.uint8)
    for index, tile in enumerate(tiles):
        top = border + index // columns * cell_height
        left = border + index % columns * cell_width
        y = top + title_height + (height - tile.shape[0]) // 2
        x = left + (width - tile.shape[1]) // 2
        sheet[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
        if titles is not None:
            text = _shorten(printable(titles[index]), width)
            cv2.putText(sheet, text, (left, top + 11), FONT, TITLE_SCALE, (230, 230, 230), 1, cv2.LINE_AA)
    return sheet


TITLE_SCALE = 0.38
LEGEND_HEIGHT_PIXELS = 26
LEGEND_SCALE = 0.5


def add_legend(sheet: np.ndarray, entries: Sequence[tuple[tuple[int, int, int], str]]) -> np.ndarray:
    """Puts a legend above a sheet: a coloured square and a text for each entry, in as many rows as they need.

    Args:
        sheet: uint8 BGR ``[H, W, 3]``.
        entries: BGR colour and text.

    Returns:
        uint8 BGR ``[H + legend, W, 3]``.

    Example:
        >>> add_legend(np.zeros((100, 200, 3), np.uint8), [((0, 0, 255), "detected")]).shape
        (126, 200, 3)
    """
    width, square, gap = sheet.shape[1], 12, 8
    places, x, row = [], gap, 0
    for _, text in entries:
        length = square + 6 + cv2.getTextSize(text, FONT, LEGEND_SCALE, 1)[0][0] + 2 * gap
        if x > gap and x + length > width:
            x, row = gap, row + 1
        places.append((x, row * LEGEND_HEIGHT_PIXELS))
        x += length
    legend = np.full(((row + 1) * LEGEND_HEIGHT_PIXELS, width, 3), 40, np.uint8)
    for (color, text), (left, top) in zip(entries, places, strict=True):
        cv2.rectangle(legend, (left, top + 7), (left + square, top + 7 + square), color, -1)
        place = left + square + 6, top + 18
        cv2.putText(legend, text, place, FONT, LEGEND_SCALE, (230, 230, 230), 1, cv2.LINE_AA)
    return np.vstack([legend, sheet])


def _shorten(text: str, width: int) -> str:
    """Cuts off the end of ``text`` if it is wider than ``width`` pixels as a title."""

    def fits(candidate: str) -> bool:
        return cv2.getTextSize(candidate, FONT, TITLE_SCALE, 1)[0][0] <= width

    if fits(text):
        return text
    while text and not fits(text + ".."):
        text = text[:-1]
    return text + ".."


def _font_scale(shape: tuple[int, ...]) -> float:
    return max(0.35, min(shape[:2]) / 1200)


def _outline(box: np.ndarray, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """The rectangle of pixels (x0, y0, x1, y1, all inclusive) around ``box``, clipped to the image."""
    height, width = shape[:2]
    corners = [*(np.floor(box[:2]) - 1 - OUTLINE_GAP_PIXELS), *(np.ceil(box[2:]) + OUTLINE_GAP_PIXELS)]
    x0, y0, x1, y1 = np.clip(corners, 0, [width - 1, height - 1] * 2).astype(int).tolist()
    return x0, y0, x1, y1


def _label(
    canvas: np.ndarray,
    text: str,
    outline: tuple[int, int, int, int],
    color: tuple[int, int, int],
    occupied: Sequence[tuple[int, int, int, int]],
) -> tuple[int, int, int, int]:
    """Draws ``text`` around the outline where it overlaps ``occupied`` least; returns the rectangle of the text."""
    height, width = canvas.shape[:2]
    (text_width, ascent), descent = cv2.getTextSize(text, FONT, _font_scale(canvas.shape), 1)
    text_height = ascent + descent
    x0, y0, x1, y1 = outline
    middle = (y0 + y1 - text_height) // 2
    above, below = y0 - text_height - 1, y1 + 2
    flush_right = x1 - text_width
    candidates = [(x0, above), (x0, below), (flush_right, above), (flush_right, below)]
    candidates += [(x1 + 4, middle), (x0 - text_width - 4, middle)]

    def rectangle(place: tuple[int, int]) -> tuple[int, int, int, int]:
        left = min(max(place[0], 1), max(width - text_width - 2, 1))
        top = min(max(place[1], 1), max(height - text_height - 1, 1))
        return left, top, left + text_width, top + text_height

    best = min((rectangle(place) for place in candidates), key=lambda r: sum(_overlap(r, other) for other in occupied))
    draw_text(canvas, text, (best[0], best[3] - descent), color)
    return best


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> int:
    """Area in pixels of the intersection of two rectangles."""
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
