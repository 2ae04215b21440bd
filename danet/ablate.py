"""``danet ablate``: trains variants of one recipe with several seeds, measures them, and says what each part brings."""

import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from danet.data.coco_dataset import CocoDataset, ImageRecord, load_coco
from danet.data.loader import DataSource, load_source
from danet.evaluate import EvaluateOptions, NothingFound, evaluate, select_images
from danet.evaluation.ablation import Result, summarise, to_markdown
from danet.evaluation.cross_validation import divide_into_folds, join_folds, write_folds
from danet.train import train
from danet.training.options import PRESETS, TrainOptions
from danet.training.run_folder import CONFIG
from danet.utils import cli
from danet.utils.errors import UserError
from danet.utils.files import read_json, read_text, write_json, write_text

COMPONENTS = ("safem", "acfa", "adcr", "sskd")
BASELINE = "baseline"
TABLE_2 = (
    *(BASELINE, *COMPONENTS, "safem+acfa"),
    *("safem+acfa+adcr", "safem+acfa+sskd", "safem+acfa+adcr+sskd"),
)
"""The rows of the paper's Table 2."""

TRAINED, EVALUATED = "train.json", "evaluate.json"


@dataclass
class AblateOptions:
    """Options of ``danet ablate``."""

    val: str
    """COCO json whose figures are reported; also given as the first word."""

    train: list[str] = field(default_factory=list)
    """What `danet train` is told in every run, such as --preset demo --data train.json; also given after a lone --."""

    tune: str | None = None
    """COCO json of other images, on which each run's threshold is chosen; without one it is 0.5."""

    folds: int | None = None
    """Cross-validation: `val` and the training data are put together and divided anew, by recording, into this many
    parts. Each is measured with runs trained on the others, of which a tenth chooses their threshold: as many times the
    trainings. `stride` thins what is measured, not what is trained on."""

    rows: list[str] | None = None
    """Variants, each named by its components (safem, acfa, adcr, sskd) joined by +, or baseline for none. By default
    the rows of the paper's Table 2; those with sskd only where teachers are given."""

    more: dict[str, list[str]] = field(default_factory=dict)
    """Further variants: a name, and what `danet train` is told besides, such as '{"teacher": ["--model.name",
    "danet"]}'."""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Every variant is trained once with each of these seeds."""

    adcr_weight: float = 0.1
    """Weight of the contrastive loss in the rows with adcr."""

    sskd_weight: float = 0.05
    """Weight of the distillation in the rows with sskd."""

    teacher_small: str | None = None
    """Weights of the teacher of small targets, for the rows with sskd."""

    teacher_medium: str | None = None
    """Weights of the teacher of medium targets."""

    teacher_large: str | None = None
    """Weights of the teacher of large targets."""

    target: str | None = None
    """Class to find; by default the model's first class."""

    criterion: Literal["iou50", "iou30", "iop50", "center3"] = "iou50"
    """When a detection is right, see `danet evaluate`; AP50 is always that of IoU 0.5."""

    class_map: dict[str, str] = field(default_factory=dict)
    """New names for the categories of `val` and `tune`."""

    stride: int = 1
    """Take every N-th image of each video of `val` and `tune`."""

    recall: float = 0.9
    """Recall at which false alarms are counted."""

    resamples: int = 1000
    """Resamples of the bootstrap that gives the 95 % intervals."""

    out: str = "runs/ablate"
    """Folder for ablation.md, ablation.json, ablation.png, config.yaml, and a folder for each variant and seed (with
    folds, in one for each part)."""

    json: str | None = None
    """Write what ablation.json holds to this file, too."""

    quiet: bool = False
    """Print only errors and warnings."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise UserError(f"seeds must be distinct numbers from 0 on, at least one, got {self.seeds}")
        for name in ("adcr_weight", "sskd_weight"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{name} must be positive, got {getattr(self, name)}")
        if self.folds is not None:
            if self.folds < 2:
                raise UserError(f"folds must be 2 or more, got {self.folds}")
            if self.tune is not None:
                raise UserError(f"tune {self.tune}: with folds, images that are trained on give way to tune")
            if any((self.teacher_small, self.teacher_medium, self.teacher_large)):
                raise UserError("folds: teachers have seen recordings that are to be measured; leave them out")
        if not 0 < self.recall <= 1:
            raise UserError(f"recall must lie between 0 and 1, got {self.recall}")
        if self.resamples < 1:
            raise UserError(f"resamples must be at least 1, got {self.resamples}")


def ablate(options: AblateOptions) -> int:
    """Trains and measures variants of one recipe with equal budgets, and compares them.

    A run that is finished is not repeated and one that was cut off goes on: the same command again takes up an
    ablation at any point. After every seed ablation.md and ablation.json hold what is known by then.
    """
    cli.check_out(options)
    _check_teachers(options)
    names = list(_rows(options))
    parts = [options] if options.folds is None else _divide(options, options.folds)
    studies = [_Study(part) for part in parts]  # checked before the first hour is spent
    write_text(Path(options.out) / CONFIG, cli.dump(options))

    console = Console(quiet=options.quiet, highlight=False)
    runs = [[study.runs[name, seed] for study in studies] for seed in options.seeds for name in names]
    results: list[Result] = []
    for number, of_parts in enumerate(runs, 1):
        measured = []
        for run, study in zip(of_parts, studies, strict=True):
            console.print(f"{number}/{len(runs)}  {run.name}, seed {run.options.seed}, {run.folder}", style="bold")
            if (code := run.train()) != 0:
                print("danet ablate: stopped; the same command again goes on", file=sys.stderr)
                return code
            run.evaluate()
            measured.append(run.result(study.data))
            console.print(measured[-1].line())
        results.append(join_folds(measured) if options.folds else measured[0])
        if number % len(names) == 0:
            _write(options, results, [record for study in studies for record in study.records])
    if not options.quiet:
        print(read_text(Path(options.out) / "ablation.md"), end="")
    return 0


def _divide(options: AblateOptions, count: int) -> list[AblateOptions]:
    """The parts of a cross-validation as ablations of their own; writes their data."""
    common = _variant(options, [])
    if any(source.weight != 1.0 for source in common.data if not isinstance(source, str)):
        raise UserError("data: with folds every image counts once, weights of sources are not possible")
    sources = [DataSource(options.val, class_map=options.class_map), *common.data]
    records = [record for source in sources for record in load_source(source)]
    target = options.target or common.model.classes[0]
    if not any(target in record.names for record in records):
        raise UserError(f"{options.val} and the training data show no {target!r}; see --target and --class_map")
    folds = divide_into_folds(records, count, Path(options.out), common.model.classes, target)
    parts = [
        dataclasses.replace(
            options,
            val=fold.path("val"),
            tune=fold.path("tune"),
            folds=None,
            class_map={},
            out=str(fold.folder),
            train=[*options.train, f"--data={json.dumps([fold.path('train')])}"],
        )
        for fold in folds
    ]
    for name, words in _rows(options).items():
        variant = _variant(parts[0], words)
        if variant.data != [folds[0].path("train")]:
            raise UserError(f"{name}: with folds all rows are trained on the same data; leave --data out")
        for given, value in (("val", variant.val), ("weights", variant.weights), ("distill", variant.distill.files())):
            if value:
                raise UserError(f"{name}: --{given} of the training may have seen what is measured with folds")
    write_folds(folds)
    return parts


def _write(options: AblateOptions, results: list[Result], records: list[ImageRecord]) -> None:
    from danet.evaluation.plots import plot_ablation  # with matplotlib, which takes its time

    summary = summarise(
        results,
        records,
        criterion=options.criterion,
        recall=options.recall,
        resamples=options.resamples,
        folds=options.folds,
    )
    write_text(Path(options.out) / "ablation.md", to_markdown(summary))
    plot_ablation(Path(options.out) / "ablation.png", summary)
    for path in (Path(options.out) / "ablation.json", options.json):
        if path is not None:
            write_json(path, {**summary.to_json(), "options": asdict(options)})


def _rows(options: AblateOptions) -> dict[str, list[str]]:
    """The variants by name: what ``danet train`` is told besides."""
    teachers = {size: getattr(options, f"teacher_{size}") for size in ("small", "medium", "large")}
    teachers = {size: path for size, path in teachers.items() if path is not None}
    names = options.rows
    if names is None:
        names = [name for name in TABLE_2 if teachers or "sskd" not in name]
    rows = {}
    for name in names:
        parts = [] if name == BASELINE else name.split("+")
        unknown = [part for part in parts if part not in COMPONENTS]
        if unknown or len(set(parts)) != len(parts):
            raise UserError(f"--rows {name}: must be {BASELINE}, or some of {', '.join(COMPONENTS)} joined by +")
        words = ["--model.safem", str("safem" in parts).lower(), "--model.acfa", str("acfa" in parts).lower()]
        words += ["--adcr.weight", str(options.adcr_weight if "adcr" in parts else 0.0)]
        if "sskd" in parts:
            if not teachers:
                raise UserError(f"--rows {name}: sskd needs teachers, give --teacher_small, _medium and _large")
            # The batch of all rows, whatever a preset says: budgets are to be equal.
            words += ["--distill.weight", str(options.sskd_weight), "--distill.batch", "null"]
            words += [word for size, path in teachers.items() for word in (f"--distill.{size}", path)]
        rows[name] = words
    for name, words in options.more.items():
        if name in rows or not re.fullmatch(r"\w[\w .+-]*", name):
            raise UserError(f"--more: {name!r} is the name of another row, or none for a folder")
        rows[name] = words
    if not rows:
        raise UserError("--rows: no row is left to run")
    return rows


def _check_teachers(options: AblateOptions) -> None:
    """Raises UserError if what every row is told names a teacher, in words or in a file."""
    named = any(word.startswith("--distill.") for word in options.train)
    if not named:
        common = asdict(cli.parse(TrainOptions, options.train, prog="danet train", presets=PRESETS))
        named = any(common.get("distill", {}).get(size) for size in ("small", "medium", "large"))
    if named:
        raise UserError("teachers are given as --teacher_small, _medium and _large, not to every row of the table")


def _variant(options: AblateOptions, words: list[str]) -> TrainOptions:
    """The options of ``danet train`` for a row, without its seed and folder."""
    variant = cli.parse(TrainOptions, [*options.train, *words], prog="danet train", presets=PRESETS)
    if not variant.data:
        raise UserError("no training data: give what `danet train` is to be told after --, such as -- --data FILE")
    watched = variant.val if isinstance(variant.val, str | None) else variant.val.path
    if watched is not None and Path(watched).resolve() == Path(options.val).resolve():
        raise UserError(f"--val {watched} of the training is what is reported: the best epoch would be chosen on it")
    return variant


def _evaluation(options: AblateOptions, **changes: Any) -> EvaluateOptions:
    names = ("tune", "target", "criterion", "class_map", "stride", "resamples")
    same: dict[str, Any] = {name: getattr(options, name) for name in names}
    return EvaluateOptions("", options.val, **same, quiet=True, **changes)


class _Study:
    """All runs on the same data."""

    def __init__(self, options: AblateOptions) -> None:
        variants = {name: _variant(options, words) for name, words in _rows(options).items()}
        self.data = load_coco(options.val)
        self.records = select_images(self.data, _evaluation(options))
        for variant in variants.values():
            target = options.target or variant.model.classes[0]
            if not any(target in record.names for record in self.records):
                raise UserError(f"{options.val}: shows no {target!r}; see --target and --class_map")
        self.runs = {
            (name, seed): _Run(options, name, dataclasses.replace(variant, seed=seed))
            for seed in options.seeds
            for name, variant in variants.items()
        }
        for run in self.runs.values():
            run.check()


class _Run:
    """One variant with one seed, in a folder of its own."""

    def __init__(self, ablation: AblateOptions, name: str, options: TrainOptions) -> None:
        from danet.training.run_folder import WEIGHTS

        self.name = name
        self.folder = Path(ablation.out) / name / str(options.seed)
        self.options = dataclasses.replace(
            options,
            out=str(self.folder),
            json=str(self.folder / TRAINED),
            quiet=ablation.quiet or options.quiet,
            resume=False,
            overwrite=False,
        )
        self.evaluation = dataclasses.replace(
            _evaluation(ablation, device=options.device, threads=options.threads),
            weights=str(self.folder / WEIGHTS),
            out=str(self.folder / "evaluate"),
            json=str(self.folder / EVALUATED),
        )

    def check(self) -> None:
        """Raises UserError if the folder holds a run with other options."""
        import yaml

        from danet.training.options import MAY_CHANGE_ON_RESUME

        if not (self.folder / CONFIG).is_file():
            return
        saved = cli.parse(TrainOptions, ["--config", str(self.folder / CONFIG)], prog="danet train")
        free = MAY_CHANGE_ON_RESUME - {"data", "val", "weights", "epochs", "val_every"}
        for name, value in asdict(self.options).items():
            if name not in free and getattr(saved, name) != getattr(self.options, name):
                there = yaml.safe_dump(asdict(saved)[name], default_flow_style=True).split("\n")[0]
                here = yaml.safe_dump(value, default_flow_style=True).split("\n")[0]
                raise UserError(f"{self.folder}: a run with {name} {there}, now it is {here}; give another --out")

    def train(self) -> int:
        """Trains, or goes on where it was cut off, or does nothing if that is done; gives the exit code."""
        if (self.folder / TRAINED).is_file():
            return 0
        return train(dataclasses.replace(self.options, resume=(self.folder / CONFIG).is_file()))

    def evaluate(self) -> None:
        """Measures, unless that is done with the same options."""
        path = self.folder / EVALUATED
        untuned = dataclasses.replace(self.evaluation, tune=None)
        if path.is_file() and read_json(path)["options"] in (asdict(self.evaluation), asdict(untuned)):
            return
        try:
            evaluate(self.evaluation)
        except NothingFound as error:  # one failed run is to stand in the table, not to end the others
            print(f"danet ablate: warning: {error}; measured at score 0.5", file=sys.stderr)
            evaluate(untuned)

    def result(self, data: CocoDataset) -> Result:
        from danet.checkpoint import load_weights
        from danet.evaluation.comparison import outcome
        from danet.inference.coco_results import read_coco_results
        from danet.models.summary import count_parameters

        model, _ = load_weights(self.evaluation.weights)
        figures = read_json(self.folder / EVALUATED)
        records = select_images(data, self.evaluation)
        classes = model.config.classes
        predictions = read_coco_results(self.folder / "evaluate" / "predictions.json", data, records, classes)
        found = figures["criteria"][self.evaluation.criterion]
        operating = found["tuned"] or found["fixed"]
        training = read_json(self.folder / TRAINED)
        return Result(
            row=self.name,
            seed=self.options.seed,
            target=figures["target"],
            threshold=operating["threshold"],
            precision=operating["precision"]["value"],
            recall=operating["recall"]["value"],
            f1=operating["f1"]["value"],
            ap50=figures["criteria"]["iou50"]["ap"]["value"],
            frames_per_second=figures["speed"].get("fps"),
            parameters=count_parameters(model),
            steps=training["steps"],
            seconds=training["seconds"],
            operators=figures["environment"]["operators"],
            outcome=outcome(
                records,
                predictions,
                classes,
                target=figures["target"],
                criterion=self.evaluation.criterion,
                threshold=operating["threshold"],
            ),
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--" in argv:
        at = argv.index("--")
        argv = [*argv[:at], f"--train={json.dumps(argv[at + 1 :])}"]
    return cli.run(ablate, AblateOptions, prog="danet ablate", positionals=["val"], argv=argv)


if __name__ == "__main__":
    raise SystemExit(main())
