"""Tells whether a file that a command has written is complete."""

import csv
import json
from pathlib import Path

import cv2
import yaml
from safetensors.torch import load_file


def check_whole(path: Path) -> None:
    """Raises an exception if a file cannot be read to its end, by the suffix of its name; other suffixes pass."""
    if path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".csv":
        rows = list(csv.reader(path.read_text().splitlines()))
        assert len({len(row) for row in rows}) <= 1
    elif path.suffix == ".yaml":
        yaml.safe_load(path.read_text())
    elif path.suffix == ".safetensors":
        load_file(path)
    elif path.suffix == ".html":
        assert path.read_text().rstrip().endswith("</html>")
    elif path.suffix in (".png", ".jpg"):
        assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED) is not None
    elif path.suffix in (".mp4", ".webm"):
        assert cv2.VideoCapture(str(path)).read()[0]
