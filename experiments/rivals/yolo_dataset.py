"""Writes COCO jsons as a YOLO dataset: links to the images, label files and data.yaml.

    python experiments/rivals/yolo_dataset.py DATA OUT [--classes drone bird]

DATA holds fit.json, tune.json and val.json, which become the splits train, val and test of OUT/data.yaml. Objects of
other classes than those named become background.
"""

import argparse
import os
from pathlib import Path

import yaml

from danet.data.coco_dataset import load_coco
from danet.utils.files import write_text

SPLITS = {"train": "fit", "val": "tune", "test": "val"}


def write_split(source: Path, out: Path, split: str, classes: list[str]) -> int:
    """Writes the images and labels of one split; returns the number of images."""
    data = load_coco(source)
    for folder in ("images", "labels"):
        (out / folder / split).mkdir(parents=True, exist_ok=True)
    for record in data.records:
        # The folder goes into the name, because frames of different videos have the same name.
        name = f"{record.path.parent.name}_{record.path.name}"
        link = out / "images" / split / name
        if not link.exists():
            link.symlink_to(os.path.relpath(record.path, link.parent))
        lines = []
        for (x0, y0, x1, y1), label, ignore in zip(record.boxes.tolist(), record.names, record.ignore, strict=True):
            if label in classes and not ignore:
                box = (x0 + x1) / 2 / record.width, (y0 + y1) / 2 / record.height
                size = (x1 - x0) / record.width, (y1 - y0) / record.height
                lines.append(" ".join([str(classes.index(label)), *(f"{value:.6f}" for value in (*box, *size))]))
        write_text((out / "labels" / split / name).with_suffix(".txt"), "".join(f"{line}\n" for line in lines))
    return len(data.records)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--classes", nargs="+", default=["drone", "bird", "airplane", "helicopter"])
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    for split, name in SPLITS.items():
        count = write_split(arguments.data / f"{name}.json", out, split, arguments.classes)
        print(f"{out}: {count} images of {name} as {split}")
    paths = {split: f"images/{split}" for split in SPLITS}
    config = {"path": str(out), **paths, "names": dict(enumerate(arguments.classes))}
    write_text(out / "data.yaml", yaml.safe_dump(config, sort_keys=False))


if __name__ == "__main__":
    main()
