"""Counts the drones that a shipped detector finds in frames as other cameras would record them.

    python experiments/other_cameras.py VAL.json TUNE.json RESULT.json [--weights danet_nano]

VAL.json is the COCO json of the Svanstrom validation videos (``danet data import svanstrom``). Frames with one drone
are taken from all recordings in turn, and every frame is magnified, reduced and inverted. "default" is
``danet.load(WEIGHTS)``, a new one for each variant; "one detector" goes through all variants in this order; "native,
white" neither scales nor inverts. A drone is found if a detection with score 0.5 has at least half of its area in the
annotated box.

TUNE.json is the COCO json of recordings that serve for choices (``make real`` writes one). 100 frames of it are
magnified by MAGNIFICATIONS without fitting. The result is the evidence that ``ImageDomain.of_training`` cites for
trusting only the inner part of the magnifications of training.
"""

import argparse
import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

import danet
from danet.boxes import iop
from danet.data.coco_dataset import ImageRecord, load_coco
from danet.utils.files import write_json
from danet.utils.image_io import read_image

Change = Callable[[np.ndarray], np.ndarray]


def resize(factor: float) -> Change:
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return lambda image: cv2.resize(image, None, fx=factor, fy=factor, interpolation=method)


VARIANTS: dict[str, tuple[float, Change, dict]] = {
    "as is": (1.0, lambda image: image, {}),
    "magnified 1.5x": (1.5, resize(1.5), {}),
    "magnified 2x": (2.0, resize(2.0), {}),
    "halved": (0.5, resize(0.5), {}),
    "inverted (black-hot)": (1.0, lambda image: 255 - image, {}),
    "magnified 2x, input_size=(256, 320)": (2.0, resize(2.0), {"input_size": (256, 320)}),
    "magnified 1.2x": (1.2, resize(1.2), {}),
    "magnified 4x": (4.0, resize(4.0), {}),
    "reduced to 0.75": (0.75, resize(0.75), {}),
    "magnified 2x and inverted": (2.0, lambda image: 255 - resize(2.0)(image), {}),
}
"""Magnification, change of the image, and options of ``danet.load``."""


MAGNIFICATIONS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2, 1.3, 1.4, 1.5, 1.7, 2.0)


Load = Callable[..., danet.Detector]
"""Loads the detector, with options of ``danet.load``."""


def choose_frames(records: list[ImageRecord], count: int) -> list[ImageRecord]:
    """``count`` frames with one drone, taken from the recordings in turn, spread over each recording."""
    recordings: dict[str | None, list[ImageRecord]] = {}
    for record in records:
        if record.names == ["drone"] and not record.ignore.any():
            recordings.setdefault(record.recording or record.video, []).append(record)
    share = -(-count // len(recordings))
    spread = ([frames[int((i + 0.5) * len(frames) / share)] for i in range(share)] for frames in recordings.values())
    return list(itertools.islice(itertools.chain.from_iterable(zip(*spread, strict=True)), count))


def is_found(detector: danet.Detector, image: np.ndarray, truth: np.ndarray) -> tuple[bool, int]:
    """Whether the drone is found, and the number of other boxes."""
    found = detector(image).numpy()
    hits = iop(found.boxes, truth[None].astype(np.float32)) >= 0.5 if len(found) else np.zeros(0, bool)
    hits &= np.array([name == "drone" for name in found.names], bool)
    return bool(hits.any()), int((~hits).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("tune", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--weights", default="danet_s", help="name or file of the weights, danet_s by default")
    options = parser.parse_args()
    # In float32, so that all columns of the table are computed alike on every machine.
    load = functools.partial(danet.load, options.weights, dtype=torch.float32)
    frames = choose_frames(list(load_coco(options.data).records), options.frames)
    reused = load()
    table = {}
    for name, (factor, change, arguments) in VARIANTS.items():
        detectors = {
            "default": load(**arguments),
            "one detector": load(**arguments) if arguments else reused,
            "native, white": load(**({"input_size": "native"} | arguments), polarity="white"),
        }
        rows = {}
        for kind, detector in detectors.items():
            images = [(change(read_image(record.path)), record.boxes[0] * factor) for record in frames]
            results = [is_found(detector, image, truth) for image, truth in images]
            rows[kind] = {"found": sum(hit for hit, _ in results), "other boxes": sum(other for _, other in results)}
        table[name] = rows
        print(f"{name}: targets of {len(frames)} found, and other boxes: {rows}", flush=True)
    names = [f"{record.video or ''} {record.path.name}".strip() for record in frames]
    content = {"weights": options.weights, "score": 0.5, "frames": len(frames), "variants": table, "files": names}
    write_json(options.result, {**content, "magnifications": magnifications(options.tune, load)}, indent=1)


def magnifications(tune: Path, load: Load) -> dict:
    """How many drones of 100 frames are found at each magnification, without scaling and with white polarity."""
    frames = choose_frames(list(load_coco(tune).records), 100)
    detector = load(input_size="native", polarity="white")
    found = {}
    for factor in MAGNIFICATIONS:
        images = ((resize(factor)(read_image(record.path)), record.boxes[0] * factor) for record in frames)
        found[f"{factor:g}"] = sum(is_found(detector, image, truth)[0] for image, truth in images)
    print(f"targets of {len(frames)} found at each magnification: {found}", flush=True)
    return {"frames": len(frames), "found": found, "videos": sorted({str(record.video) for record in frames})}


if __name__ == "__main__":
    main()
