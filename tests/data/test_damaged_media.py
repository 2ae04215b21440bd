"""Images and videos with random damage: frames, or one line that names the file, and nothing else on stderr."""

import random

import cv2
import numpy as np
import pytest
from mutations import mutate_bytes
from tiff_files import DEFLATE, WHITE_IS_ZERO, encode_tiff
from video_files import write_matroska, write_y4m

from danet.data.frame_sources import open_source
from danet.utils.errors import UserError

MUTATIONS_PER_FILE = 12


def media(folder) -> dict[str, bytes]:
    """Small images and videos of every format: the name of each, and its content."""
    grey = np.random.default_rng(0).integers(0, 255, (40, 60)).astype(np.uint8)
    files = {f"grey{suffix}": cv2.imencode(suffix, grey)[1].tobytes() for suffix in (".png", ".jpg", ".bmp", ".pgm")}
    colour = np.dstack([grey, grey.T.reshape(grey.shape), grey[::-1]])
    files |= {
        f"colour{suffix}": cv2.imencode(suffix, colour)[1].tobytes() for suffix in (".png", ".jpg", ".webp", ".tif")
    }
    layouts = [{"tile": 16}, {"big": True}, {"order": ">", "photometric": WHITE_IS_ZERO}, {"compression": DEFLATE}]
    for number, layout in enumerate(layouts):
        files |= {f"{number}{t}.tif": encode_tiff([grey.astype(t)] * 2, **layout) for t in ("u1", "u2", "f4")}
    write_y4m(folder / "a.y4m", [grey.astype(np.uint16)] * 3, "mono", bits=16)
    write_matroska(folder / "a.mkv", [grey] * 4, [0, 33, 66, 900], duration_ms=940)
    for name, codec in (("a.mp4", "mp4v"), ("a.avi", "MJPG")):
        writer = cv2.VideoWriter(str(folder / name), cv2.VideoWriter.fourcc(*codec), 30, (60, 40), isColor=False)
        for _ in range(4):
            writer.write(grey)
        writer.release()
    return files | {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.long)])
def test_damaged_media_give_frames_or_one_line(tmp_path, capfd, seed):
    rng = random.Random(seed)
    (tmp_path / "source").mkdir()
    refused = 0
    for name, content in media(tmp_path / "source").items():
        path = tmp_path / name
        for _ in range(MUTATIONS_PER_FILE * (1 if seed == 0 else 20)):
            path.write_bytes(mutate_bytes(content, rng))
            try:
                for count, frame in enumerate(open_source(path)):
                    assert frame.image.dtype in (np.uint8, np.uint16) and frame.image.ndim in (2, 3)
                    assert count < 1000
            except UserError as error:
                refused += 1
                assert str(error).startswith(str(path)) and "\n" not in str(error)
            lines = capfd.readouterr().err.splitlines()
            assert len(lines) <= 1 and all(line.startswith(str(path)) for line in lines), (lines, name)
    assert refused > 50
