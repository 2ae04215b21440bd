"""Synthetic infrared scenes: objects in front of a background, seen by a simulated camera.

Brightness is in display units (0 black, 1 white) until the camera converts it to 8-bit or 16-bit counts.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from danet.data.synthetic.background import Background, make_background
from danet.data.synthetic.objects import MODELS, Patch, fit_scale, random_pose, render

CATEGORIES = list(MODELS)

DRONE_SHARES = (13489, 11039, 6801)
"""Relative frequency of small, medium and large drones: the numbers of images in section 4.1 of the paper
(https://doi.org/10.1145/3581783.3612146)."""
OTHER_SHARES = (6, 3, 2)
"""The same for the distractors, which are mostly far away."""
SIZE_RANGES_PIXELS = ((3.0, 14.0), (14.0, 18.0), (18.0, 60.0))
"""Range of sqrt(width * height) of small, medium and large objects."""
MAX_SIZE_PIXELS = {"drone": 60.0, "bird": 45.0, "leaf": 30.0, "corner": 24.0, "airplane": 60.0}

MIN_CONTRAST = 0.05
"""Minimum contrast of a labelled object in display units (13 counts of 8 bits): nobody could find a fainter one."""


def make_scene(size: tuple[int, int], bits: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Generates a random scene.

    Args:
        size: (height, width) in pixels, at least 64 x 64.
        bits: 8, or 16 for 14-bit counts in uint16.
        rng: source of all randomness; equal generators give equal scenes.

    Returns:
        image: uint8 or uint16 ``[H, W]``.
        boxes: float32 ``[M, 4]`` (x0, y0, x1, y1) in pixels, tight around the visible objects.
        names: the category of each box, one of CATEGORIES.

    Example:
        >>> image, boxes, names = make_scene((128, 160), 8, np.random.default_rng(0))
        >>> image.shape, image.dtype, len(boxes) == len(names)
        ((128, 160), dtype('uint8'), True)
    """
    background = make_background(size, rng)
    camera = Camera.random(size, rng)
    background.image = cv2.GaussianBlur(background.image, (0, 0), camera.blur)
    image = background.image.copy()
    boxes: list[np.ndarray] = []
    names: list[str] = []
    for name in _contents(rng, background):
        parts, rotation = MODELS[name](rng), random_pose(name, rng)
        smear = rng.uniform(0, 3) if name != "corner" and rng.random() < 0.2 else 0.0
        scale = fit_scale(parts, rotation, random_size(name, size, rng), camera.blur, smear)
        wanted = 10 ** rng.uniform(-1.1, 0.1)
        # Try places until the object is inside the image, apart from the others, and visible.
        for _ in range(30):
            centre = _place(name, background, scale, rng)
            patch = render(parts, rotation, scale, centre, camera.blur, smear)
            x0, y0, x1, y1 = patch.box
            inside = x0 >= 0 and y0 >= 0 and x1 <= size[1] and y1 <= size[0]
            if not inside or any(_touch(patch.box, box) for box in boxes):
                continue
            contrast = visible_contrast(image, patch, wanted, camera.noise, rng)
            if contrast is not None:
                compose(image, patch, contrast)
                boxes.append(patch.box)
                names.append(name)
                break
    return camera.expose(image, bits, rng), np.array(boxes, np.float32).reshape(-1, 4), names


def random_size(name: str, size: tuple[int, int], rng: np.random.Generator) -> float:
    """Draws the size of an object, sqrt(width * height) of its box in pixels.

    Args:
        name: category; the sizes of drones have the proportions of the paper.
        size: (height, width) of the image.
        rng: source of randomness.
    """
    shares = np.array(DRONE_SHARES if name == "drone" else OTHER_SHARES, float)
    low, high = SIZE_RANGES_PIXELS[rng.choice(3, p=shares / shares.sum())]
    high = max(low, min(high, MAX_SIZE_PIXELS[name], 0.3 * min(size)))  # leave room in a small image
    # Stay 3 % away from the edges: boxes have whole pixels, so that rendered sizes differ by a few percent.
    return math.exp(rng.uniform(math.log(1.03 * low), math.log(max(high / 1.03, 1.03 * low))))


def visible_contrast(
    image: np.ndarray, patch: Patch, wanted: float, noise: float, rng: np.random.Generator
) -> float | None:
    """Returns the contrast of an object in display units: as wanted, but above noise and clutter.

    It is negative (a cold object) on a bright background, else positive; None if no contrast makes the object visible.

    Args:
        image: float32 ``[H, W]``, the background.
        patch: the object.
        wanted: absolute contrast.
        noise: standard deviation of the camera's noise.
        rng: source of randomness.
    """
    region, _, _ = _overlap(image, patch)
    level, clutter = float(np.median(region)), float(region.std())
    minimum = max(MIN_CONTRAST, 3.5 * math.hypot(clutter, noise))
    cold = level > 0.65 or (level > 0.3 and rng.random() < 0.04)
    room = level if cold else 1.05 - level
    contrast = min(max(wanted, minimum), room)
    return None if contrast < minimum else -contrast if cold else contrast


def compose(image: np.ndarray, patch: Patch, contrast: float) -> float:
    """Draws an object in front of the background, in place; returns its absolute contrast after clipping to [0, 1].

    Args:
        image: float32 ``[H, W]``, display units.
        patch: the object; it may extend beyond the image.
        contrast: of its hottest point against the background; negative for a cold object.
    """
    region, heat, cover = _overlap(image, patch)
    if not region.size:
        return 0.0
    level = float(np.median(region))
    region += cover * (level - region) + contrast * heat
    return abs(min(max(level + contrast, 0.0), 1.0) - level)


def _overlap(image: np.ndarray, patch: Patch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the region of the image under a patch (a view), and the heat and cover of the patch there."""
    x, y = patch.corner
    inside = (slice(max(-y, 0), max(image.shape[0] - y, 0)), slice(max(-x, 0), max(image.shape[1] - x, 0)))
    heat, cover = patch.heat[inside], patch.cover[inside]
    x, y = max(x, 0), max(y, 0)
    return image[y : y + heat.shape[0], x : x + heat.shape[1]], heat, cover


def _contents(rng: np.random.Generator, background: Background) -> list[str]:
    """Draws the categories of the objects of a scene: often a drone, often distractors, sometimes nothing."""
    names = ["drone"] * int(rng.choice(4, p=[0.15, 0.62, 0.16, 0.07]))
    ground = background.horizon.max() < 0.98 * background.image.shape[0]
    likely = {"bird": 0.3, "leaf": 0.2, "corner": 0.6 if background.corners else 0.1 * ground, "airplane": 0.12}
    for name, probability in likely.items():
        if rng.random() < probability:
            flock = name == "bird" and rng.random() < 0.3
            names += [name] * (int(rng.integers(2, 5)) if flock else 1)
    return names


def _place(name: str, background: Background, scale: float, rng: np.random.Generator) -> tuple[float, float]:
    """Draws a position (x, y) where an object of this category may be: mostly in the sky, corners on buildings."""
    height, width = background.image.shape
    if name == "corner" and background.corners:
        x, y = background.corners[rng.integers(len(background.corners))]
        return x + rng.normal(0, 1), y + scale * rng.uniform(0.2, 1.5)
    x = rng.uniform(scale, width - scale)
    horizon = float(background.horizon[int(x)])
    if name == "corner":
        return x, horizon + scale * rng.uniform(0.2, 1.0)
    if rng.random() < {"airplane": 0.0, "bird": 0.12, "drone": 0.2, "leaf": 0.6}[name]:
        horizon = height  # in front of the ground
    return x, rng.uniform(scale, max(horizon - scale, 2 * scale))


def _touch(a: np.ndarray, b: np.ndarray) -> bool:
    """Returns whether two boxes are closer than two pixels."""
    return bool((np.minimum(a[2:], b[2:]) + 2 > np.maximum(a[:2], b[:2])).all())


# --- the camera ---


@dataclass
class Camera:
    """A simulated camera: optics, fixed pattern and noise, in display units."""

    blur: float
    """Standard deviation of the optical blur in pixels."""

    noise: float
    """Standard deviation of the temporal noise."""

    grain: bool
    """Whether the noise is slightly correlated, as after a video codec."""

    pattern: np.ndarray
    """Fixed pattern of columns, vignetting and defective pixels, float32 ``[H, W]``."""

    offset: float
    """Counts of black in 16-bit images."""

    gain: float
    """Counts from black to white in 16-bit images."""

    @classmethod
    def random(cls, size: tuple[int, int], rng: np.random.Generator) -> "Camera":
        """Draws a camera for images of ``size`` = (height, width)."""
        height, width = size
        noise = 10 ** rng.uniform(-2.7, -1.6) if rng.random() < 0.93 else rng.uniform(0.04, 0.1)
        columns = rng.uniform(0.0, 0.5) * noise * rng.standard_normal((1, width), np.float32)
        y, x = np.linspace(-1, 1, height, dtype=np.float32)[:, None], np.linspace(-1, 1, width, dtype=np.float32)[None]
        pattern = columns - rng.uniform(-0.02, 0.06) * (x * x + y * y)
        if rng.random() < 0.3:
            defects = rng.integers(0, [height, width], (rng.integers(1, 5), 2))
            pattern[defects[:, 0], defects[:, 1]] += rng.uniform(-0.5, 0.5, len(defects))
        return cls(
            blur=rng.uniform(0.5, 1.0),
            noise=noise,
            grain=rng.random() < 0.5,
            pattern=pattern,
            offset=rng.uniform(2000, 8000),
            gain=10 ** rng.uniform(2.6, 3.6),
        )

    def expose(self, image: np.ndarray, bits: int, rng: np.random.Generator) -> np.ndarray:
        """Returns a frame with pattern and noise.

        Args:
            image: float32 ``[H, W]``, display units.
            bits: 8 gives uint8; 16 gives 14-bit counts in uint16.
            rng: source of the noise.
        """
        noise = rng.standard_normal(image.shape, np.float32)
        if self.grain:
            noise = 1.6 * cv2.GaussianBlur(noise, (0, 0), 0.5)
        seen = image + self.pattern + self.noise * noise
        if bits == 8:
            return np.clip(np.rint(seen * 255), 0, 255).astype(np.uint8)
        return np.clip(np.rint(self.offset + self.gain * seen), 0, 2**14 - 1).astype(np.uint16)
