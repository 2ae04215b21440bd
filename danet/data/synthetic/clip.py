"""A synthetic infrared video: drones and birds in smooth flight before a drifting background."""

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from danet.data.coco_dataset import ImageRecord
from danet.data.synthetic.background import make_background
from danet.data.synthetic.objects import MODELS, Patch, bird, fit_scale, pose, render
from danet.data.synthetic.scene import LEAST_CONTRAST, Camera, compose, random_size
from danet.data.video import VideoWriter
from danet.utils.progress import track

FPS = 30.0
# Pixels of background beyond the frame on each side, for the camera to drift over.
MARGIN = 40


class Wander:
    """A smooth random function of time: a few slow sine waves, within -1 to 1."""

    def __init__(self, rng: np.random.Generator, periods: tuple[float, float]):
        self.frequency = 2 * math.pi / rng.uniform(*periods, 3)
        self.phase = rng.uniform(0, 2 * math.pi, 3)
        self.weight = rng.dirichlet([2.0, 2.0, 2.0])

    def __call__(self, seconds: float) -> float:
        return float(self.weight @ np.sin(self.frequency * seconds + self.phase))


class Flyer:
    """A drone or a bird: where it is, how it is turned and how large it looks at any time."""

    def __init__(self, name: str, size: tuple[int, int], camera: Camera, contrast: float, rng: np.random.Generator):
        self.name, self.contrast, self.blur = name, contrast, camera.blur
        periods = (5.0, 20.0) if name == "drone" else (3.0, 9.0)
        self.x, self.y, self.near, self.turn, self.sway = (Wander(rng, periods) for _ in range(5))
        reach = rng.uniform(0.5, 0.95) if name == "drone" else rng.uniform(0.9, 1.5)
        self.centre = rng.uniform(0.35, 0.65) * size[1], rng.uniform(0.25, 0.4) * size[0]
        self.reach = reach * 0.5 * size[1], reach * 0.3 * size[0]
        self.yaw, self.elevation = rng.uniform(0, 2 * math.pi), abs(rng.normal(0, 0.25))
        self.beat = 2 * math.pi * rng.uniform(2.5, 5.0)
        self.model_seed = rng.integers(2**32)
        self.scale = fit_scale(self._parts(0.0), self._pose(0.0), random_size(name, size, rng), self.blur)

    def render(self, seconds: float) -> Patch:
        """The flyer at a time, in seconds from the start."""
        centre = [c + r * w(seconds) for c, r, w in zip(self.centre, self.reach, (self.x, self.y), strict=True)]
        scale = self.scale * math.exp(0.35 * (self.near(seconds) - self.near(0.0)))
        return render(self._parts(seconds), self._pose(seconds), scale, (centre[0], centre[1]), self.blur)

    def _parts(self, seconds: float) -> list:
        rng = np.random.default_rng(self.model_seed)  # the same individual in every frame
        return bird(rng, self.beat * seconds) if self.name == "bird" else MODELS[self.name](rng)

    def _pose(self, seconds: float) -> np.ndarray:
        sideways = self.x(seconds + 0.1) - self.x(seconds)
        if self.name == "bird":  # flies the way it looks
            return pose(0.0 if sideways > 0 else math.pi, 0.3 * self.sway(seconds), 0.0, self.elevation)
        return pose(self.yaw + 1.5 * self.turn(seconds), 0.15 * self.sway(seconds), 2.0 * sideways, self.elevation)


def write_video(
    folder: Path, seed: Sequence[int], frames: int, size: tuple[int, int], bits: int, quiet: bool
) -> list[ImageRecord]:
    """Writes ``video.mp4`` and the same frames without loss as ``video/*.png`` into ``folder``; returns their records.

    A flyer is labelled while its centre is in the picture; where it is lost before something as bright
    as itself, its box is an ignore region.
    """
    rng = np.random.default_rng(seed)
    recording = "synthetic-" + "-".join(map(str, seed))  # another seed, another flight
    height, width = size
    camera = Camera.random(size, rng)
    camera.noise = min(camera.noise, 0.02)
    background = make_background((height + 2 * MARGIN, width + 2 * MARGIN), rng)
    background.image = cv2.GaussianBlur(background.image, (0, 0), camera.blur)
    names = ["drone"] * int(rng.integers(1, 3)) + ["bird"] * int(rng.integers(1, 3))
    flyers = [Flyer(name, size, camera, rng.uniform(0.3, 0.9), rng) for name in names]
    drift = Wander(rng, (8.0, 25.0)), Wander(rng, (8.0, 25.0))

    (folder / "video").mkdir()
    records = []
    with VideoWriter(folder / "video.mp4", FPS) as video:
        for index in track(range(frames), "making the video", quiet=quiet):
            seconds = index / FPS
            shift = [MARGIN * (1 + 0.95 * wander(seconds)) for wander in drift]
            window = np.array([[1.0, 0.0, -shift[0]], [0.0, 1.0, -shift[1]]])
            image = cv2.warpAffine(background.image, window, (width, height), flags=cv2.INTER_LINEAR)
            boxes, labels, lost = [], [], []
            for flyer in flyers:
                patch = flyer.render(seconds)
                shown = compose(image, patch, flyer.contrast)
                x0, y0, x1, y1 = patch.box
                if 0 <= (x0 + x1) / 2 < width and 0 <= (y0 + y1) / 2 < height:
                    boxes.append(np.clip(patch.box, 0, [width, height, width, height]))
                    labels.append(flyer.name)
                    lost.append(shown < LEAST_CONTRAST)
            frame = camera.expose(image, bits, rng)
            video.write(frame)
            path = folder / "video" / f"{index:06d}.png"
            path.write_bytes(cv2.imencode(".png", frame)[1].tobytes())
            records.append(
                ImageRecord(
                    path,
                    width,
                    height,
                    np.array(boxes, np.float32).reshape(-1, 4),
                    labels,
                    np.array(lost, bool),
                    video="video",
                    frame=index,
                    recording=recording,
                )
            )
    return records
