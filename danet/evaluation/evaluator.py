"""Evaluates a detector on a dataset: what ``danet evaluate`` does, as a library."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from danet.boxes import Detections
from danet.checkpoint import load_weights
from danet.data.coco_dataset import CocoDataset, ImageRecord, load_coco
from danet.data.image_record import fingerprint
from danet.data.image_selection import select_images
from danet.data.temporal import MissingFrames
from danet.evaluation.contact_sheets import ContactSheets
from danet.evaluation.curves import thin_curves, write_curves
from danet.evaluation.evaluate_options import LOCAL_CONTRAST, MIN_SCORE, EvaluateOptions
from danet.evaluation.metrics import Metrics, choose_threshold, evaluate_predictions
from danet.evaluation.mistakes import find_mistakes
from danet.evaluation.plots import PLOTS, write_png
from danet.inference.coco_results import to_coco_results
from danet.inference.detector import Detector
from danet.inference.input_size import parse_size_option, parse_tile_option
from danet.inference.loading import choose_device, is_onnx, load
from danet.inference.local_contrast_detector import LocalContrastDetector
from danet.inference.onnx_adapter import OnnxAdapter, count_onnx_parameters, is_foreign
from danet.inference.predict import Speed
from danet.inference.shared_images import is_shared, predict_shared
from danet.inference.stored_predictions import StoredPredictions, prediction_classes
from danet.models.summary import count_parameters
from danet.ops import info
from danet.ops.common import dtype_name
from danet.utils import cli
from danet.utils.distributed import world_size
from danet.utils.errors import UserError
from danet.utils.files import write_json, write_text
from danet.utils.image_io import write_image
from danet.utils.typed_options import paths_as_texts

WORST_SHEET, SIZE_SHEET = "misses_and_false_alarms.png", "by_size.png"


AnyDetector = Detector | LocalContrastDetector | OnnxAdapter | StoredPredictions


class NoDetectionsError(UserError):
    """No threshold can be chosen, because no object of the target class is detected."""


@dataclass(frozen=True)
class TunedThreshold:
    """A score threshold, and the F1 that it reaches on the images on which it was chosen.

    ``data`` is the path of these images (``options.tune``), and ``images`` is their number.
    """

    data: str
    images: int
    f1: float
    threshold: float


@dataclass(frozen=True)
class Evaluation:
    """The results of ``Evaluator.evaluate``."""

    evaluator: "Evaluator"
    predictions: list[Detections]
    metrics: Metrics
    content: dict
    """The content of ``metrics.json``."""
    threshold: float
    """Score threshold of the mistakes and contact sheets: the one that was passed to ``evaluate`` (chosen on
    ``options.tune``), or else ``options.threshold`` (chosen before), or else ``options.fixed`` (not chosen on data)."""
    sheets: dict[str, np.ndarray | None]
    """Contact sheets by file name; None if there is nothing to show."""

    def write(self) -> list[Path]:
        """Writes all files into the folder ``options.out`` and the metrics to ``options.json``.

        Returns the paths of all files but config.yaml. Raises UserError if one of them would replace an input.
        """
        self.evaluator.options.check_outputs()
        source, options, curves = self.evaluator, self.evaluator.options, thin_curves(self.metrics)
        out = Path(options.out)
        write_text(out / "config.yaml", cli.dump(options))
        written = [out / name for name in ("metrics.json", "predictions.json", "curves.csv")]
        write_json(written[0], self.content)
        results = to_coco_results(source.data, source.records, self.predictions, source.classes)
        write_json(written[1], results, indent=None)
        write_curves(written[2], curves)
        for plot in PLOTS:
            written.append(out / plot.file)
            write_png(written[-1], plot.draw(self.content, curves))
        for name, sheet in self.sheets.items():
            (out / name).unlink(missing_ok=True)
            if sheet is not None:
                written.append(out / name)
                write_image(written[-1], sheet)
        if options.json is not None:
            written.append(Path(options.json))
            write_json(written[-1], self.content)
        return written


class Evaluator:
    """A detector and the images to evaluate it on.

    ``options.threads`` sets torch's number of threads for the whole process. ``warnings`` lists problems of the data
    that make the result doubtful: repairs that were made when the data were read, recordings or videos that are in both
    ``data`` and ``tune``, images without the earlier frames of ``model.lags``, or no object of the target class.

    Raises UserError if a file is missing or broken, if ``data`` and ``tune`` share images, or if a class is unknown.
    """

    def __init__(self, options: EvaluateOptions) -> None:
        self.options = options = paths_as_texts(options)
        options.check_complete()
        self.warnings: list[str] = []
        self.data = load_coco(options.data, split="val")
        tune = None if options.tune is None else load_coco(options.tune, split="val")
        self.warnings += [f"{self.data.path}: {line}" for line in self.data.repairs.lines()]
        _check_class_map(options.class_map, [*self.data.categories, *(tune.categories if tune else [])])
        self.records = select_images(self.data, options.stride, options.class_map)
        self.tune_records = select_images(tune, options.stride, options.class_map) if tune else []
        self._check_disjoint()
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self.device = choose_device(options.device, options.weights)
        self.tune_detector: AnyDetector
        self.detector: AnyDetector
        if options.predictions is None:
            self.detector = self.tune_detector = self._load_detector(options.weights or "")
        else:
            if options.tile is not None:
                raise UserError("--tile: has no effect on --predictions, which are detected already; omit --tile")
            self.detector, self.tune_detector = self._read_predictions(self.data, tune)
        self.classes = self.detector.classes
        self.target = self._choose_target()
        self.threshold = self._chosen_threshold()
        if isinstance(self.detector, Detector):
            self._warn_of_missing_frames(self.detector.lags)

    @property
    def notes(self) -> list[str]:
        """Lines about the detector: its dtype, how an ONNX file of another program is used, or what was read."""
        detectors = dict.fromkeys((self.detector, self.tune_detector))
        lines = [getattr(each, "note", "") or each.dtype_note for each in detectors]
        if self.threshold is not None and self.options.threshold is None and isinstance(self.detector, Detector):
            assert self.detector.calibration is not None
            lines.append(f"score {self.threshold:.3f} {self.detector.calibration.describe_request()}")
        return [line for line in lines if line]

    def choose_threshold(self) -> TunedThreshold | None:
        """Chooses the score threshold on ``options.tune``; returns None if that is None.

        Raises NoDetectionsError if no object of the target class is detected there.
        """
        tune, criterion = self.options.tune, self.options.criterion
        if tune is None:
            return None
        predictions, _ = self._predict(self.tune_detector, self.tune_records)
        inputs = self.tune_records, predictions, self.classes
        threshold, f1 = choose_threshold(*inputs, target=self.target, criterion=criterion)
        if threshold is None:
            raise NoDetectionsError(f"{tune}: no threshold can be chosen, no {self.target!r} is found there")
        return TunedThreshold(tune, len(self.tune_records), f1, threshold)

    def predict(self) -> tuple[list[Detections], Speed]:
        """Runs the detector on all images; with several processes, each of them must call it or ``evaluate``."""
        return self._predict(self.detector, self.records)

    def evaluate(self, tuned: TunedThreshold | None = None) -> Evaluation:
        """Runs the detector on all images and computes the metrics; ``tuned`` is the result of ``choose_threshold``."""
        options, records, classes, target = self.options, self.records, self.classes, self.target
        threshold = self.threshold if tuned is None else tuned.threshold
        predictions, speed = self.predict()
        names = ("fixed", "criterion", "scale_edges", "resamples", "seed")
        settings: dict[str, Any] = {name: getattr(options, name) for name in names}
        inputs = records, predictions, classes
        metrics = evaluate_predictions(*inputs, target=target, threshold=threshold, **settings)
        display_threshold = options.fixed if threshold is None else threshold
        mistakes = find_mistakes(*inputs, target=target, threshold=display_threshold, criterion=options.criterion)
        method = (
            f"{self.device}, {dtype_name(self.detector.dtype)}, {torch.get_num_threads()} threads, batches of up to "
            f"{options.batch} images of equal size, scores from {MIN_SCORE}; the steps run one after the other "
            "(reading and preprocessing, network, decoding and suppression); the first batch is not counted"
        )
        if is_shared():
            method += f"; times of {world_size()} processes, summed, decoding as a part of the network"
        if isinstance(self.detector, StoredPredictions):
            method = "not measured, because the predictions were read from a file"
        content = {
            **metrics.to_json(),
            "classes": classes,
            "parameters": self._count_parameters(),
            "tuned_on": None if tuned is None else asdict(tuned),
            "fingerprints": {"data": fingerprint(records), "tune": fingerprint(self.tune_records)},
            "mistakes": mistakes.causes(),
            "dtype": dtype_name(self.detector.dtype),
            "speed": speed.to_json(method),
            "environment": info(),
            "options": asdict(options),
        }
        draw = ContactSheets(*inputs, target=target, threshold=display_threshold)
        sheets = {WORST_SHEET: draw.worst(mistakes), SIZE_SHEET: draw.by_size(mistakes, options.scale_edges)}
        return Evaluation(self, predictions, metrics, content, display_threshold, sheets)

    def _chosen_threshold(self) -> float | None:
        """The threshold of the options, or the one that ``danet calibrate`` has stored in the weights."""
        options, calibration = self.options, getattr(self.detector, "calibration", None)
        if options.threshold is not None or options.tune is not None or calibration is None:
            return options.threshold
        return max(calibration.detection_score, MIN_SCORE) if self.target in calibration.classes else None

    def _predict(self, detector: "AnyDetector", records: Sequence[ImageRecord]) -> tuple[list[Detections], Speed]:
        if isinstance(detector, StoredPredictions):
            return detector.select(records), Speed()
        return predict_shared(detector, records, self.options.batch, quiet=self.options.quiet)

    def _read_predictions(
        self, data: CocoDataset, tune: CocoDataset | None
    ) -> tuple[StoredPredictions, StoredPredictions]:
        """The stored predictions for ``data`` and for ``tune``."""
        options = self.options
        classes = prediction_classes([data, tune] if tune else [data], options.class_names, options.class_map)
        limits: dict[str, Any] = {"score_threshold": MIN_SCORE, "max_detections": options.max_detections}
        limits |= {"class_names": options.class_names, "class_map": options.class_map}
        found = StoredPredictions(options.predictions or "", data, classes, **limits)
        found_tune = StoredPredictions(options.tune_predictions or "", tune, classes, **limits) if tune else found
        for each in dict.fromkeys((found, found_tune)):
            self.warnings += each.warnings
        return found, found_tune

    def _count_parameters(self) -> int | None:
        """Number of the network's parameters; None for filters and stored predictions."""
        weights = self.options.weights or ""
        if is_onnx(weights):
            return count_onnx_parameters(weights)
        return count_parameters(load_weights(weights)[0]) if isinstance(self.detector, Detector) else None

    def _load_detector(self, weights: str) -> Detector | LocalContrastDetector | OnnxAdapter:
        options = self.options
        limits: dict[str, Any] = {"score_threshold": MIN_SCORE, "iou_threshold": options.iou}
        limits["max_detections"] = options.max_detections
        tile = parse_tile_option(options.tile)
        if tile is not None and (weights == LOCAL_CONTRAST or (is_onnx(weights) and is_foreign(weights))):
            raise UserError(f"--tile: applies to networks of danet, but {weights} is another detector; omit --tile")
        if weights == LOCAL_CONTRAST:
            if options.target is None:
                raise UserError(f"--target: name the class that {LOCAL_CONTRAST} is to find")
            detector = LocalContrastDetector(options.target, self.device, **limits)
            detector.calibrate(self.tune_records)
            return detector
        limits["input_size"] = parse_size_option(options.input_size)
        if is_onnx(weights) and is_foreign(weights):
            if options.polarity != "white":
                raise UserError(
                    f"--polarity {options.polarity}: applies to networks of danet, but {weights} is another"
                )
            return OnnxAdapter(weights, options.onnx, class_names=options.class_names, **limits)
        limits |= {"dtype": options.dtype, "deploy": options.deploy, "classes": "all"}
        limits |= {"polarity": options.polarity, "tile": tile, "overlap": options.overlap}
        return load(weights, self.device, **limits)

    def _check_disjoint(self) -> None:
        """Raises UserError if ``tune`` contains an evaluated image; warns if it shares a recording or a video."""
        records, tune, options = self.records, self.tune_records, self.options
        shared = {record.path for record in records} & {record.path for record in tune}
        if shared:
            raise UserError(
                f"--tune {options.tune}: shares {len(shared)} images with {options.data} (such as {min(shared).name}); "
                "choose the threshold on other images"
            )
        for name in ("recording", "video"):
            both = {getattr(record, name) for record in records} & {getattr(record, name) for record in tune} - {None}
            if both:
                where = f"{options.tune} and {options.data}"
                self.warnings.append(f"{where} share {len(both)} {name}s, such as {min(both)}")
                return

    def _warn_of_missing_frames(self, lags: Sequence[float]) -> None:
        """Warns of images without the earlier frames that the network compares them with."""
        for path, records in ((self.options.data, self.records), (self.options.tune, self.tune_records)):
            line = MissingFrames((record.past for record in records), lags).line("images")
            if line:
                self.warnings.append(f"{path}: {line}; import the videos with --lags")

    def _choose_target(self) -> str:
        target = self.classes[0] if self.options.target is None else self.options.target
        if target not in self.classes:
            raise UserError(f"--target {target}: not a class of the model ({', '.join(self.classes)})")
        names = {name for record in self.records for name in record.names}
        if target not in names:
            shown = ", ".join(sorted(names)) or "nothing"
            self.warnings.append(f"{self.options.data} shows no {target!r}, only {shown}; see --class_map")
        return target


def evaluate(options: EvaluateOptions) -> Evaluation:
    """Measures a detector on annotated images; ``Evaluation.write`` writes the files of ``danet evaluate``.

    Raises:
        UserError: a file is missing or broken, images are in both datasets, or a class is unknown.

    Example:
        >>> from danet.checkpoint import SHIPPED
        >>> from danet.data.coco_dataset import write_coco
        >>> path = getfixture("tmp_path") / "a.png"
        >>> write_image(path, np.zeros((64, 96), np.uint8))
        >>> record = ImageRecord(path, 96, 64, np.array([[10, 10, 22, 18]]), ["drone"], np.array([False]))
        >>> write_coco(path.with_suffix(".json"), [record], ["drone"])
        >>> options = EvaluateOptions(str(SHIPPED), str(path.with_suffix(".json")), resamples=10, quiet=True)
        >>> evaluate(options).content["objects"]
        1
    """
    evaluator = Evaluator(options)
    return evaluator.evaluate(evaluator.choose_threshold())


def _check_class_map(class_map: Mapping[str, str], categories: Sequence[str]) -> None:
    for name in class_map:
        if name not in categories:
            known = ", ".join(sorted(set(categories)))
            raise UserError(f"--class_map: {name!r} is not a category of the data ({known})")
