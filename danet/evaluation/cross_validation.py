"""Cross-validation of an ablation: the data are divided into folds by recording, and each fold is evaluated once."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from danet.data.coco_dataset import ImageRecord, load_coco, write_coco
from danet.data.recording_split import split_by_recording
from danet.evaluation.ablation import RATIOS, RunResult
from danet.evaluation.comparison import Outcome
from danet.utils.errors import UserError

TUNING_FRACTION = 0.1
"""Fraction of the training images on which the score threshold is chosen."""


@dataclass(frozen=True)
class Fold:
    """One fold: its folder, and the images of train.json, tune.json and val.json inside it."""

    folder: Path
    train: list[ImageRecord]
    tune: list[ImageRecord]
    val: list[ImageRecord]

    def path(self, name: str) -> str:
        return str(self.folder / f"{name}.json")

    def parts(self) -> dict[str, list[ImageRecord]]:
        return {self.path(name): getattr(self, name) for name in ("train", "tune", "val")}


def divide_into_folds(
    records: Sequence[ImageRecord], count: int, out: Path, classes: Sequence[str], target: str
) -> list[Fold]:
    """Divides the records into ``count`` folds: each evaluates on its own part and trains and tunes on the others.

    No recording is in two of the three datasets of a fold.

    Raises:
        UserError: an image occurs twice, there are too few recordings, or a fold has no object of a class to train on,
            or of the target class to tune or evaluate on.
    """
    twice = [path for path, images in Counter(str(record.path.resolve()) for record in records).items() if images > 1]
    if twice:
        raise UserError(f"--folds: {twice[0]} occurs twice in the evaluation and training data; remove one of them")
    parts = split_by_recording(records, [1 / count] * count, seed=0)
    folds = []
    for index, val in enumerate(parts):
        rest = [record for other, part in enumerate(parts) if other != index for record in part]
        train, tune = split_by_recording(rest, [1 - TUNING_FRACTION, TUNING_FRACTION], seed=0)
        for wanted, found, use in ((classes, train, "train"), ([target], tune, "tune"), ([target], val, "evaluate")):
            names = {name for record in found for name in record.names}
            if lacking := [name for name in wanted if name not in names]:
                raise UserError(f"--folds: fold {index} of {count} has no {lacking[0]!r} to {use} on; use fewer folds")
        folds.append(Fold(out / f"fold{index}", train, tune, val))
    return folds


def write_folds(folds: Sequence[Fold]) -> None:
    """Writes the datasets of all folds.

    Raises UserError if the files exist with other images: finished runs would be confused with runs on these.
    """
    further = folds[0].folder.with_name(f"fold{len(folds)}")
    if further.exists():
        raise UserError(f"{further}: belongs to an ablation with more folds; give another --out")
    contents = {path: content for fold in folds for path, content in fold.parts().items()}
    for path, content in contents.items():
        if Path(path).exists() and _images(load_coco(path).records) != _images(content):
            raise UserError(f"{path}: has other images than this ablation; give another --out")
    categories = sorted({name for content in contents.values() for record in content for name in record.names})
    for path, content in contents.items():
        write_coco(path, content, categories)


def _images(records: Sequence[ImageRecord]) -> list[tuple]:
    """What distinguishes two datasets; boxes are rounded as in the files."""
    return [(record.path.resolve(), record.names, np.round(record.boxes, 2).tolist()) for record in records]


def join_folds(results: Sequence[RunResult]) -> RunResult:
    """Joins the results of one row and seed on all folds into one result on all images, fold after fold.

    Each fold has its own network and threshold, so that scores of different folds are not comparable. They are shifted,
    as logits, to make every threshold 0.5. AP50 and frames/s are means over the folds.
    """
    outcome = _join([result.outcome for result in results])
    point = outcome.counts().operating(None)
    return replace(
        results[0],
        threshold=0.5,
        thresholds=[result.threshold for result in results],
        **{ratio: getattr(point, ratio).value for ratio in RATIOS},
        ap50=_mean([result.ap50 for result in results]),
        frames_per_second=_mean([result.frames_per_second for result in results]),
        steps=round(statistics.mean(result.steps for result in results)),
        seconds=statistics.mean(result.seconds for result in results),
        operators=" and ".join(sorted({result.operators for result in results})),
        outcome=outcome,
    )


def _join(outcomes: Sequence[Outcome]) -> Outcome:
    starts = np.cumsum([0, *(len(outcome.objects) for outcome in outcomes)])[:-1]

    def joined(kind: str) -> tuple[np.ndarray, np.ndarray]:
        shifted = [_shifted(getattr(each, f"{kind}_scores"), each.threshold) for each in outcomes]
        moved = [getattr(each, f"{kind}_image") + start for each, start in zip(outcomes, starts, strict=True)]
        scores, images = np.concatenate(shifted), np.concatenate(moved)
        order = np.argsort(-scores, kind="stable")
        return scores[order], images[order]

    hits, false = joined("hit"), joined("false")
    return Outcome(*hits, *false, np.concatenate([each.objects for each in outcomes]), threshold=0.5)


def _shifted(scores: np.ndarray, threshold: float) -> np.ndarray:
    """Divides the odds of the scores by the odds of the threshold: a score equal to the threshold becomes 0.5."""
    scores = np.asarray(scores, np.float64)
    threshold = min(threshold, 1 - 1e-9)  # keeps the odds finite
    over, under = scores * (1 - threshold), threshold * (1 - scores)
    return over / (over + under)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if len(known) == len(values) else None
