"""Options of a command that runs a detector over frames, and their checks; importing this loads no torch."""

from dataclasses import dataclass
from typing import Literal

from danet.inference.tile_options import DEFAULT_OVERLAP, DEFAULT_TILE_EVERY, check_tile_options
from danet.utils.errors import UserError, check_values


@dataclass
class FrameOptions:
    """Options of a command that runs a detector over sources of frames.

    Example:
        >>> FrameOptions(sources=["video.mp4"], upscale=32.0).check()
        Traceback (most recent call last):
        danet.utils.errors.UserError: --upscale must lie between 0.1 and 16, got 32.0
    """

    sources: list[str]
    """Images, videos, folders of images and videos, patterns such as 'clips/*.mp4', URLs of streams and files, or the
    number of a webcam; may be given without the option's name."""

    weights: str | None = None
    """Weights file (.safetensors) written by danet train, or an .onnx file written by danet export; by default the
    drone detector that is part of the package."""

    out: str = "runs"
    """Folder for the results and config.yaml. If it holds the results of an earlier run, they go to runs-2, runs-3 and
    so on."""

    overwrite: bool = False
    """Replace the results of an earlier run in the folder; tables that this run does not write are removed. Texts,
    images and videos of other sources stay, and a line of the output says so."""

    iou: float | None = None
    """IoU threshold of non-maximum suppression, 0 to 1; by default 0.5, or the value in an .onnx file."""

    input_size: list[int | Literal["native"]] | None = None
    """Height and width in pixels that every image is letterboxed to; one number stands for a square. native keeps the
    size of each image. By default, images of another scale than the weights were trained for are scaled to it."""

    tile: list[int] | None = None
    """Height and width in pixels of overlapping tiles into which larger frames are cut, so that small targets keep
    their pixels; one number stands for squares. With input_size, each tile is scaled to that size."""

    overlap: float = DEFAULT_OVERLAP
    """Minimum overlap of neighbouring tiles, as a fraction of their side, 0 to 0.9."""

    tile_every: int = DEFAULT_TILE_EVERY
    """With tile: every so many frames of a video are searched completely, and the frames between only around the
    targets; 1 searches every frame completely."""

    polarity: Literal["auto", "white", "black"] = "auto"
    """white: hot is bright. black: hot is dark, the frames are inverted for the network. auto decides on the first
    frames of each source."""

    classes: list[str] | None = None
    """Names of the classes to report, or all; by default those that the weights are known to detect reliably."""

    batch: int = 1
    """Batch size: images that go through the network at once."""

    device: str = "auto"
    """cpu, cuda, cuda:N or N (the number of a GPU); auto uses a GPU if there is one."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of the network. auto: bfloat16 on Intel CPUs with AMX and AMD CPUs with AVX512_BF16, if it is faster
    there and its detections agree with those of float32, otherwise float32."""

    deploy: bool = True
    """Run the fused network; false runs the network as it was trained, for comparison."""

    threads: int | None = None
    """CPU threads of the network; by default all cores that the process may use."""

    save_images: bool = True
    """Write annotated images and videos."""

    show_scores: bool = True
    """Draw the score beside each class name."""

    upscale: float | Literal["auto"] = "auto"
    """Enlargement of annotated images and videos; auto enlarges small frames, so that their text is legible."""

    video_format: Literal["auto", "mp4", "webm"] = "auto"
    """Format of annotated videos. auto: one that web browsers play, MP4 with H.264 (by OpenCV or PyAV) or WebM with
    VP8, if one of them can be written here."""

    max_pixels: int = 1 << 26
    """Maximum number of pixels of an image: larger ones are refused before they are decoded."""

    serve: str | None = None
    """Show the annotated frames live in web browsers: PORT for browsers on this machine, or HOST:PORT, such as
    0.0.0.0:8080 for the whole network, without a password."""

    quiet: bool = False
    """Print only errors and warnings."""

    json: str | None = None
    """Also write the counts and times of the run, which are printed at its end, to this JSON file."""

    def check(self) -> None:
        """Raises UserError for a value out of range, or without sources."""
        check_values(self, ["iou"], "lie between 0 and 1", lambda value: 0 <= value <= 1, prefix="--")
        check_tile_options(self.tile, self.overlap)
        if self.tile is None and self.tile_every != DEFAULT_TILE_EVERY:
            raise UserError("--tile_every: needs --tile")
        counts = ["batch", "threads", "max_pixels", "tile_every"]
        check_values(self, counts, "be at least 1", lambda value: value >= 1, prefix="--")
        if self.upscale != "auto":
            check_values(self, ["upscale"], "lie between 0.1 and 16", lambda value: 0.1 <= value <= 16, prefix="--")
        if not self.sources:
            raise UserError("sources: none given; name images, folders, videos, or the number of a webcam")
