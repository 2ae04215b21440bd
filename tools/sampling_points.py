"""Draws the sampling points of SDC: python tools/sampling_points.py sheet.png IMAGE:X,Y [IMAGE:X,Y ...]

X,Y is the pixel of a target. For every target and for the stages at strides 4, 8 and 16, the sheet shows the
surroundings of the pixel with the nine sampling points of every group, one colour per group. The area of a disc is the
point's softmax weight. By default, the detector in the package is used; --weights chooses another one.
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

STAGES = 3
SIDE_PIXELS = 72
"""Side of the surroundings shown, before magnification."""
MAGNIFICATION = 5


def sampling_points(model: DANet, image: np.ndarray, x: float, y: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Sampling points of the feature at pixel (x, y), for each of the first STAGES stages.

    Returns:
        Positions ``[G, K, 2]`` as (x, y) in pixels, and softmax weights ``[G, K]``, for G groups and K points each.
    """
    predicted: dict[int, torch.Tensor] = {}
    sdcs = [block.sdc for block in model.backbone.modules() if isinstance(block, SaFEM)]
    if not sdcs:
        raise UserError("--weights: this detector has no SaFEM, hence no sampling points; give another file")
    hooks = [
        sdc.predictor.register_forward_hook(lambda _, __, out, at=at: predicted.update({at: out[0]}))
        for at, sdc in enumerate(sdcs)
    ]
    Detector(model, deploy=False)(image)
    for hook in hooks:
        hook.remove()
    points = []
    for level, sdc in enumerate(sdcs[:STAGES]):
        stride, side = model.backbone.strides[level], sdc.kernel_size
        column, row = int(x // stride), int(y // stride)
        values = predicted[level][:, row, column]
        offsets = values[: 2 * sdc.groups * side**2].reshape(sdc.groups, side**2, 2).flip(-1).numpy()
        weights = values[2 * sdc.groups * side**2 :].reshape(sdc.groups, side**2).softmax(1).numpy()
        grid = np.stack(np.meshgrid(*[np.arange(side) - side // 2] * 2), -1).reshape(-1, 2)
        points.append(((np.array([column, row]) + 0.5 + grid + offsets) * stride, weights))
    return points


def draw(image: np.ndarray, x: float, y: float, positions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The magnified surroundings of pixel (x, y) with the sampling points."""
    half = SIDE_PIXELS // 2
    padded = cv2.copyMakeBorder(to_display(image), half, half, half, half, cv2.BORDER_REPLICATE)
    left, top = int(x) - half, int(y) - half
    picture = enlarge(padded[top + half :, left + half :][:SIDE_PIXELS, :SIDE_PIXELS], MAGNIFICATION)
    for group, color in enumerate(PALETTE[: len(positions)]):
        for (point_x, point_y), weight in zip(positions[group], weights[group], strict=True):
            center = round((point_x - left) * MAGNIFICATION), round((point_y - top) * MAGNIFICATION)
            radius = max(2, round(14 * float(weight) ** 0.5))
            cv2.circle(picture, center, radius, (20, 20, 20), 2, cv2.LINE_AA)
            cv2.circle(picture, center, radius, color, -1 if weight > 0.02 else 1, cv2.LINE_AA)
    return picture


def parse(target: str) -> tuple[str, float, float]:
    """Splits IMAGE:X,Y into the path and the pixel."""
    path, _, pixel = target.rpartition(":")
    try:
        x, y = (float(value) for value in pixel.split(","))
    except ValueError:
        raise UserError(f"target: must be IMAGE:X,Y, got {target}") from None
    return path, x, y


@dataclass
class Options:
    """Command-line options."""

    sheet: str
    """Image file to write; also given as the first argument."""

    targets: list[str]
    """Target pixels as IMAGE:X,Y; also given as the arguments after the first."""

    weights: str = str(SHIPPED)
    """Weights file of the detector. Default: the detector in the package."""


def show(options: Options) -> None:
    """Draws the sampling points of SDC at target pixels."""
    check_folder(Path(options.sheet).parent)
    model, _ = load_weights(options.weights)
    tiles, titles = [], []
    for target in options.targets:
        path, x, y = parse(target)
        image = read_image(path)
        if not (0 <= x < image.shape[1] and 0 <= y < image.shape[0]):
            size = f"{image.shape[1]} x {image.shape[0]} pixels"
            raise UserError(f"{target}: the pixel is outside of the image of {size}")
        for level, (positions, weights) in enumerate(sampling_points(model, image, x, y)):
            tiles.append(draw(image, x, y, positions, weights))
            titles.append(f"{Path(path).parent.name}, stride {model.backbone.strides[level]}")
    write_image(options.sheet, contact_sheet(tiles, STAGES, titles))


if __name__ == "__main__":
    raise SystemExit(cli.run(show, Options, prog="sampling_points", positionals=["sheet", "targets"]))
