"""Compares detectors on the same images from the folders of their evaluations: one table, with paired intervals."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from danet.data.coco_dataset import dataset_files, load_coco
from danet.data.image_record import fingerprint
from danet.data.image_selection import select_images
from danet.evaluation.bootstrap import Estimate, Resampling, resample
from danet.evaluation.compare_options import CompareOptions
from danet.evaluation.comparison import Outcome, compare, detection_outcome
from danet.evaluation.curves import Curves, read_curves
from danet.evaluation.evaluate_options import LOCAL_CONTRAST, EvaluateOptions
from danet.evaluation.evaluator import Evaluator, NoDetectionsError
from danet.evaluation.formatting import UNDEFINED, difference, estimate, number
from danet.evaluation.matching import CRITERIA
from danet.evaluation.metrics import ALL, RECALLS, recall_point, size_ranges
from danet.evaluation.plots import detectors_figure, write_png
from danet.evaluation.tables import Row, Table
from danet.inference.coco_results import read_coco_results
from danet.utils import cli
from danet.utils.errors import UserError
from danet.utils.files import read_json, write_json, write_text

COMPARED = ("iou30", "iou50")
"""Criteria for which F1 and AP are compared, at the threshold that was chosen under ``options.criterion``."""

METRICS, PREDICTIONS, CURVES = "metrics.json", "predictions.json", "curves.csv"

SAME = ("criterion", "stride", "class_map", "scale_edges", "max_detections")
"""Options in which all evaluations must agree."""


@dataclass(frozen=True)
class Evaluated:
    """One detector: its name, and the content of its evaluation's folder."""

    name: str
    folder: Path
    metrics: dict
    curves: Curves

    @property
    def options(self) -> dict:
        return self.metrics["options"]

    @property
    def threshold(self) -> float:
        """The tuned score threshold; the fixed one if no threshold could be chosen."""
        tuned = self.metrics["thresholds"]["tuned"]
        return self.metrics["thresholds"]["fixed"] if tuned is None else tuned

    def point(self, result: dict) -> dict:
        """The operating point of a result of ``metrics.json`` at ``threshold``."""
        return result["tuned"] or result["fixed"]


class DetectorComparison:
    """Evaluates detectors where that has not been done, and compares them on the same images.

    Args:
        options: what ``danet compare`` takes. ``options.detectors`` may hold folders of evaluations.

    Attributes:
        names: names of the detectors, in the order of the options.
        warnings: one line for each problem that makes the result doubtful.

    Raises:
        UserError: a file is missing or broken, or the folders are evaluations of other images, or with other options;
            a result would replace an input.

    Example:
        >>> DetectorComparison(CompareOptions(["a.safetensors", "b.onnx"], "val.json")).names
        ['a', 'b']
    """

    def __init__(self, options: CompareOptions) -> None:
        self.options = options
        self.warnings: list[str] = []
        self._data: dict[str, str | None] = {}  # the compared paths of "data" and "tune"; set by `evaluate`
        self._fingerprints: dict[str, str] = {}  # of this data
        self._sources = dict(map(_name_of, options.detectors))
        self.names = list(self._sources)
        if len(self.names) < len(options.detectors):
            raise UserError("--detectors: two have the same name; give them names, such as large=runs/a small=runs/b")
        self._check_outputs()

    def evaluate(self, notify: Callable[[str], None] = print) -> list[Evaluated]:
        """Reads the folders, and evaluates the other detectors into folders of ``options.out``.

        Args:
            notify: is called with a line about each evaluation.

        Raises:
            UserError: as of the class, or a folder to write holds the ``config.yaml`` of another command.
        """
        given = {name: read_evaluation(name, path) for name, path in self._sources.items() if path.is_dir()}
        data, tune = self.options.data, self.options.tune
        if given:
            first = next(iter(given.values()))
            data = data or first.options["data"]
            tune = tune or next((each.options["tune"] for each in given.values() if each.options["tune"]), None)
        if not data:
            raise UserError("--data: a value is required, unless the folder of an evaluation is given")
        for name, path in self._sources.items():
            if name not in given:
                cli.check_out(EvaluateOptions(str(path), data, out=str(self._folder(name))))
        found = []
        target = self.options.target
        for name, path in self._sources.items():
            if name not in given:
                notify(f"{name}: evaluating {path} on {data}")
                given[name] = self._run(name, str(path), data, tune, target)
            found.append(given[name])
            target = target or given[name].metrics["target"]
        self._data = {"data": data, "tune": tune}
        self._check(found, target)
        return found

    def compare(self, found: Sequence[Evaluated]) -> dict:
        """The content of ``comparison.json``: the metrics of every detector, and the differences to the first one.

        Args:
            found: what ``evaluate`` has returned.
        """
        options, first = self.options, found[0]
        dataset = load_coco(str(self._data["data"]), split="val")
        records = select_images(dataset, options.stride, options.class_map)
        draws = resample([record.video for record in records], options.resamples, options.seed)
        target = first.metrics["target"]
        outcomes: dict[str, dict[str, Outcome]] = {}
        for each in found:
            predictions = read_coco_results(each.folder / PREDICTIONS, dataset, dataset.records, _classes(each))
            by_id = {record.image_id: one for record, one in zip(dataset.records, predictions, strict=True)}
            inputs = records, [by_id[record.image_id] for record in records], _classes(each)
            outcomes[each.name] = {
                key: detection_outcome(*inputs, target=target, criterion=key, threshold=each.threshold)
                for key in dict.fromkeys([*COMPARED, options.criterion])
            }
        empty = np.array([target not in record.names for record in records], bool)
        rows = [self._row(each, outcomes[each.name], empty) for each in found]
        base = outcomes[first.name]
        differences = [
            {"detector": each.name, "against": first.name, **self._difference(outcomes[each.name], base, draws, empty)}
            for each in found[1:]
        ]
        return {
            "target": target,
            "criterion": options.criterion,
            "recall": options.recall,
            "images": len(records),
            "objects": first.metrics["objects"],
            "resampled": draws.unit,
            "groups": draws.weights.shape[1],
            "data": self._data["data"],
            "tune": self._data["tune"] if any(each.options["tune"] for each in found) else None,
            "sizes": [title for _, title, _ in size_ranges(options.scale_edges)],
            "detectors": rows,
            "differences": differences,
        }

    def write(self, found: Sequence[Evaluated], content: dict) -> list[Path]:
        """Writes comparison.json, comparison.md and pr_curves.png into ``options.out``; returns their paths."""
        out = Path(self.options.out)
        written = [out / name for name in ("comparison.md", "comparison.json", "pr_curves.png")]
        write_text(written[0], to_markdown(content))
        write_json(written[1], content)
        points = [each.point(each.metrics["criteria"][content["criterion"]]) for each in found]
        lines = {each.name: each.curves.get(content["criterion"]) for each in found}
        write_png(written[2], detectors_figure(lines, points, content))
        if self.options.json is not None:
            written.append(Path(self.options.json))
            write_json(written[-1], content)
        return written

    def _folder(self, name: str) -> Path:
        """The folder into which a detector is evaluated."""
        return Path(self.options.out) / name

    def _check_outputs(self) -> None:
        """Raises UserError if a result would replace a file that the comparison reads, or another result."""
        out, inputs = Path(self.options.out), list(self._sources.values())
        outputs = [out / name for name in ("config.yaml", "comparison.md", "pr_curves.png")]
        for name, path in self._sources.items():
            files = [(path if path.is_dir() else self._folder(name)) / file for file in (METRICS, PREDICTIONS, CURVES)]
            (inputs if path.is_dir() else outputs).extend(files)
        inputs += [file for path in (self.options.data, self.options.tune) if path for file in dataset_files(path)]
        cli.check_outputs([self.options.json, *outputs], inputs)
        cli.check_outputs([out / "comparison.json"], inputs)  # --json may be this file: both have the same content

    def _run(self, name: str, weights: str, data: str, tune: str | None, target: str | None) -> Evaluated:
        """Evaluates one detector into its folder."""
        shared = [
            "criterion",
            "class_map",
            "scale_edges",
            "stride",
            "input_size",
            "polarity",
            "class_names",
            "iou",
            "resamples",
        ]
        shared += ["max_detections", "batch", "device", "dtype", "threads", "seed", "quiet"]
        values: dict[str, Any] = {key: getattr(self.options, key) for key in shared}
        folder = self._folder(name)
        evaluator = Evaluator(EvaluateOptions(weights, data, tune=tune, target=target, out=str(folder), **values))
        self.warnings += evaluator.warnings
        try:
            tuned = evaluator.choose_threshold()
        except NoDetectionsError as error:
            self.warnings.append(f"{name}: {error}; its metrics are those at score {evaluator.options.fixed:g}")
            tuned = None
        evaluator.evaluate(tuned).write()
        return read_evaluation(name, folder)

    def _check(self, found: Sequence[Evaluated], target: str | None) -> None:
        """Raises UserError unless all evaluations are of the same images, class and criterion."""
        for each in found:
            place = f"{each.folder / METRICS}"
            for key, wanted in self._data.items():
                value = each.options[key]
                if key == "tune" and value is None:
                    continue  # reported below
                # A relative path that does not exist here is of another working directory: only the content counts.
                is_elsewhere = not Path(value).is_absolute() and not Path(value).exists()
                if not is_elsewhere and not _is_same_path(value, wanted):
                    raise _other_data(each, key, wanted)
            if each.metrics["target"] != target:
                raise UserError(f"{place}: it is about the class {each.metrics['target']!r}, not about {target!r}")
            for key in SAME:
                if each.options[key] != getattr(self.options, key):
                    wanted = getattr(self.options, key)
                    raise UserError(
                        f"{place}: --{key} of this evaluation is {each.options[key]}, but {wanted} is compared; give "
                        f"--{key} here, or evaluate it again"
                    )
            self._check_content(each)
            if each.metrics["thresholds"]["tuned"] is None and self._data["tune"] is not None:
                line = f"{each.name}: it has no tuned threshold; its metrics are those at score {each.threshold:g}"
                if not any(text.startswith(f"{each.name}: ") for text in self.warnings):
                    self.warnings.append(line)

    def _check_content(self, each: Evaluated) -> None:
        """Raises UserError if the images or labels have changed since an evaluation."""
        for key, path in self._data.items():
            if path is None or each.options[key] is None:
                continue
            if key not in self._fingerprints:
                records = select_images(load_coco(path, split="val"), self.options.stride, self.options.class_map)
                self._fingerprints[key] = fingerprint(records)
            now, then = self._fingerprints[key], each.metrics["fingerprints"][key]
            if now != then and not _is_same_path(each.options[key], path):
                raise _other_data(each, key, path)
            if now != then:
                raise UserError(
                    f"{each.folder / METRICS}: {path} has changed since this evaluation: it has {now}, and had {then}; "
                    "evaluate it again"
                )

    def _row(self, each: Evaluated, outcomes: dict[str, Outcome], empty: np.ndarray) -> dict:
        """One detector's row; F1 and AP as estimates with intervals."""
        metrics, options = each.metrics, self.options
        main = each.point(metrics["criteria"][options.criterion])
        alarms = outcomes[options.criterion].false_alarms(options.recall, empty)
        return {
            "name": each.name,
            "folder": str(each.folder),
            "threshold": each.threshold,
            "is_tuned": metrics["thresholds"]["tuned"] is not None,
            "precision": main["precision"],
            "recall": main["recall"],
            **{f"f1_{key}": each.point(metrics["criteria"][key])["f1"] for key in COMPARED},
            **{f"ap_{key}": metrics["criteria"][key]["ap"] for key in COMPARED},
            "f1_by_size": [each.point(scale)["f1"] for scale in metrics["scales"]],
            "false_alarms": _all_rates(metrics, options.criterion, options.recall) or asdict(Estimate(alarms)),
            "highest_recall": _finite(outcomes[options.criterion].highest_recall),
            "parameters": metrics.get("parameters"),
            "fps": metrics["speed"].get("fps_network_and_decode"),
        }

    def _difference(
        self, a: dict[str, Outcome], b: dict[str, Outcome], draws: Resampling, empty: np.ndarray
    ) -> dict[str, Any]:
        """Detector a minus detector b, each metric with the interval of the paired bootstrap."""
        groups = draws.weights.shape[1]
        result: dict[str, Any] = {}
        for key in COMPARED:
            for name, (first, second) in {
                "f1": (a[key].f1(draws), b[key].f1(draws)),
                "ap": (a[key].average_precision(draws), b[key].average_precision(draws)),
            }.items():
                value = draws.estimate(first[0] - second[0], first[1] - second[1], groups)
                result[f"{name}_{key}"] = asdict(value)
        criterion, recall = self.options.criterion, self.options.recall
        both = compare([a[criterion]], [b[criterion]], draws, recall=recall, images=empty)
        return result | {"recall": _finite(both.recall), "false_alarms": asdict(both.false_alarms)}


def read_evaluation(name: str, folder: Path) -> Evaluated:
    """Reads the folder of an evaluation.

    Raises:
        UserError: it is not the folder of an evaluation, or of one of an older version.

    Example:
        >>> read_evaluation("a", getfixture("tmp_path") / "a")
        Traceback (most recent call last):
        danet.utils.errors.UserError: ...metrics.json: no such file; give a weights file or a folder of danet evaluate
    """
    path = folder / METRICS
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a weights file or a folder of danet evaluate")
    metrics = read_json(path)
    keys = {"target", "thresholds", "criteria", "scales", "options", "speed", "false_alarms", "other_classes"}
    keys |= {"fingerprints"}
    if not isinstance(metrics, dict) or keys - metrics.keys():
        raise UserError(f"{path}: not the metrics of danet evaluate; evaluate the detector again")
    return Evaluated(name, folder, metrics, read_curves(folder / CURVES))


def comparison_tables(content: dict) -> list[Table]:
    """The tables of a comparison: the metrics of the detectors, and the differences to the first one.

    Args:
        content: of ``comparison.json``.
    """
    criterion = CRITERIA[content["criterion"]].title
    title = f"{content['target']}: {content['objects']} objects in {content['images']} images"
    recall = f"false alarms per image, recall {content['recall']:g}"
    head: tuple[str, ...] = ("detector", "score", "P", "R", *(f"F1, {CRITERIA[key].title}" for key in COMPARED))
    head += tuple(f"AP, {CRITERIA[key].title}" for key in COMPARED)
    head += (*(f"F1, {size}" for size in content["sizes"]), recall, "parameters", "frames/s")
    rows = []
    for row in content["detectors"]:
        cells = [number(row["threshold"]) + ("" if row["is_tuned"] or content["tune"] is None else " (fixed)")]
        names = ["precision", "recall", *(f"{metric}_{key}" for metric in ("f1", "ap") for key in COMPARED)]
        cells += [estimate(row[name]) for name in names]
        cells += [estimate(value) for value in row["f1_by_size"]]
        cells.append(estimate(row["false_alarms"]) if row["false_alarms"]["value"] is not None else "not reached")
        cells.append(UNDEFINED if row["parameters"] is None else f"{row['parameters'] / 1e6:.2f} M")
        rows.append(Row(row["name"], (*cells, number(row["fps"], 1))))
    unit = f"{content['groups']} {content['resampled']}"
    note = (
        f"P, R, F1 by size and false alarms: {criterion}. In parentheses: 95 % intervals, bootstrap over {unit}. False "
        f"alarms: on images without a {content['target']}. frames/s: network and decoding, in its own evaluation."
    )
    tables = [Table(title, head, rows, note)]
    head = ("detector", "against", *(f"F1, {CRITERIA[key].title}" for key in COMPARED))
    head += (*(f"AP, {CRITERIA[key].title}" for key in COMPARED), "recall", "false alarms per image")
    rows = []
    for each in content["differences"]:
        cells = [difference(each[f"{metric}_{key}"]) for metric in ("f1", "ap") for key in COMPARED]
        rows.append(
            Row(each["detector"], (each["against"], *cells, number(each["recall"]), difference(each["false_alarms"])))
        )
    note = (
        f"Detector minus compared detector, with 95 % intervals of a paired bootstrap over {unit}. False alarms are "
        "counted at the given recall: the requested one, or the highest that both reach if that is lower."
    )
    return [*tables, Table("Differences", head, rows, note)]


def to_markdown(content: dict) -> str:
    """The tables of a comparison as Markdown."""
    text = ["# Comparison of detectors"]
    for table in comparison_tables(content):
        text += [f"## {table.title}", table.markdown(), table.note]
    return "\n\n".join(text) + "\n"


def _name_of(word: str) -> tuple[str, Path]:
    """Name and path of a detector: NAME=PATH, or the name of the file or the folder."""
    name, equals, path = word.partition("=")
    if equals and name and "/" not in name and path:
        return name, Path(path)
    if word == LOCAL_CONTRAST:
        return word, Path(word)
    return Path(word).resolve().stem if not Path(word).is_dir() else Path(word).resolve().name, Path(word)


def _is_same_path(a: str | None, b: str | None) -> bool:
    return a == b or (a is not None and b is not None and Path(a).resolve() == Path(b).resolve())


def _other_data(each: Evaluated, key: str, wanted: str | None) -> UserError:
    return UserError(
        f"{each.folder / METRICS}: --{key} of this evaluation is {each.options[key]}, but {wanted} is compared; "
        "evaluate it again"
    )


def _classes(each: Evaluated) -> list[str]:
    names = [each.metrics["target"], *(other["name"] for other in each.metrics["other_classes"])]
    return each.metrics.get("classes", names)


def _all_rates(metrics: dict, criterion: str, recall: float) -> dict | None:
    """The rate of false alarms with its interval, where ``metrics.json`` has it for this recall."""
    groups = metrics["false_alarms"]
    everywhere = [group for group in groups if group["distractor"] == ALL] or groups[:1]
    is_stored = bool(everywhere) and recall in RECALLS  # the key is rounded
    return everywhere[0]["rates"].get(recall_point(recall, criterion)) if is_stored else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
