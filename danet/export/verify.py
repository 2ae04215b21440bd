"""Compares the outputs of an exported file with those of the network in PyTorch."""

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

MAX_BOX_DIFFERENCE_PIXELS = 0.1
MAX_SCORE_DIFFERENCE = 1e-3

SYNTHETIC_BATCHES = ((1, (256, 320)), (2, (97, 139)))
"""Batch size, and (height, width) in pixels, of the synthetic scenes that every file is compared on."""


@dataclass
class Differences:
    """Maximum differences over all batches, and the number of images compared."""

    images: int = 0
    boxes: float = 0.0
    """In pixels, over the positions that can become detections."""
    scores: float = 0.0


def synthetic_batches() -> Iterator[tuple[str, list[np.ndarray]]]:
    """Yields named batches of synthetic scenes, uint8 ``[H, W]``; they are the same in every call."""
    rng = np.random.default_rng(0)
    for count, (height, width) in SYNTHETIC_BATCHES:
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
    """Compares a file with the model that is not fused, in eval mode on the CPU, on named batches of images.

    Scores are compared at all positions. Boxes are clipped to the image and compared at its NMS_CANDIDATES best
    positions, because no other position can become a detection.

    Args:
        run: the file as a function from images to boxes, scores and, if it has NMS, the selected positions.
        model: the model that was exported.
        batches: names and images.
        input_size, thresholds: those in the description of the file.

    Raises:
        UserError: the outputs differ; the message names the image, the position and the difference.
    """
    detector = Detector(model, input_size=input_size, deploy=False)
    differences = Differences()
    for name, images in batches:
        tensor = detector.preprocess(images)[0]
        output, _ = detector.forward(tensor, [])
        expected = model.head.boxes(output.deltas), model.head.scores(output.logits)
        boxes, scores, *selected = run(tensor)
        for actual, reference in zip((boxes, scores), expected, strict=True):
            if actual.shape != reference.shape:
                raise UserError(f"{name}: the shape is {list(actual.shape)}, in PyTorch {list(reference.shape)}")
        for i in range(len(images)):
            best = expected[1][i].amax(1).topk(min(NMS_CANDIDATES, expected[1].shape[1])).indices
            box = _max_difference(_clipped(boxes[i, best], tensor), _clipped(expected[0][i, best], tensor))
            score = _max_difference(scores[i], expected[1][i])
            for kind, unit, (difference, index), limit, reference_boxes in (
                ("box", " pixel", box, MAX_BOX_DIFFERENCE_PIXELS, expected[0][i, best]),
                ("score", "", score, MAX_SCORE_DIFFERENCE, expected[0][i]),
            ):
                if not difference <= limit:  # also True for NaN
                    x0, y0, x1, y1 = reference_boxes[index].tolist()
                    centre = f"({(x0 + x1) / 2:.0f}, {(y0 + y1) / 2:.0f})"
                    excess = f"differs from PyTorch's by {difference:.3g}{unit}, more than {limit:g}"
                    raise UserError(f"{name}: the {kind} at {centre} {excess}")
            if selected:
                _check_selection(name, boxes[i], scores[i], selected[0][selected[0][:, 0] == i, 2], thresholds)
            differences.images += 1
            differences.boxes = max(differences.boxes, box[0])
            differences.scores = max(differences.scores, score[0])
    return differences


def _clipped(boxes: Tensor, images: Tensor) -> Tensor:
    """Boxes ``[P, 4]`` clipped to the images, as detections are."""
    height, width = images.shape[2:]
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))


def _max_difference(actual: Tensor, expected: Tensor) -> tuple[float, int]:
    """The maximum difference of ``[P, values]`` and its position; NaN counts as the maximum."""
    differences = (actual - expected).abs().amax(1)
    index = int(differences.argmax())
    return float(differences[index]), index


def _check_selection(name: str, boxes: Tensor, scores: Tensor, selected: Tensor, thresholds: dict) -> None:
    """Raises UserError unless a file selects the same of its boxes as ``danet.boxes.nms``."""
    best = scores.amax(1)
    candidates = (best > thresholds["score_threshold"]).nonzero()[:, 0]
    kept = nms(boxes[candidates], best[candidates], thresholds["iou_threshold"])[: thresholds["max_detections"]]
    if set(selected.tolist()) != set(candidates[kept].tolist()):
        raise UserError(
            f"{name}: NMS selects {len(selected)} boxes, other boxes than the {len(kept)} that PyTorch selects"
        )
