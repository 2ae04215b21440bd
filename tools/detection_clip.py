"""Draws detections in a short animated picture: python tools/detection_clip.py video.mp4 clip.gif

README.md shows such a picture.
"""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from danet.checkpoint import SHIPPED
from danet.data.frame_sources import open_source
from danet.inference.loading import load
from danet.utils import cli
from danet.utils.drawing import PALETTE, draw_boxes, enlarge
from danet.utils.errors import UserError
from danet.utils.files import atomic_path, check_folder
from danet.utils.image_io import to_display

GREYS = 96
"""Number of grey values of the picture; the other colours are those of boxes and labels."""


@dataclass
class Options:
    """Command-line options."""

    video: str
    """Video, image or folder; also given as the first argument."""

    clip: str
    """Animated picture to write (.gif or .webp); also given as the second argument."""

    weights: str = str(SHIPPED)
    """Weights file of the detector. Default: the detector in the package."""

    score: float = 0.5
    """Minimum score of the boxes."""

    start: int = 0
    """First frame."""

    frames: int = 300
    """Number of frames of the video."""

    every: int = 5
    """Shows every n-th frame."""

    upscale: float = 2.0
    """Magnification of the picture."""

    fps: float = 10.0
    """Pictures per second."""


def write_clip(options: Options) -> None:
    """Draws detections in a short animated picture."""
    check_folder(Path(options.clip).parent)
    detector = load(options.weights, score_threshold=options.score)
    pictures: list[Image.Image] = []
    for frame in islice(open_source(options.video), options.start, options.start + options.frames, options.every):
        boxes, scores, labels = detector(frame.image)
        picture = enlarge(to_display(frame.image), options.upscale)
        drawn = draw_boxes(picture, np.asarray(boxes) * options.upscale, scores, labels, detector.classes)
        pictures.append(Image.fromarray(np.ascontiguousarray(drawn[..., ::-1])))
    if not pictures:
        raise UserError(f"{options.video}: has no frame {options.start}; give a smaller --start")
    # All pictures have one palette, so that the background does not flicker.
    grey_values = np.linspace(0, 255, GREYS).round().astype(np.uint8)
    colors = np.concatenate([grey_values[:, None].repeat(3, 1), np.array(PALETTE, np.uint8)[:, ::-1]])
    palette = Image.new("P", (1, 1))
    palette.putpalette(colors.tobytes())
    pictures = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    with atomic_path(Path(options.clip)) as temporary:
        pictures[0].save(
            temporary,
            format=Path(options.clip).suffix[1:].upper(),
            save_all=True,
            append_images=pictures[1:],
            duration=round(1000 / options.fps),
            loop=0,
            optimize=True,
        )
    print(f"{options.clip}: {len(pictures)} pictures, {Path(options.clip).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    raise SystemExit(cli.run(write_clip, Options, prog="detection_clip", positionals=["video", "clip"]))
