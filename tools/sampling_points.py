"""Draws where SDC looks: python tools/sampling_points.py sheet.png IMAGE:X,Y [IMAGE:X,Y ...]

X, Y: the pixel of a target. For every image and for the stages at strides 4, 8 and 16 a picture of its surroundings
with the nine taps of each of the four groups (a colour each) of the feature at that pixel; a tap's disc has the area of
its weight after the softmax. The detector is the one in the package, or --weights.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from danet.checkpoint import SHIPPED, load_weights
from danet.inference.detector import Detector
from danet.models import DANet
from danet.models.safem import SaFEM
from danet.utils import cli
from danet.utils.drawing import PALETTE, contact_sheet, enlarge
from danet.utils.errors import UserError
from danet.utils.files import check_folder
from danet.utils.image_io import read_image, to_display, write_image

STAGES, SIDE, SCALE = 3, 72, 5


def taps(model: DANet, image: np.ndarray, x: float, y: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each stage the taps of the feature at pixel (x, y): where, [G, K, 2] as (x, y) pixels, and weights [G, K]."""
    predicted: dict[int, torch.Tensor] = {}
    sdcs = [block.sdc for block in model.backbone.modules() if isinstance(block, SaFEM)]
    if not sdcs:
        raise UserError("this detector has no SaFEM")
    hooks = [
        sdc.predictor.register_forward_hook(lambda _, __, out, at=at: predicted.update({at: out[0]}))
        for at, sdc in enumerate(sdcs)
    ]
    Detector(model, deploy=False)(image)
    for hook in hooks:
        hook.remove()
    found = []
    for level, sdc in enumerate(sdcs[:STAGES]):
        stride, side = model.backbone.strides[level], sdc.kernel_size
        column, row = int(x // stride), int(y // stride)
        values = predicted[level][:, row, column]
        offsets = values[: 2 * sdc.groups * side**2].reshape(sdc.groups, side**2, 2).flip(-1).numpy()
        weights = values[2 * sdc.groups * side**2 :].reshape(sdc.groups, side**2).softmax(1).numpy()
        grid = np.stack(np.meshgrid(*[np.arange(side) - side // 2] * 2), -1).reshape(-1, 2)
        found.append(((np.array([column, row]) + 0.5 + grid + offsets) * stride, weights))
    return found


def draw(image: np.ndarray, x: float, y: float, where: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The surroundings of pixel (x, y), enlarged, with the taps."""
    half = SIDE // 2
    padded = cv2.copyMakeBorder(to_display(image), half, half, half, half, cv2.BORDER_REPLICATE)
    left, top = int(x) - half, int(y) - half
    picture = enlarge(padded[top + half : top + half + SIDE, left + half : left + half + SIDE], SCALE)
    for group, color in enumerate(PALETTE[: len(where)]):
        for (tap_x, tap_y), weight in zip(where[group], weights[group], strict=True):
            center = round((tap_x - left) * SCALE), round((tap_y - top) * SCALE)
            radius = max(2, round(14 * float(weight) ** 0.5))
            cv2.circle(picture, center, radius, (20, 20, 20), 2, cv2.LINE_AA)
            cv2.circle(picture, center, radius, color, -1 if weight > 0.02 else 1, cv2.LINE_AA)
    return picture


def parse(target: str) -> tuple[str, float, float]:
    path, _, place = target.rpartition(":")
    try:
        x, y = (float(value) for value in place.split(","))
    except ValueError:
        raise UserError(f"{target}: must be IMAGE:X,Y") from None
    return path, x, y


@dataclass
class Options:
    """Options of the tool."""

    sheet: str
    """Picture to write; also given as the first word."""

    targets: list[str]
    """Pixels of targets, IMAGE:X,Y; the words after the first."""

    weights: str = str(SHIPPED)
    """Of another detector."""


def show(options: Options) -> None:
    """Draws where SDC looks."""
    check_folder(Path(options.sheet).parent)
    model, _ = load_weights(options.weights)
    tiles, titles = [], []
    for target in options.targets:
        path, x, y = parse(target)
        image = read_image(path)
        if not (0 <= x < image.shape[1] and 0 <= y < image.shape[0]):
            raise UserError(f"{target}: outside of the image of {image.shape[1]} x {image.shape[0]} pixels")
        for level, (where, weights) in enumerate(taps(model, image, x, y)):
            tiles.append(draw(image, x, y, where, weights))
            titles.append(f"{Path(path).parent.name}, stride {model.backbone.strides[level]}")
    write_image(options.sheet, contact_sheet(tiles, STAGES, titles))


if __name__ == "__main__":
    raise SystemExit(cli.run(show, Options, prog="sampling_points", positionals=["sheet", "targets"]))
