"""Recall of tiny dim targets that were added to real frames, at 0.01 false alarms per image.

    danet data synthesize STRESS --stress TUNE.json --images 300
    python experiments/stress.py RESULT.json STRESS NAME=WEIGHTS [NAME=WEIGHTS ...] [--leave_out RECORDING ...]

STRESS is the folder of a stress set (``danet/data/synthetic/stress.py``), made from recordings that were not trained
on. For the moving and for the still targets, and for networks with ``model.lags`` with and without the earlier frames,
the threshold is the lowest one at which the frames without added targets have at most 0.01 false alarms per image.
A target counts as found at IoU 0.3. Scores of all classes count, because a spot of a few pixels has no shape; in
"drone", only those of the class drone do.

Leave out recordings that show moving objects without labels, because their detections count as false alarms: in
IR_DRONE_043 of the Svanström videos, a bird without a label flies near the drone.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import danet
from danet.data.coco_dataset import ImageRecord, load_coco
from danet.data.synthetic.stress import BOX_RATIO, SIZE_PIXELS, TARGET
from danet.detections import Detections
from danet.evaluation.matching import CRITERIA, FALSE_ALARM, HIT, flatten, match
from danet.inference.predict import predict
from danet.utils.errors import UserError
from danet.utils.files import write_json

FALSE_ALARMS_PER_IMAGE = 0.01
MINIMUM_SCORE = 0.01
CRITERION = CRITERIA["iou30"]
SIZE_RANGES = {"3-5 px": (0.0, 5.0), "5-7 px": (5.0, 7.0), "7-10 px": (7.0, np.inf)}
"""Ranges of the visible size in pixels; boxes are BOX_RATIO times as large."""


def recall(records: Sequence[ImageRecord], predictions: Sequence[Detections], label: int | None) -> dict:
    """Recall at FALSE_ALARMS_PER_IMAGE for one class, or for all classes as one (``label`` None)."""
    triples = []
    for found in predictions:
        kept = torch.ones(len(found), dtype=torch.bool) if label is None else found.labels == label
        triples.append((found.boxes[kept], found.scores[kept], torch.zeros(int(kept.sum()), dtype=torch.int64)))
    data = flatten(records, triples, [TARGET])[TARGET]
    matches = match(data, CRITERION)
    # Count false alarms in the frames without an added target.
    is_negative = np.array([TARGET not in record.names for record in records])
    alarms = np.sort(data.scores[(matches.outcome == FALSE_ALARM) & is_negative[data.image]])[::-1]
    allowed = int(FALSE_ALARMS_PER_IMAGE * is_negative.sum())
    threshold = float(alarms[allowed]) if len(alarms) > allowed else MINIMUM_SCORE
    hits = matches.truth[(matches.outcome == HIT) & (data.scores > threshold)]
    targets = data.truths[~data.crowd]
    if _sizes(targets).min() < 0.99 * SIZE_PIXELS[0]:
        raise UserError("the boxes are smaller than those of the present stress set; make the set again")
    found_targets = data.truths[hits]
    by_size = {}
    for name, (low, high) in SIZE_RANGES.items():
        total, found_count = (
            int(((sizes >= low) & (sizes < high)).sum()) for sizes in (_sizes(targets), _sizes(found_targets))
        )
        by_size[name] = [found_count, total]
    return {"recall": len(hits) / len(targets), "threshold": threshold, "found of": by_size}


def _sizes(boxes: np.ndarray) -> np.ndarray:
    """Visible sizes in pixels, ``[M]``, of the targets in boxes ``[M, 4]``."""
    return np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])) / BOX_RATIO


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("result", type=Path, help="JSON file to write")
    parser.add_argument("stress", type=Path, help="folder with moving.json and still.json")
    parser.add_argument("weights", nargs="+", help="NAME=WEIGHTS; the word shipped stands for the pretrained weights")
    parser.add_argument("--leave_out", nargs="*", default=[], metavar="RECORDING", help="do not use these recordings")
    options = parser.parse_args()
    rows = []
    for word in options.weights:
        name, _, path = word.partition("=")
        detector = danet.load(
            None if path == "shipped" else path,
            polarity="white",
            score_threshold=MINIMUM_SCORE,
            classes="all",
            dtype=torch.float32,
        )
        label = detector.classes.index(TARGET)
        for motion in ("moving", "still"):
            records = load_coco(options.stress / f"{motion}.json").records
            records = [record for record in records if record.recording not in options.leave_out]
            for past in ("earlier frames", "single frame") if detector.lags else ("single frame",):
                used = records if past == "earlier frames" else [replace(record, past=()) for record in records]
                predictions, _ = predict(detector, used)
                row = {"network": name, "targets": motion, "input": past}
                row |= {"any class": recall(used, predictions, None), "drone": recall(used, predictions, label)}
                rows.append(row)
                values = [f"{key} {row[key]['recall']:.3f}" for key in ("any class", "drone")]
                print(f"{name:<20}{motion:<8}{past:<16}{values[0]:<18}{values[1]:<14}{row['any class']['found of']}")
    facts = {
        "false_alarms_per_image": FALSE_ALARMS_PER_IMAGE,
        "criterion": "iou30",
        "box_ratio": BOX_RATIO,
        "left_out": options.leave_out,
    }
    write_json(options.result, facts | {"rows": rows})


if __name__ == "__main__":
    main()
