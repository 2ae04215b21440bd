"""Cross-validation of an ablation: the data are divided anew, by recording, and every part is measured once."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from danet.ablation import Result
from danet.comparison import Outcome
from danet.data.coco import ImageRecord, write_coco
from danet.data.split import split_groups

# Part of the images trained on that chooses the score.
TUNING = 0.1


@dataclass(frozen=True)
class Fold:
    """The json files of one part."""

    train: str
    tune: str
    val: str


def write_folds(records: Sequence[ImageRecord], count: int, out: Path) -> list[Fold]:
    """Divides records into ``count`` parts; of each a folder gets val.json, and of all others tune.json and train.json.

    No recording lies in two of the three. Raises UserError if there are too few recordings.
    """
    categories = sorted({name for record in records for name in record.names})
    parts = split_groups(records, [1 / count] * count, seed=0)
    folds = []
    for index, val in enumerate(parts):
        rest = [record for other, part in enumerate(parts) if other != index for record in part]
        train, tune = split_groups(rest, [1 - TUNING, TUNING], seed=0)
        fold = Fold(*(str(out / f"fold{index}" / f"{name}.json") for name in ("train", "tune", "val")))
        for path, content in ((fold.train, train), (fold.tune, tune), (fold.val, val)):
            write_coco(path, content, categories)
        folds.append(fold)
    return folds


def join(results: Sequence[Result]) -> Result:
    """The results of one row and seed on every part, as one result on all images, part after part.

    Each part has a network and a threshold of its own, so that their scores are no measure of the same thing: they
    are shifted, in logits, to make every threshold 0.5. AP50 and frames/s are means over the parts.
    """
    outcome = _join([result.outcome for result in results])
    hits, false = (int(np.count_nonzero(scores >= 0.5)) for scores in (outcome.hit_scores, outcome.false_scores))
    objects = int(outcome.objects.sum())
    return replace(
        results[0],
        threshold=0.5,
        precision=_part(hits, hits + false),
        recall=_part(hits, objects),
        f1=_part(2 * hits, hits + false + objects),
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
        scores = np.concatenate([_shifted(getattr(each, f"{kind}_scores"), each.threshold) for each in outcomes])
        images = np.concatenate(
            [getattr(each, f"{kind}_image") + start for each, start in zip(outcomes, starts, strict=True)]
        )
        order = np.argsort(-scores, kind="stable")
        return scores[order], images[order]

    hits, false = joined("hit"), joined("false")
    return Outcome(*hits, *false, np.concatenate([each.objects for each in outcomes]), threshold=0.5)


def _shifted(scores: np.ndarray, threshold: float) -> np.ndarray:
    """Scores whose odds are divided by those of the threshold: s = threshold gives exactly 0.5."""
    scores = np.asarray(scores, np.float64)
    over, under = scores * (1 - threshold), threshold * (1 - scores)
    return over / (over + under)


def _part(count: int, of: int) -> float | None:
    return count / of if of else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if len(known) == len(values) else None
