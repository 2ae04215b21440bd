"""``danet export``: writes a trained detector as a file for another runtime."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from danet.utils import cli
from danet.utils.errors import UserError, check_values
from danet.utils.files import check_folder, check_new_file, write_json
from danet.utils.help_page import HelpPage
from danet.utils.progress import track, working
from danet.utils.shipped_weights import shipped_names
from danet.utils.typed_options import paths_as_texts

if TYPE_CHECKING:
    import numpy as np

    from danet.export.formats import Format

COMPARED_FRAMES = 8
"""Number of frames of each source on which a file is compared with PyTorch."""

PAGE = HelpPage(
    examples={
        "danet export runs/first/weights.safetensors": "write runs/first/weights.onnx",
        "danet export weights.safetensors --format openvino --nms": "for OpenVINO, with non-maximum suppression",
    }
)


@dataclass
class ExportOptions:
    """Options of ``danet export``.

    Example:
        >>> ExportOptions("weights.safetensors").format
        'onnx'
    """

    weights: str
    """Weights file (.safetensors) written by danet train; may be given without the option's name."""

    format: Literal["onnx", "torch-export", "aoti", "openvino"] = "onnx"
    """onnx: any runtime that reads ONNX opset 22. torch-export: torch.export.load. aoti: code compiled for the CPU of
    this machine by AOTInductor. openvino: OpenVINO's .xml and .bin."""

    out: str | None = None
    """File to write; by default the weights' name with the suffix of the format: .onnx, .pt2, .aoti.pt2 or .xml."""

    frames: list[str] | None = None
    """Images, folders or videos whose first 8 frames the file is compared with PyTorch on, besides synthetic scenes."""

    nms: bool = False
    """Add the output "selected": the positions that non-maximum suppression keeps (onnx, openvino)."""

    score: float | None = None
    """Score threshold, 0 to 1, stored in the file; the output of `nms` applies it. By default the value that danet
    calibrate has stored in the weights, or else 0.5."""

    iou: float = 0.5
    """IoU threshold of non-maximum suppression, 0 to 1, stored in the file; the output of `nms` applies it."""

    max_detections: int = 300
    """Maximum number of detections per image, stored in the file; the output of `nms` applies it."""

    input_size: list[int] | None = None
    """Height and width in pixels that images should be letterboxed to, stored in the file; one number stands for a
    square. By default images keep their size. The network in the file accepts any size."""

    overwrite: bool = False
    """Replace an existing file."""

    quiet: bool = False
    """Print only errors."""

    json: str | None = None
    """Also write the differences between the file and PyTorch to this JSON file."""


def export(options: ExportOptions) -> None:
    """Writes a trained detector as a file for another runtime.

    The file holds the fused network, from normalized images of any batch size and image size to boxes in pixels and
    scores, and a description of the classes, the preprocessing and the thresholds. The file is compared with PyTorch
    before it is written: boxes must agree within 0.1 pixel and scores within 0.001.

    Raises:
        UserError: an option is invalid, the weights cannot be read, a package is missing, or the results differ.

    Example:
        >>> export(ExportOptions("missing.safetensors"))
        Traceback (most recent call last):
        danet.utils.errors.UserError: missing.safetensors: no such file
    """
    options = paths_as_texts(options)
    check_values(options, ["score", "iou"], "lie between 0 and 1", lambda value: 0 <= value <= 1, prefix="--")
    check_values(options, ["max_detections"], "be at least 1", lambda value: value >= 1, prefix="--")
    from danet.checkpoint import load_weights
    from danet.export import verify
    from danet.export.formats import FORMATS, check_packages
    from danet.export.network import BoxesAndScores, example_images
    from danet.inference.batch_detector import DEFAULT_SCORE
    from danet.inference.calibrated_thresholds import CalibratedThresholds
    from danet.inference.export_description import describe
    from danet.inference.input_size import parse_size_option
    from danet.models.danet import MINIMUM_SIZE

    chosen = FORMATS[options.format]
    if options.nms and not chosen.nms:
        raise UserError(f"--nms: not supported by {options.format}; use onnx or openvino")
    input_size = parse_size_option(options.input_size)
    if input_size is not None and min(input_size) < chosen.minimum_size:
        raise UserError(
            f"--input_size: {options.format} needs at least {chosen.minimum_size} pixels, got {min(input_size)}"
        )
    model, training = load_weights(options.weights)
    out = _choose_path(options, chosen)
    check_packages(options.format)
    batches = [*verify.synthetic_batches(), *_frames(options.frames or [])]
    for name, (image, *_) in batches:
        if input_size is None and MINIMUM_SIZE < chosen.minimum_size > min(image.shape[:2]):
            raise UserError(f"{name}: smaller than {chosen.minimum_size} pixels, the minimum size of {options.format}")

    calibration = CalibratedThresholds.from_metadata(training)
    score, origin = options.score, "--score"
    if score is None and calibration is not None:
        score, origin = calibration.detection_score, calibration.describe_request()
    elif score is None:
        score, origin = DEFAULT_SCORE, "default"
    thresholds = {
        "score_threshold": score,
        "iou_threshold": options.iou,
        "max_detections": options.max_detections,
    }
    description = describe(
        model.config, thresholds=thresholds, input_size=input_size, minimum_size=chosen.minimum_size, training=training
    )
    network = BoxesAndScores(model, chosen.sample)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.stem}-", dir=out.parent) as folder:
        temporary = Path(folder) / out.name
        with working(f"writing {options.format}", quiet=options.quiet):
            nms = {"nms": True} if options.nms else {}
            chosen.write(network, example_images(model), temporary, description, **nms)
            run, stored = chosen.open(temporary)
        if stored != description:
            raise UserError(f"{out}: not written, {chosen.runtime} reads another description than was written")
        compared = track(batches, "comparing with PyTorch", quiet=options.quiet)
        try:
            differences = verify.compare(run, model, compared, input_size=input_size, thresholds=thresholds)
        except UserError as error:
            raise UserError(f"{out}: not written, the results of {chosen.runtime} differ: {error}") from None
        for file in _files(temporary, chosen):
            file.replace(out.parent / file.name)
    if options.json is not None:
        compared_on = {"format": options.format, "images": differences.images}
        write_json(options.json, {**compared_on, "boxes_pixels": differences.boxes, "scores": differences.scores})
    if not options.quiet:
        files = _files(out, chosen)
        size = sum(file.stat().st_size for file in files) / 2**20
        print(f"{' and '.join(str(file) for file in files)}: {size:.1f} MiB, score threshold {score:g} ({origin})")
        print(
            f"{chosen.runtime} and PyTorch on {differences.images} images: boxes differ by at most "
            f"{differences.boxes:.2g} pixel, scores by {differences.scores:.2g}"
        )


def _choose_path(options: ExportOptions, chosen: "Format") -> Path:
    """Returns the file to write. Raises UserError if its suffix is wrong or it cannot be written."""
    out = Path(options.weights).with_suffix(chosen.suffix) if options.out is None else Path(options.out)
    if not out.name.endswith(chosen.suffix) or out.name == chosen.suffix:
        raise UserError(f"--out {out}: a file of {options.format} ends in {chosen.suffix}")
    for file in _files(out, chosen):
        check_new_file(file, overwrite=options.overwrite)
    check_folder(out.parent)
    cli.check_outputs([*_files(out, chosen), options.json], [options.weights])
    return out


def _files(out: Path, chosen: "Format") -> list[Path]:
    return [out] if chosen.second_suffix is None else [out, out.with_suffix(chosen.second_suffix)]


def _frames(sources: Sequence[str]) -> Iterator[tuple[str, list["np.ndarray"]]]:
    """Yields the first COMPARED_FRAMES frames of each source as named batches of one image."""
    from danet.data.frame_sources import open_source

    for source in sources:
        for frame in islice(open_source(source), COMPARED_FRAMES):
            name = frame.name if frame.index == 0 else f"{frame.name}, frame {frame.index}"
            yield name, [frame.image]


def main(argv: Sequence[str] | None = None) -> int:
    inputs = {"weights": shipped_names(), "frames": ()}
    return cli.run(
        export, ExportOptions, prog="danet export", positionals=["weights"], inputs=inputs, page=PAGE, argv=argv
    )


if __name__ == "__main__":
    raise SystemExit(main())
