"""``danet export``: a trained detector as one file for another runtime."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from danet.utils import cli
from danet.utils.errors import UserError
from danet.utils.files import atomic_path, check_folder, write_json
from danet.utils.progress import track, working

if TYPE_CHECKING:
    import numpy as np

    from danet.export.formats import Format

FRAMES = 8
"""Frames of each source that a file is compared on."""


@dataclass
class ExportOptions:
    """Options of ``danet export``."""

    weights: str
    """Weights file (.safetensors) written by danet train; also given as the first word."""

    format: Literal["onnx", "torch-export", "aoti", "openvino"] = "onnx"
    """onnx: any runtime that reads ONNX opset 22. torch-export: torch.export.load. aoti: code compiled for this kind of
    CPU. openvino: OpenVINO's .xml and .bin."""

    out: str | None = None
    """File to write; by default the weights' name with the format's suffix: .onnx, .pt2, .aoti.pt2 or .xml."""

    frames: list[str] | None = None
    """Images, folders or videos on which the file is compared with PyTorch, the first 8 frames of each; synthetic
    scenes always are."""

    nms: bool = False
    """Add the output "selected": the positions that non-maximum suppression by `iou` leaves (onnx, openvino)."""

    score: float = 0.5
    """Lowest score of a detection, 0 to 1, that the file suggests; `nms` applies it."""

    iou: float = 0.5
    """Overlap (IoU, 0 to 1) above which only the better of two boxes is to be kept; as `score`."""

    max_detections: int = 300
    """Most detections an image; as `score`."""

    input_size: list[int] | None = None
    """Height and width in pixels (one number: a square) that the file asks images to be fitted into; by default their
    own size. The network takes any."""

    overwrite: bool = False
    """Replace a file that is there already."""

    quiet: bool = False
    """Print only errors."""

    json: str | None = None
    """Write how far the file and PyTorch differ to this file as well."""


def export(options: ExportOptions) -> None:
    """Writes a trained detector as a file for another runtime.

    The network is fused, from normalised images of any number and size to boxes in pixels and scores; classes,
    preprocessing and thresholds are in the file. Before it gets its name it is run and compared with PyTorch: boxes
    must be within 0.1 pixel and scores within 0.001, else nothing is written.
    """
    _check(options)
    from danet.checkpoint import load_weights
    from danet.export import description
    from danet.export import verify as comparison
    from danet.export.formats import FORMATS, check_packages
    from danet.export.network import BoxesAndScores, example
    from danet.inference.predict import parse_size
    from danet.models.danet import MINIMUM_SIZE

    chosen = FORMATS[options.format]
    if options.nms and not chosen.nms:
        raise UserError(f"--nms: {options.format} has no operator for it; onnx and openvino have")
    input_size = parse_size(options.input_size)
    if input_size is not None and min(input_size) < chosen.minimum_size:
        raise UserError(f"--input_size: {options.format} takes no less than {chosen.minimum_size} pixels")
    model, training = load_weights(options.weights)
    out = _place(options, chosen)
    check_packages(options.format)
    batches = [*comparison.synthetic(), *_frames(options.frames or [])]
    for name, (image, *_) in batches:
        if input_size is None and MINIMUM_SIZE < chosen.minimum_size > min(image.shape[:2]):
            raise UserError(f"{name}: smaller than the {chosen.minimum_size} pixels that {options.format} takes")

    thresholds = {
        "score_threshold": options.score,
        "iou_threshold": options.iou,
        "max_detections": options.max_detections,
    }
    said = description.describe(
        model.config,
        thresholds=thresholds,
        input_size=input_size,
        minimum_size=chosen.minimum_size,
        training=training,
    )
    network = BoxesAndScores(model, chosen.sample)
    with atomic_path(out) as temporary:
        beside = None if chosen.beside is None else temporary.with_suffix(chosen.beside)
        try:
            with working(f"writing {options.format}", quiet=options.quiet):
                chosen.write(network, example(model), temporary, said, **({"nms": True} if options.nms else {}))
                run, read = chosen.open(temporary)
            if read != said:
                raise UserError(f"{out}: {chosen.runtime} reads another description than was written")
            compared = track(batches, "comparing with PyTorch", quiet=options.quiet)
            try:
                differences = comparison.compare(run, model, compared, input_size=input_size, thresholds=thresholds)
            except UserError as error:
                raise UserError(f"{out}: not written, {chosen.runtime} computes something else: {error}") from None
            if beside is not None:
                beside.replace(out.with_suffix(beside.suffix))
        finally:
            if beside is not None:
                beside.unlink(missing_ok=True)
    if options.json is not None:
        figures = {"format": options.format, "images": differences.images}
        write_json(options.json, {**figures, "boxes_pixels": differences.boxes, "scores": differences.scores})
    if not options.quiet:
        files = [out] if chosen.beside is None else [out, out.with_suffix(chosen.beside)]
        size = sum(file.stat().st_size for file in files) / 2**20
        print(f"{' and '.join(str(file) for file in files)}: {size:.1f} MiB")
        print(
            f"{chosen.runtime} and PyTorch on {differences.images} images: boxes differ by at most "
            f"{differences.boxes:.2g} pixel, scores by {differences.scores:.2g}"
        )


def _place(options: ExportOptions, chosen: "Format") -> Path:
    """The file to write. Raises UserError for a name that it cannot have."""
    out = Path(options.weights).with_suffix(chosen.suffix) if options.out is None else Path(options.out)
    if not out.name.endswith(chosen.suffix) or out.name == chosen.suffix:
        raise UserError(f"--out {out}: {options.format} needs a name that ends in {chosen.suffix}")
    for file in (out, *([] if chosen.beside is None else [out.with_suffix(chosen.beside)])):
        if file.is_dir():
            raise UserError(f"{file}: is a folder")
        if file.exists() and not options.overwrite:
            raise UserError(f"{file}: is there already; --overwrite replaces it")
    check_folder(out.parent)
    return out


def _frames(sources: Sequence[str]) -> Iterator[tuple[str, list["np.ndarray"]]]:
    """The first FRAMES of each source, named, in batches of one."""
    from danet.data.video import open_source

    for source in sources:
        for frame in islice(open_source(source), FRAMES):
            name = frame.name if frame.index == 0 else f"{frame.name}, frame {frame.index}"
            yield name, [frame.image]


def _check(options: ExportOptions) -> None:
    """Raises UserError for a value that cannot be meant."""
    for name in ("score", "iou"):
        if not 0.0 <= getattr(options, name) <= 1.0:
            raise UserError(f"--{name} must lie between 0 and 1, got {getattr(options, name)}")
    if options.max_detections < 1:
        raise UserError(f"--max_detections must be at least 1, got {options.max_detections}")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(export, ExportOptions, prog="danet export", positionals=["weights"], argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
