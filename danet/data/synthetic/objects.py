"""Shapes of drones and distractors, rendered as small antialiased patches of heat.

A model is a list of convex parts in three dimensions (x forward, y left, z up, about one unit from the centre to the
tips). ``render`` rotates it, projects it along the line of sight, draws it at a multiple of the final resolution,
reduces it by averaging, and applies the blur of the optics.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

BOX_LEVEL = 0.1
"""A pixel belongs to the box of an object if its contrast is above this fraction of the peak contrast."""
MIN_SIDE_PIXELS = 3
"""Minimum width and height of a box."""

FORWARD, UP = np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.0, 1.0])


class Part(NamedTuple):
    """A convex part of a model: the convex hull of its points."""

    points: np.ndarray
    """float64 ``[n, 3]``, in units of the model."""
    heat: float
    """Temperature: 0 like the surroundings, 1 like the hottest part."""
    opacity: float = 1.0
    """Less than 1 for spinning rotors."""


class Patch(NamedTuple):
    """A rendered object on the pixel grid of an image."""

    heat: np.ndarray
    """float32 ``[h, w]``, contrast against the surroundings, peak 1."""
    cover: np.ndarray
    """float32 ``[h, w]``, from 0 to 1: opacity of the object."""
    corner: tuple[int, int]
    """Column and row of the first pixel of the patch in the image."""
    box: np.ndarray
    """float32 ``[4]`` (x0, y0, x1, y1) in pixels of the image, at least MIN_SIDE_PIXELS wide and high."""


# --- models ---


def drone(rng: np.random.Generator) -> list[Part]:
    """A multicopter: body with battery, arms, hot motors, faint rotor discs, sometimes legs and a camera."""
    arms = int(rng.choice([4, 4, 4, 6]))
    heat_body, heat_arm = rng.uniform(0.5, 0.95), rng.uniform(0.35, 0.8)
    thick = rng.uniform(0.05, 0.1)
    blade = rng.uniform(0.3, 0.55)
    parts = []
    for k in range(arms):
        angle = math.pi * (2 * k + 1) / arms
        tip = np.array([math.cos(angle), math.sin(angle), rng.uniform(0.0, 0.06)])
        parts.append(Part(_disc(blade) + tip + 0.2 * UP, rng.uniform(0.05, 0.3), rng.uniform(0.1, 0.35)))
        parts.append(Part(_rod(np.zeros(3), tip, thick), heat_arm))
        parts.append(Part(_ellipsoid(0.13, 0.13, 0.16) + tip + 0.06 * UP, rng.uniform(0.85, 1.0)))
    parts.append(Part(_ellipsoid(*(rng.uniform(0.8, 1.2, 3) * [0.5, 0.3, 0.17])), heat_body))
    if rng.random() < 0.6:
        drop = rng.uniform(0.35, 0.6)
        for x in (-0.3, 0.3):
            for y in (-0.3, 0.3):
                parts.append(Part(_rod(np.array([x, y, 0]), np.array([1.2 * x, 1.4 * y, -drop]), 0.035), 0.3))
    if rng.random() < 0.5:
        parts.append(Part(_ellipsoid(0.12, 0.12, 0.12) + 0.3 * FORWARD - 0.25 * UP, rng.uniform(0.5, 0.9)))
    return parts


def bird(rng: np.random.Generator, phase: float | None = None) -> list[Part]:
    """A bird: warm body, cooler wings with two joints each; ``phase`` of the wing beat in radians (None: random)."""
    phase = rng.uniform(0, 2 * math.pi) if phase is None else phase
    inner, outer = 0.55 * math.sin(phase) + 0.1, 0.75 * math.sin(phase - 0.7)
    chord, heat = rng.uniform(0.28, 0.42), rng.uniform(0.45, 0.85)
    parts = [Part(_ellipsoid(rng.uniform(0.4, 0.6), 0.14, 0.14), 1.0)]
    parts.append(Part(_slab([[-0.35, 0.04], [-0.75, 0.16], [-0.75, -0.16], [-0.35, -0.04]], 0.03), heat))
    for side in (-1.0, 1.0):
        elbow = np.array([0.1, side * 0.5 * math.cos(inner), 0.5 * math.sin(inner)])
        tip = elbow + np.array([-0.35, side * 0.6 * math.cos(outer), 0.6 * math.sin(outer)])
        root = np.array([0.12, side * 0.08, 0.04])
        back, front = -chord * FORWARD, elbow + 0.05 * FORWARD
        parts.append(Part(_thicken([root, root + back, elbow + 0.8 * back, front], 0.03), heat))
        parts.append(Part(_thicken([front, elbow + 0.8 * back, tip], 0.02), 0.8 * heat))
    return parts


def leaf(rng: np.random.Generator) -> list[Part]:
    """A leaf: two halves of a lens shape, folded along the rib, and a stem."""
    width, fold = rng.uniform(0.25, 0.6), rng.uniform(0.0, 0.5)
    along = np.linspace(-1, 1, 9)
    edge = width * (1 - np.abs(along) ** rng.uniform(1.5, 2.5))
    heat = rng.uniform(0.6, 1.0)
    stem = Part(_rod(-FORWARD, np.array([-1.5, 0.1, -0.1]), 0.03), 0.6 * heat)
    halves = [Part(np.stack([along, side * edge, fold * edge], axis=1), h) for side, h in ((1, 1.0), (-1, heat))]
    return [stem, *halves]


def airplane(rng: np.random.Generator) -> list[Part]:
    """A distant airplane: fuselage, swept wings, tail and hot engines."""
    sweep, span = rng.uniform(0.1, 0.5), rng.uniform(0.8, 1.1)
    heat = rng.uniform(0.4, 0.8)
    parts = [Part(_ellipsoid(1.0, 0.11, 0.12), heat)]
    for side in (-1.0, 1.0):
        parts.append(Part(_slab([[0.3, 0], [-0.1, 0], [-sweep - 0.1, side * span], [-sweep, side * span]], 0.02), heat))
        tail = [[-0.75, 0], [-0.95, 0], [-1.05, side * 0.35], [-0.95, side * 0.35]]
        parts.append(Part(_slab(tail, 0.02), 0.8 * heat))
        engine = np.array([0.05, side * 0.35, -0.1])
        parts.append(Part(_ellipsoid(0.16, 0.07, 0.07) + engine, 1.0))
    parts.append(Part(_thicken([[-0.7, 0, 0.1], [-0.95, 0, 0.1], [-1.05, 0, 0.45], [-0.92, 0, 0.45]], 0.02), heat))
    return parts


def corner(rng: np.random.Generator) -> list[Part]:
    """A hot corner of a building, a chimney or a vent: two sunlit faces of different heat and a roof."""
    a, b, h = rng.uniform(0.4, 1.0, 3)
    near, left, right = np.array([0, 0, 0.0]), np.array([-0.7 * a, a, 0]), np.array([-0.7 * b, -b, 0])
    up = np.array([0, 0, 2 * h])
    faces = [
        Part(np.stack([near, left, left + up, near + up]), 1.0),
        Part(np.stack([near, right, right + up, near + up]), rng.uniform(0.3, 0.8)),
    ]
    if rng.random() < 0.5:
        faces.append(Part(_rod(left + up, right + up, 0.12), rng.uniform(0.6, 1.0)))
    return faces


MODELS: dict[str, Callable[[np.random.Generator], list[Part]]] = {
    "drone": drone,
    "bird": bird,
    "leaf": leaf,
    "corner": corner,
    "airplane": airplane,
}


def random_pose(name: str, rng: np.random.Generator) -> np.ndarray:
    """Draws a typical rotation ``[3, 3]`` of a category: drones are nearly level, leaves have any orientation."""
    yaw = rng.uniform(0, 2 * math.pi)
    if name == "leaf":
        return pose(yaw, rng.uniform(-math.pi, math.pi), rng.uniform(-1.2, 1.2), 0.0)
    if name == "corner":
        return pose(math.pi / 2 + rng.normal(0, 0.3), 0.0, 0.0, 0.0)
    tilt = 0.12 if name == "airplane" else 0.2
    return pose(yaw, rng.normal(0, tilt), rng.normal(0, tilt), abs(rng.normal(0, 0.3)))


def pose(yaw: float, roll: float, pitch: float, elevation: float) -> np.ndarray:
    """Returns the rotation ``[3, 3]`` from the axes of a model to those of the viewer (right, away, up).

    All angles are in radians; ``elevation`` is the height of the object above the viewer, who then sees its underside.
    """
    turns = ((2, yaw), (0, roll), (1, pitch), (0, -elevation))
    result = np.eye(3)
    for axis, angle in turns:
        turn = np.eye(3)
        i, j = [k for k in range(3) if k != axis]
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
        result = turn @ result
    return result


# --- rendering ---


def render(
    parts: list[Part], rotation: np.ndarray, scale: float, centre: tuple[float, float], blur: float, smear: float = 0.0
) -> Patch:
    """Renders a model.

    Args:
        parts: the model.
        rotation: ``[3, 3]``, see ``pose``.
        scale: pixels per unit of the model.
        centre: position (x, y) of the model's origin in the image, in pixels.
        blur: standard deviation of the optical blur in pixels.
        smear: length of the horizontal motion blur in pixels.
    """
    # Project the parts and find the bounding box of the patch.
    outlines = [(part.points @ rotation.T)[:, [0, 2]] * [scale, -scale] + centre for part in parts]
    every = np.concatenate(outlines)
    margin = 3 * blur + smear + 2
    x0, y0 = (int(v) for v in np.floor(every.min(axis=0) - margin))
    x1, y1 = (int(v) for v in np.ceil(every.max(axis=0) + margin))
    # Draw the parts at higher resolution, the hottest one last.
    zoom = 8 if scale < 6 else 4
    heat = np.zeros(((y1 - y0) * zoom, (x1 - x0) * zoom), np.float32)
    cover = heat.copy()
    for part, outline in sorted(zip(parts, outlines, strict=True), key=lambda item: item[0].heat):
        # Subtract half a pixel, because the origin of fillConvexPoly is a pixel centre; its resolution is 1/16 pixel.
        hull = cv2.convexHull(((outline - [x0, y0]) * zoom - 0.5).astype(np.float32))
        fixed = np.rint(hull * 16).astype(np.int32)
        cv2.fillConvexPoly(heat, fixed, part.heat * part.opacity, shift=4)
        cv2.fillConvexPoly(cover, fixed, part.opacity, shift=4)

    # Reduce to pixels, then apply motion blur and optical blur.
    size = (x1 - x0, y1 - y0)
    layers: list[np.ndarray] = [cv2.resize(layer, size, interpolation=cv2.INTER_AREA) for layer in (heat, cover)]
    if smear >= 1:
        kernel = np.full((1, 2 * round(smear / 2) + 1), 1.0 / (2 * round(smear / 2) + 1), np.float32)
        layers = [cv2.filter2D(layer, -1, kernel) for layer in layers]
    heat, cover = (np.asarray(cv2.GaussianBlur(layer, (0, 0), blur), np.float32) for layer in layers)
    heat /= max(float(heat.max()), 1e-6)
    return Patch(heat, cover, (x0, y0), tight_box(heat) + np.array([x0, y0, x0, y0], np.float32))


def fit_scale(parts: list[Part], rotation: np.ndarray, size: float, blur: float, smear: float = 0.0) -> float:
    """Finds the scale at which the box has the size sqrt(width * height) = ``size`` pixels, to about 3 %.

    The other arguments are those of ``render``.
    """
    scale = 0.5 * size
    for _ in range(5):
        box = render(parts, rotation, scale, (0.5, 0.5), blur, smear).box
        measured = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
        if abs(measured - size) < 0.03 * size:
            break
        scale = max(0.1, scale * (size / measured) ** 1.2)  # the blur is constant: boxes grow slower than models
    return scale


def tight_box(heat: np.ndarray) -> np.ndarray:
    """Returns the box, float32 ``[4]``, of the pixels above BOX_LEVEL, at least MIN_SIDE_PIXELS wide and high."""
    lit = heat > BOX_LEVEL * heat.max()
    ends = []
    for profile in (lit.any(axis=0), lit.any(axis=1)):
        where = np.flatnonzero(profile)
        grow = max(0.0, (MIN_SIDE_PIXELS - (where[-1] + 1 - where[0])) / 2)
        ends.append((where[0] - grow, where[-1] + 1 + grow))
    (left, right), (top, bottom) = ends
    return np.array([left, top, right, bottom], np.float32)


# --- parts ---


def _ellipsoid(a: float, b: float, c: float) -> np.ndarray:
    longitude, latitude = np.meshgrid(np.arange(10) * (math.pi / 5), np.linspace(-1, 1, 7) * (math.pi / 2))
    points = [np.cos(longitude) * np.cos(latitude), np.sin(longitude) * np.cos(latitude), np.sin(latitude)]
    return np.stack(points, axis=-1).reshape(-1, 3) * [a, b, c]


def _disc(radius: float) -> np.ndarray:
    angle = np.arange(16) * (math.pi / 8)
    return radius * np.stack([np.cos(angle), np.sin(angle), np.zeros(16)], axis=1)


def _rod(start: np.ndarray, end: np.ndarray, radius: float) -> np.ndarray:
    ball = radius * np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
    return np.concatenate([ball + start, ball + end])


def _slab(outline: list[list[float]], thickness: float) -> np.ndarray:
    return _thicken([[x, y, 0.0] for x, y in outline], thickness)


def _thicken(points: list, thickness: float) -> np.ndarray:
    middle = np.array(points, float)
    return np.concatenate([middle + thickness * UP, middle - thickness * UP])
