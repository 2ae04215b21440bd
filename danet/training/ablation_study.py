"""Runs of an ablation: trains variants of one recipe with several seeds and evaluates each run.

The results are summarized by ``danet.evaluation.ablation``.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from danet.checkpoint import load_weights
from danet.data.coco_dataset import ImageRecord, load_coco
from danet.data.image_selection import select_images
from danet.data.loader import DataSource, load_source
from danet.evaluation.ablate_options import AblateOptions
from danet.evaluation.ablation import RATIOS, RunResult, summarize, to_markdown
from danet.evaluation.comparison import detection_outcome
from danet.evaluation.cross_validation import divide_into_folds, join_folds, write_folds
from danet.evaluation.evaluate_options import EvaluateOptions
from danet.evaluation.evaluator import Evaluator, NoDetectionsError
from danet.evaluation.plots import ablation_figure, write_png
from danet.inference.coco_results import read_coco_results
from danet.models.summary import count_parameters
from danet.training.options import MAY_CHANGE_ON_RESUME, PRESETS, TrainOptions
from danet.training.run import train
from danet.training.run_folder import CONFIG, WEIGHTS, input_files
from danet.utils import cli
from danet.utils.devices import find_device
from danet.utils.errors import UserError
from danet.utils.files import read_json, write_json, write_text

TRAINED, EVALUATED = "train.json", "evaluate.json"
"""Files that mark a run as trained and as evaluated."""


class AblationStudy:
    """All runs of an ablation, checked before the first training starts.

    Finished runs are not repeated and interrupted runs are resumed, so that a study can be continued at any point.

    Raises UserError if options, data and existing runs do not fit together.
    """

    def __init__(self, options: AblateOptions) -> None:
        _check_teachers(options)
        _check_outputs(options)
        self.options = options
        self.names = list(options.row_arguments())
        parts = [options] if options.folds is None else _divide(options, options.folds)
        self.parts = [_Part(part) for part in parts]
        self.results: list[RunResult] = []

    def runs(self) -> list[list["Run"]]:
        """The runs in the order of training: for each seed and row one run, with folds one per fold."""
        keys = [(name, seed) for seed in self.options.seeds for name in self.names]
        return [[part.runs[key] for part in self.parts] for key in keys]

    def add(self, results: Sequence[RunResult]) -> None:
        """Takes the results of one element of ``runs()``; writes all files whenever a seed is complete."""
        self.results.append(join_folds(results) if self.options.folds else results[0])
        if len(self.results) % len(self.names) == 0:
            self._write()

    def _write(self) -> None:
        out, options = Path(self.options.out), self.options
        records = [record for part in self.parts for record in part.records]
        settings: dict[str, Any] = {key: getattr(options, key) for key in ("criterion", "recall", "resamples", "folds")}
        summary = summarize(self.results, records, **settings)
        content = summary.to_json()
        write_text(out / "ablation.md", to_markdown(summary))
        write_png(out / "ablation.png", ablation_figure(content))
        for path in (out / "ablation.json", options.json):
            if path is not None:
                write_json(path, {**content, "options": asdict(options)})


class _Part:
    """All runs that are evaluated on the same data: the whole study, or one fold."""

    def __init__(self, options: AblateOptions) -> None:
        variants = {name: _train_options(options, words) for name, words in options.row_arguments().items()}
        self.records = select_images(load_coco(options.val, split="val"), options.stride, options.class_map)
        for variant in variants.values():
            target = options.target or variant.model.classes[0]
            if not any(target in record.names for record in self.records):
                raise UserError(f"{options.val}: shows no {target!r}; see --target and --class_map")
        self.runs = {
            (name, seed): Run(options, name, dataclasses.replace(variant, seed=seed), self.records)
            for seed in options.seeds
            for name, variant in variants.items()
        }
        for run in self.runs.values():
            run.check()


class Run:
    """One variant with one seed, in a folder of its own."""

    def __init__(self, ablation: AblateOptions, name: str, options: TrainOptions, records: list[ImageRecord]) -> None:
        self.name = name
        self.folder = Path(ablation.out) / name / str(options.seed)
        self.records = records
        # All runs must compute in the same dtype: a choice by measured speed could differ from run to run.
        self.chooses_amp = options.amp == "auto" and find_device(options.device).type == "cpu"
        self.options = dataclasses.replace(
            options,
            amp="off" if self.chooses_amp else options.amp,
            out=str(self.folder),
            json=str(self.folder / TRAINED),
            quiet=ablation.quiet or options.quiet,
            resume=False,
            overwrite=False,
        )
        shared = ("tune", "target", "criterion", "class_map", "stride", "resamples")
        common: dict[str, Any] = {name: getattr(ablation, name) for name in shared}
        self.evaluation = EvaluateOptions(
            str(self.folder / WEIGHTS),
            ablation.val,
            **common,
            device=options.device,
            threads=options.threads,
            dtype="float32",
            out=str(self.folder / "evaluate"),
            json=str(self.folder / EVALUATED),
            quiet=True,
        )

    def check(self) -> None:
        """Raises UserError if the folder holds a run with other options."""
        if not (self.folder / CONFIG).is_file():
            return
        saved = asdict(cli.parse(TrainOptions, ["--config", str(self.folder / CONFIG)], prog="danet train"))
        if self.chooses_amp and saved["amp"] == "auto":
            # The run is of an earlier version, where "auto" was "off" on the CPU.
            self.options = dataclasses.replace(self.options, amp="auto")
        free = MAY_CHANGE_ON_RESUME - {"data", "val", "weights", "epochs", "val_every", "patience", "max_minutes"}
        for name, value in asdict(self.options).items():
            if name not in free and saved[name] != value:
                there = yaml.safe_dump(saved[name], default_flow_style=True).split("\n")[0]
                here = yaml.safe_dump(value, default_flow_style=True).split("\n")[0]
                raise UserError(f"{self.folder}: holds a run with {name} {there}, not {here}; give another --out")

    def train(self) -> bool:
        """Trains the run, resumes it, or does nothing if it is finished; False if a signal stopped it."""
        if (self.folder / TRAINED).is_file():
            return True
        result = train(dataclasses.replace(self.options, resume=(self.folder / CONFIG).is_file()))
        if result.finished:
            write_json(self.folder / TRAINED, {"steps": result.steps, "seconds": result.seconds, "best": result.best})
        return result.finished

    def evaluate(self) -> list[str]:
        """Evaluates the run, unless that was done with the same options; returns warnings.

        A run without detections is evaluated at score 0.5: it belongs in the table and must not end the study.
        """
        path = self.folder / EVALUATED
        untuned = dataclasses.replace(self.evaluation, tune=None)
        if path.is_file() and _saved_options(path) in (asdict(self.evaluation), asdict(untuned)):
            return []
        cli.check_out(self.evaluation)
        evaluator = Evaluator(self.evaluation)
        try:
            evaluator.evaluate(evaluator.choose_threshold()).write()
        except NoDetectionsError as error:
            evaluator = Evaluator(untuned)
            evaluator.evaluate().write()
            return [*evaluator.warnings, f"{error}; evaluated at score {untuned.fixed}"]
        return evaluator.warnings

    def result(self) -> RunResult:
        """Reads the metrics and detections of the evaluated run. Raises UserError if its files were changed."""
        try:
            return self._read_result()
        except (AttributeError, LookupError, TypeError) as error:
            raise UserError(
                f"{self.folder}: {TRAINED} or {EVALUATED} is not as danet writes it ({type(error).__name__}: "
                f"{str(error)[:200]}); remove the folder, so that the run is repeated"
            ) from error

    def _read_result(self) -> RunResult:
        model, _ = load_weights(self.evaluation.weights or "")
        metrics, training = read_json(self.folder / EVALUATED), read_json(self.folder / TRAINED)
        classes, criterion = model.config.classes, self.evaluation.criterion
        point = metrics["criteria"][criterion]["tuned"] or metrics["criteria"][criterion]["fixed"]
        data, path = load_coco(self.evaluation.data, split="val"), self.folder / "evaluate" / "predictions.json"
        predictions = read_coco_results(path, data, self.records, classes)
        found: dict[str, Any] = {"target": metrics["target"], "threshold": point["threshold"]}
        return RunResult(
            row=self.name,
            seed=self.options.seed,
            **found,
            **{ratio: point[ratio]["value"] for ratio in RATIOS},
            ap50=metrics["criteria"]["iou50"]["ap"]["value"],
            frames_per_second=metrics["speed"].get("fps"),
            parameters=count_parameters(model),
            steps=training["steps"],
            seconds=training["seconds"],
            operators=metrics["environment"]["operators"],
            outcome=detection_outcome(self.records, predictions, classes, criterion=criterion, **found),
        )


def _saved_options(path: Path) -> object:
    """The options in the results of an evaluation; None if they have none, so that it is repeated."""
    content = read_json(path)
    return content.get("options") if isinstance(content, dict) else None


def _divide(options: AblateOptions, count: int) -> list[AblateOptions]:
    """The folds of a cross-validation as ablations of their own; writes their data."""
    common = _train_options(options, [])
    if any(source.weight != 1.0 for source in common.data if not isinstance(source, str)):
        raise UserError("--data: cannot have weights with --folds; every image counts once")
    sources = [DataSource(options.val, class_map=options.class_map), *common.data]
    splits = ["val", *["train"] * len(common.data)]
    records = [record for source, split in zip(sources, splits, strict=True) for record in load_source(source, split)]
    target = options.target or common.model.classes[0]
    if not any(target in record.names for record in records):
        raise UserError(f"{options.val} and the training data show no {target!r}; see --target and --class_map")
    folds = divide_into_folds(records, count, Path(options.out), common.model.classes, target)
    parts = []
    for fold in folds:
        val, tune, out = fold.path("val"), fold.path("tune"), str(fold.folder)
        words = [*options.train, f"--data={json.dumps([fold.path('train')])}"]
        parts.append(dataclasses.replace(options, val=val, tune=tune, folds=None, class_map={}, out=out, train=words))
    for name, words in options.row_arguments().items():
        variant = _train_options(parts[0], words)
        if variant.data != [folds[0].path("train")]:
            raise UserError(f"{name}: --data cannot be used with --folds; all rows are trained on the same data")
        for given, value in (("val", variant.val), ("weights", variant.weights), ("distill", variant.distill.files())):
            if value:
                raise UserError(f"{name}: --{given} cannot be used with --folds; it may leak evaluated recordings")
    write_folds(folds)
    return parts


def _train_options(options: AblateOptions, words: list[str]) -> TrainOptions:
    """The options of ``danet train`` for a row, without its seed and folder."""
    variant = cli.parse(TrainOptions, [*options.train, *words], prog="danet train", presets=PRESETS)
    if not variant.data:
        raise UserError("no training data: give the options of `danet train` after --, such as -- --data FILE")
    validation = variant.val if isinstance(variant.val, str | None) else variant.val.path
    if validation is not None and Path(validation).resolve() == Path(options.val).resolve():
        raise UserError(
            f"--val {validation} of the training is the dataset that is reported; the best epoch would be chosen on it"
        )
    return variant


def _check_outputs(options: AblateOptions) -> None:
    """Raises UserError if a result of the study would replace a dataset."""
    training = cli.parse(TrainOptions, options.train, prog="danet train", presets=PRESETS)
    inputs = input_files([options.val, options.tune, *training.data, training.val])
    out = Path(options.out)
    cli.check_outputs([options.json, *(out / name for name in (CONFIG, "ablation.md", "ablation.png"))], inputs)
    cli.check_outputs([out / "ablation.json"], inputs)  # --json may be this file: both have the same content


def _check_teachers(options: AblateOptions) -> None:
    """Raises UserError if the shared arguments name a teacher, as an option or in a file."""
    teachers = tuple(f"--distill.{size}" for size in ("small", "medium", "large"))
    named = any(word.startswith(teachers) for word in options.train)
    if not named:
        common = asdict(cli.parse(TrainOptions, options.train, prog="danet train", presets=PRESETS))
        named = any(common.get("distill", {}).get(size) for size in ("small", "medium", "large"))
    if named:
        raise UserError("--distill of the training: give teachers as --teacher_small, _medium and _large")
