"""Synthetic infrared videos: drones and birds fly smoothly in front of a drifting background."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from danet.data.coco_dataset import ImageRecord
from danet.data.synthetic.background import make_background
from danet.data.synthetic.objects import MODELS, Patch, bird, fit_scale, pose, render
from danet.data.synthetic.scene import MIN_CONTRAST, Camera, compose, random_size
from danet.data.video_writer import VideoWriter
from danet.utils.progress import track

FPS = 30.0
LAGS = (0.1, 0.5, 1.0)
"""Seconds of the earlier frames that are listed for each frame."""
MARGIN_PIXELS = 40
"""Width of the background beyond the frame on each side, over which the camera drifts."""


class SmoothMotion:
    """A smooth random function of time with values from -1 to 1: the weighted sum of three sine waves.

    Args:
        rng: source of randomness.
        periods: minimum and maximum period of a wave in seconds.
    """

    def __init__(self, rng: np.random.Generator, periods: tuple[float, float]):
        self.frequency = 2 * math.pi / rng.uniform(*periods, 3)
        self.phase = rng.uniform(0, 2 * math.pi, 3)
        self.weight = rng.dirichlet([2.0, 2.0, 2.0])

    def __call__(self, seconds: float) -> float:
        return float(self.weight @ np.sin(self.frequency * seconds + self.phase))


class FlyingObject:
    """A drone or a bird with a random flight path: position, rotation and distance as functions of time.

    Args:
        name: ``drone`` or ``bird``.
        size: (height, width) of the frames in pixels.
        camera: gives the optical blur.
        contrast: contrast against the background in display units.
        rng: source of randomness.
    """

    def __init__(self, name: str, size: tuple[int, int], camera: Camera, contrast: float, rng: np.random.Generator):
        self.name, self.contrast, self.blur = name, contrast, camera.blur
        periods = (5.0, 20.0) if name == "drone" else (3.0, 9.0)
        self.x, self.y, self.zoom, self.turn, self.roll = (SmoothMotion(rng, periods) for _ in range(5))
        amplitude = rng.uniform(0.5, 0.95) if name == "drone" else rng.uniform(0.9, 1.5)
        self.centre = rng.uniform(0.35, 0.65) * size[1], rng.uniform(0.25, 0.4) * size[0]
        self.amplitude = amplitude * 0.5 * size[1], amplitude * 0.3 * size[0]
        self.yaw, self.elevation = rng.uniform(0, 2 * math.pi), abs(rng.normal(0, 0.25))
        self.beat = 2 * math.pi * rng.uniform(2.5, 5.0)
        self.model_seed = rng.integers(2**32)
        self.scale = fit_scale(self._parts(0.0), self._pose(0.0), random_size(name, size, rng), self.blur)

    def render(self, seconds: float) -> Patch:
        """Renders the object at a time in seconds from the start."""
        centre = [c + a * m(seconds) for c, a, m in zip(self.centre, self.amplitude, (self.x, self.y), strict=True)]
        scale = self.scale * math.exp(0.35 * (self.zoom(seconds) - self.zoom(0.0)))
        return render(self._parts(seconds), self._pose(seconds), scale, (centre[0], centre[1]), self.blur)

    def _parts(self, seconds: float) -> list:
        rng = np.random.default_rng(self.model_seed)  # the same shape in every frame
        return bird(rng, self.beat * seconds) if self.name == "bird" else MODELS[self.name](rng)

    def _pose(self, seconds: float) -> np.ndarray:
        sideways = self.x(seconds + 0.1) - self.x(seconds)
        if self.name == "bird":  # faces its direction of flight
            return pose(0.0 if sideways > 0 else math.pi, 0.3 * self.roll(seconds), 0.0, self.elevation)
        return pose(self.yaw + 1.5 * self.turn(seconds), 0.15 * self.roll(seconds), 2.0 * sideways, self.elevation)


def write_video(
    folder: Path, seed: Sequence[int], frames: int, size: tuple[int, int], bits: int, quiet: bool
) -> list[ImageRecord]:
    """Writes ``video.mp4`` and its lossless frames ``video/*.png`` into a folder; returns the records of the frames.

    An object is labelled while its centre is in the frame. If its contrast is less than MIN_CONTRAST, because the
    background is as bright as the object, its box is an ignore region.

    Args:
        folder: existing folder without a folder ``video``.
        seed: seed of all randomness.
        frames: number of frames.
        size: (height, width) in pixels.
        bits: 8 or 16, see ``make_scene``; the mp4 has always 8.
        quiet: show no progress bar.

    Example:
        >>> records = write_video(getfixture("tmp_path"), [0], frames=2, size=(64, 80), bits=8, quiet=True)
        >>> [record.path.name for record in records]
        ['000000.png', '000001.png']
    """
    rng = np.random.default_rng(seed)
    recording = "synthetic-" + "-".join(map(str, seed))  # unique for each video
    height, width = size
    camera = Camera.random(size, rng)
    camera.noise = min(camera.noise, 0.02)
    background = make_background((height + 2 * MARGIN_PIXELS, width + 2 * MARGIN_PIXELS), rng)
    background.image = cv2.GaussianBlur(background.image, (0, 0), camera.blur)
    names = ["drone"] * int(rng.integers(1, 3)) + ["bird"] * int(rng.integers(1, 3))
    objects = [FlyingObject(name, size, camera, rng.uniform(0.3, 0.9), rng) for name in names]
    drift = SmoothMotion(rng, (8.0, 25.0)), SmoothMotion(rng, (8.0, 25.0))

    (folder / "video").mkdir()
    records: list[ImageRecord] = []
    steps = {lag: round(lag * FPS) for lag in LAGS}
    with VideoWriter(folder / "video.mp4", FPS) as video:
        for index in track(range(frames), "making the video", quiet=quiet):
            seconds = index / FPS
            shift = [MARGIN_PIXELS * (1 + 0.95 * motion(seconds)) for motion in drift]
            window = np.array([[1.0, 0.0, -shift[0]], [0.0, 1.0, -shift[1]]])
            image = cv2.warpAffine(background.image, window, (width, height), flags=cv2.INTER_LINEAR)
            boxes, labels, lost = [], [], []
            for item in objects:
                patch = item.render(seconds)
                shown = compose(image, patch, item.contrast)
                x0, y0, x1, y1 = patch.box
                if 0 <= (x0 + x1) / 2 < width and 0 <= (y0 + y1) / 2 < height:
                    boxes.append(np.clip(patch.box, 0, [width, height, width, height]))
                    labels.append(item.name)
                    lost.append(shown < MIN_CONTRAST)
            frame = camera.expose(image, bits, rng)
            video.write(frame)
            path = folder / "video" / f"{index:06d}.png"
            path.write_bytes(cv2.imencode(".png", frame)[1].tobytes())
            ignore = np.array(lost, bool)
            corners = np.array(boxes, np.float32).reshape(-1, 4)
            past = tuple((lag, records[index - step].path) for lag, step in steps.items() if index >= step)
            origin: dict[str, Any] = {"video": "video", "frame": index, "recording": recording, "past": past}
            records.append(ImageRecord(path, width, height, corners, labels, ignore, **origin))
    return records
