"""Whether an exported file computes what the network computes in PyTorch."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from danet.boxes import NMS_CANDIDATES, nms
from danet.data.synthetic.scene import make_scene
from danet.inference.detector import Detector
from danet.models import DANet
from danet.utils.errors import UserError

BOXES, SCORES = 0.1, 1e-3
"""Largest differences that are accepted: pixels, and a score."""

SCENES = ((1, (256, 320)), (2, (97, 139)))
"""Images, and height and width, of the batches of synthetic scenes that every file is tried with."""


@dataclass
class Differences:
    """The largest ones over all batches, against how many images."""

    images: int = 0
    boxes: float = 0.0
    """In pixels, of the positions that can become detections."""
    scores: float = 0.0


def synthetic() -> Iterator[tuple[str, list[np.ndarray]]]:
    """Named batches of scenes, the same every time: uint8 ``[H, W]``, even and odd sizes, one image and two."""
    rng = np.random.default_rng(0)
    for count, (height, width) in SCENES:
        yield f"a synthetic scene of {height}x{width}", [make_scene((height, width), 8, rng)[0] for _ in range(count)]


@torch.inference_mode()
def compare(
    run: Callable[[Tensor], list[Tensor]],
    model: DANet,
    batches: Iterable[tuple[str, list[np.ndarray]]],
    *,
    input_size: tuple[int, int] | None,
    thresholds: dict,
) -> Differences:
    """Runs a file on named batches of images and compares with the model as it was trained, in eval mode on the CPU.

    Scores are compared everywhere, boxes clipped to the image and of its NMS_CANDIDATES best positions: no others can
    be detected.

    Args:
        run: the file, from images to boxes, scores, and, where it suppresses, what it selects.
        input_size, thresholds: those of the file.

    Raises:
        UserError: one line that says in which image, where in it, and by how much they differ.
    """
    detector = Detector(model, input_size=input_size, deploy=False)
    differences = Differences()
    for name, images in batches:
        tensor = detector.preprocess(images)[0]
        output, _ = detector.forward(tensor, [])
        expected = model.head.boxes(output.deltas), model.head.scores(output.logits)
        boxes, scores, *selected = run(tensor)
        for found, plain in zip((boxes, scores), expected, strict=True):
            if found.shape != plain.shape:
                raise UserError(f"{name}: {list(found.shape)} where PyTorch has {list(plain.shape)}")
        for i in range(len(images)):
            best = expected[1][i].amax(1).topk(min(NMS_CANDIDATES, expected[1].shape[1])).indices
            box = _largest(_clipped(boxes[i, best], tensor), _clipped(expected[0][i, best], tensor))
            score = _largest(scores[i], expected[1][i])
            for what, unit, (difference, at), limit, places in (
                ("box", " pixel", box, BOXES, expected[0][i, best]),
                ("score", "", score, SCORES, expected[0][i]),
            ):
                if not difference <= limit:  # a NaN is a difference
                    x0, y0, x1, y1 = places[at].tolist()
                    place = f"({(x0 + x1) / 2:.0f}, {(y0 + y1) / 2:.0f})"
                    said = f"differs from PyTorch's by {difference:.3g}{unit}, more than {limit:g}"
                    raise UserError(f"{name}: the {what} at {place} {said}")
            if selected:
                _check_selection(name, boxes[i], scores[i], selected[0][selected[0][:, 0] == i, 2], thresholds)
            differences.images += 1
            differences.boxes = max(differences.boxes, box[0])
            differences.scores = max(differences.scores, score[0])
    return differences


def _clipped(boxes: Tensor, images: Tensor) -> Tensor:
    """The part of boxes ``[P, 4]`` that lies in the images, as detections have it."""
    height, width = images.shape[2:]
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))


def _largest(found: Tensor, expected: Tensor) -> tuple[float, int]:
    """The largest difference of ``[P, values]``, and its position; NaN is larger than anything."""
    each = (found - expected).abs().amax(1)
    at = int(each.argmax())
    return float(each[at]), at


def _check_selection(name: str, boxes: Tensor, scores: Tensor, selected: Tensor, thresholds: dict) -> None:
    """Raises UserError unless a file has selected of its own boxes those that ``danet.boxes`` selects."""
    best = scores.amax(1)
    candidates = (best > thresholds["score_threshold"]).nonzero()[:, 0]
    kept = nms(boxes[candidates], best[candidates], thresholds["iou_threshold"])[: thresholds["max_detections"]]
    if set(selected.tolist()) != set(candidates[kept].tolist()):
        raise UserError(f"{name}: {len(selected)} boxes are selected where PyTorch selects {len(kept)}, or others")
