"""Backgrounds of synthetic infrared scenes: sky, clouds, hills, trees, buildings.

Backgrounds are drawn in relative temperatures (0 the sky at the zenith, 1 warm trees). The automatic gain of a
simulated thermal camera converts them to display units (0 black, 1 white).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np


@dataclass
class Background:
    """The background of a scene."""

    image: np.ndarray
    """float32 ``[H, W]``, display units (temperatures while it is drawn)."""

    horizon: np.ndarray
    """float32 ``[W]``, the first row below the sky in each column."""

    corners: list[tuple[float, float]]
    """Positions (x, y) of the corners of buildings in pixels."""


def make_background(size: tuple[int, int], rng: np.random.Generator) -> Background:
    """Generates a random background: sky, often with clouds, hills and a foreground.

    Args:
        size: (height, width) in pixels.
        rng: source of all randomness; equal generators give equal backgrounds.

    Example:
        >>> make_background((64, 80), np.random.default_rng(0)).image.shape
        (64, 80)
    """
    height, width = size
    canvas = sky(size, rng)
    background = Background(canvas, np.full(width, float(height), np.float32), [])
    if rng.random() < 0.6:
        canvas += clouds(size, rng)
    for _ in range(rng.integers(0, 3) if rng.random() < 0.5 else 0):
        _hill(background, rng)
    foregrounds: list[Callable | None] = [None, _field_and_trees, _buildings, _branches]
    foreground = foregrounds[rng.choice(4, p=[0.2, 0.45, 0.23, 0.12])]
    if foreground:
        foreground(background, rng)
    if rng.random() < 0.12:
        _wires(background, rng)
    background.image = automatic_gain(canvas, rng)
    return background


# --- parts of a background, in temperatures ---


def fractal(
    size: tuple[int, int], rng: np.random.Generator, slope: float = 1.6, stretch: tuple[float, float] = (1.0, 1.0)
) -> np.ndarray:
    """Returns noise with the amplitude spectrum f^-slope, mean 0 and variance 1, float32 ``[H, W]``.

    ``stretch`` makes its features longer in the vertical and horizontal direction.
    """
    rows = np.fft.fftfreq(size[0])[:, None] * stretch[0]
    columns = np.fft.rfftfreq(size[1])[None] * stretch[1]
    frequency = np.sqrt(rows * rows + columns * columns)
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal(size, np.float32)) * frequency**-slope
    noise = np.fft.irfft2(spectrum, s=size)
    return ((noise - noise.mean()) / noise.std()).astype(np.float32)


def profile(width: int, rng: np.random.Generator, slope: float) -> np.ndarray:
    """Returns one-dimensional fractal noise, float32 ``[W]``, from -1 to 1."""
    line = fractal((1, width), rng, slope)[0]
    return line / np.abs(line).max()


def sky(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Returns a clear sky, which is warmer towards the horizon and slightly tilted."""
    down = np.linspace(0, 1, size[0], dtype=np.float32)[:, None] ** np.float32(rng.uniform(1.0, 3.0))
    across = np.linspace(-0.5, 0.5, size[1], dtype=np.float32)[None]
    return rng.uniform(0.05, 0.4) * down + rng.uniform(-0.05, 0.05) * across + rng.uniform(0, 0.01) * fractal(size, rng)


def clouds(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Returns clouds, from thin streaks to an overcast sky, as thresholded fractal noise."""
    noise = fractal(size, rng, rng.uniform(1.3, 1.9), (1.0, rng.uniform(0.8, 5.0)))
    down = np.linspace(-1, 1, size[0], dtype=np.float32)[:, None]
    density = noise + rng.uniform(-0.3, 1.0) * down - rng.uniform(-0.8, 1.2)
    return rng.uniform(0.08, 0.6) * np.clip(density / rng.uniform(0.8, 2.5), 0, 1) ** rng.uniform(0.8, 1.6)


def _cover_below(background: Background, top: np.ndarray, temperature: np.ndarray) -> None:
    """Draws ``temperature`` ``[H, W]`` below the rows ``top`` ``[W]``, with an antialiased edge."""
    rows = np.arange(background.image.shape[0], dtype=np.float32)[:, None]
    cover = np.clip(rows + 1 - top[None], 0, 1)
    background.image += cover * (temperature - background.image)
    background.horizon = np.minimum(background.horizon, top)


def _hill(background: Background, rng: np.random.Generator) -> None:
    """Draws a distant hill."""
    height, width = background.image.shape
    top = height * (rng.uniform(0.55, 0.9) + rng.uniform(0.02, 0.12) * profile(width, rng, 1.75))
    texture = 0.04 * fractal((height, width), rng, 1.25)
    _cover_below(background, top.astype(np.float32), rng.uniform(0.35, 0.7) + texture)


def _field_and_trees(background: Background, rng: np.random.Generator) -> None:
    """Draws a row of trees with round or pointed crowns, and a field in front of it."""
    height, width = background.image.shape
    ground = height * (rng.uniform(0.68, 0.97) + rng.uniform(0.0, 0.04) * profile(width, rng, 2.0))
    tallest = height * rng.uniform(0.03, 0.2)
    pointed = rng.random() < 0.3
    columns = np.arange(width)
    top = ground - tallest * rng.uniform(0.2, 0.6)
    for _ in range(int(width / rng.uniform(3, 14))):
        middle, half = rng.uniform(0, width), max(2.0, tallest * rng.uniform(0.12, 0.5))
        distance = np.clip(np.abs(columns - middle) / half, 0, 1)
        crown = (1 - distance) if pointed else np.sqrt(1 - distance**2)
        top = np.where(distance < 1, np.minimum(top, ground - tallest * rng.uniform(0.5, 1.0) * crown), top)
    top = top + rng.uniform(0.3, 2.0) * profile(width, rng, 0.6)
    warmth = rng.uniform(0.7, 1.1)
    trunks = fractal((height, width), rng, 0.8, (rng.uniform(2, 6), 1.0))
    leaves = fractal((height, width), rng, 1.0)
    _cover_below(background, top.astype(np.float32), warmth + rng.uniform(0.05, 0.2) * (0.6 * trunks + 0.6 * leaves))
    furrows = fractal((height, width), rng, 1.1, (1.0, rng.uniform(2, 8)))
    field = rng.uniform(0.4, 0.9) * warmth + rng.uniform(0.02, 0.08) * furrows
    _cover_below(background, ground.astype(np.float32), field)


def _buildings(background: Background, rng: np.random.Generator) -> None:
    """Draws one to four buildings with windows and roofs on a street, and sometimes a pole."""
    height, width = background.image.shape
    ground = round(height * rng.uniform(0.75, 1.0))
    texture = 0.03 * fractal((height, width), rng, 1.25)
    _cover_below(background, np.full(width, ground, np.float32), rng.uniform(0.4, 0.8) + texture)
    for _ in range(rng.integers(1, 5)):
        wide, tall = round(width * rng.uniform(0.1, 0.45)), round(height * rng.uniform(0.08, 0.45))
        left, top = round(rng.uniform(-0.3 * wide, width - 0.7 * wide)), ground - tall
        warmth = rng.uniform(0.4, 1.1)
        shades = warmth + 0.1 * np.linspace(-1, 1, tall, dtype=np.float32)[:, None] + texture[:tall, :1]
        inside = slice(max(left, 0), min(left + wide, width))
        background.image[top:ground, inside] = shades
        background.horizon[inside] = np.minimum(background.horizon[inside], top)
        eaves = (left + wide - 1, top + int(rng.integers(0, 4)))
        cv2.rectangle(background.image, (left, top), eaves, rng.uniform(0.6, 1.4), -1)
        step_x, step_y = rng.integers(8, 24, 2).tolist()
        if rng.random() < 0.7:
            glass = warmth + rng.choice([-1, 1]) * rng.uniform(0.1, 0.4)
            for y in range(top + 6, ground - step_y // 2, step_y):
                for x in range(left + 5, left + wide - step_x // 2, step_x):
                    pane = (x + step_x // 2 - 1, y + step_y // 2 - 1)
                    cv2.rectangle(background.image, (x, y), pane, glass + rng.normal(0, 0.08), -1)
        background.corners += [(float(x), float(top)) for x in (left, left + wide) if 4 <= x < width - 4]
    if rng.random() < 0.5:
        x, top = int(rng.integers(0, width)), round(height * rng.uniform(0.2, 0.7))
        cv2.rectangle(background.image, (x, top), (x + int(rng.integers(0, 4)), ground), rng.uniform(0.6, 1.2), -1)


def _branches(background: Background, rng: np.random.Generator) -> None:
    """Draws bare trees in the foreground, which grow from the lower edge of the image."""
    height, width = background.image.shape
    mask = np.zeros((height, width), np.uint8)
    for _ in range(rng.integers(2, 6)):
        root = np.array([rng.uniform(-0.1, 1.1) * width, height * rng.uniform(1.0, 1.15)])
        _grow(mask, root, -math.pi / 2 + rng.normal(0, 0.25), height * rng.uniform(0.1, 0.22), rng.uniform(2, 5), rng)
    cover = mask.astype(np.float32) / 255
    twigs = rng.uniform(0.6, 1.1) + 0.1 * fractal((height, width), rng, 1.0)
    background.image += cover * (twigs - background.image)
    covered = mask.max(axis=0) > 0
    tops = np.where(covered, mask.argmax(axis=0), height)
    background.horizon = np.minimum(background.horizon, cv2.erode(tops.astype(np.float32)[None], np.ones((1, 25)))[0])


def _grow(
    mask: np.ndarray, start: np.ndarray, angle: float, length: float, thick: float, rng: np.random.Generator
) -> None:
    """Draws a branch and, recursively, the branches that grow from its end."""
    end = start + length * np.array([math.cos(angle), math.sin(angle)])
    first, last = (tuple(np.rint(16 * point).astype(int).tolist()) for point in (start, end))
    cv2.line(mask, first, last, int(min(255, 90 + 60 * thick)), max(1, round(thick)), cv2.LINE_AA, shift=4)
    if length > 5:
        for _ in range(rng.integers(2, 4)):
            _grow(mask, end, angle + rng.normal(0, 0.5), length * rng.uniform(0.55, 0.85), thick * 0.65, rng)


def _wires(background: Background, rng: np.random.Generator) -> None:
    """Draws sagging power lines across the image."""
    height, width = background.image.shape
    columns = np.linspace(0, 1, 40)
    start, end, sag = height * rng.uniform(0.1, 0.8), height * rng.uniform(0.1, 0.8), height * rng.uniform(0.02, 0.15)
    mask = np.zeros((height, width), np.uint8)
    for k in range(rng.integers(1, 4)):
        rows = start + (end - start) * columns + 4 * sag * columns * (1 - columns) + 0.04 * height * k
        points = np.rint(16 * np.stack([columns * width, rows], axis=1)).astype(np.int32)
        cv2.polylines(mask, [points], False, 200, 1, cv2.LINE_AA, shift=4)
    background.image += mask.astype(np.float32) / 255 * (rng.uniform(0.4, 0.9) - background.image)


# --- temperatures to brightness ---


def automatic_gain(temperature: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Converts temperatures to display units like a thermal camera: percentile stretch and local contrast enhancement.

    The enhancement causes the dark band above warm trees that such cameras show.
    """
    height, width = temperature.shape
    coarse = cv2.resize(temperature, (width // 8, height // 8), interpolation=cv2.INTER_AREA)
    local = cv2.GaussianBlur(coarse, (0, 0), height / 8 * rng.uniform(0.08, 0.2), borderType=cv2.BORDER_REPLICATE)
    local = cv2.resize(local, (width, height), interpolation=cv2.INTER_CUBIC)
    low, high = np.percentile(temperature[::2, ::2], (1, 99))
    span = max(float(high - low), rng.uniform(0.1, 0.4))
    share, level = rng.uniform(0, 0.8), rng.uniform(0.25, 0.5)
    image = (1 - share) * (temperature - low) / span + share * (level + (temperature - local) / span)
    image = level + rng.uniform(0.35, 1.4) * (image - level)
    # Make a cold sky dark grey instead of black, as these cameras do.
    image += max(0.0, rng.uniform(0.03, 0.35) - float(np.percentile(image[::2, ::2], 10)))
    return np.clip(image, 0, 1).astype(np.float32)
