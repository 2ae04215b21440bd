"""Options of an ablation: what ``danet ablate`` reads from the command line and from YAML files."""

import re
from dataclasses import dataclass, field
from typing import Literal

from danet.utils.errors import UserError, check_values

COMPONENTS = ("safem", "acfa", "adcr", "sskd")
BASELINE = "baseline"
TABLE_2 = (BASELINE, *COMPONENTS, "safem+acfa", "safem+acfa+adcr", "safem+acfa+sskd", "safem+acfa+adcr+sskd")
"""The rows of Table 2 of the paper (https://doi.org/10.1145/3581783.3612146)."""


@dataclass
class AblateOptions:
    """Options of ``danet ablate``.

    Raises UserError for a value that is out of range and for options that exclude each other.

    Example:
        >>> options = AblateOptions("val.json", rows=["baseline", "safem"], seeds=[0])
        >>> options.row_arguments()["safem"]
        ['--model.safem', 'true', '--model.acfa', 'false', '--adcr.weight', '0.0']
    """

    val: str
    """COCO json to evaluate on; also given as the first argument."""

    train: list[str] = field(default_factory=list)
    """Arguments of `danet train` that all runs share, such as --preset demo --data train.json; also given after a
    separate --."""

    tune: str | None = None
    """COCO json of other images, on which each run's score threshold is chosen; without it the threshold is 0.5."""

    folds: int | None = None
    """Number of folds of a cross-validation: `val` and the training data are pooled and divided by recording into this
    many folds. Each fold is evaluated with runs trained on the others, a tenth of whose images chooses the threshold;
    this multiplies the number of trainings. `stride` applies to the evaluated images only."""

    rows: list[str] | None = None
    """Variants, each named by its components (safem, acfa, adcr, sskd) joined by +, or baseline for none. By default
    the rows of the paper's Table 2; those with sskd only if teachers are given."""

    more: dict[str, list[str]] = field(default_factory=dict)
    """Further variants: a name and its additional arguments of `danet train`, such as '{"wide": ["--model.name",
    "danet"]}'."""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Every variant is trained once with each of these seeds."""

    adcr_weight: float = 0.1
    """Weight of the contrastive loss (ADCR) in the rows with adcr."""

    sskd_weight: float = 0.05
    """Weight of the distillation loss (SSKD) in the rows with sskd."""

    teacher_small: str | None = None
    """Weights of the teacher for small targets, for the rows with sskd."""

    teacher_medium: str | None = None
    """Weights of the teacher for medium targets."""

    teacher_large: str | None = None
    """Weights of the teacher for large targets."""

    target: str | None = None
    """Class to find; by default the model's first class."""

    criterion: Literal["iou50", "iou30", "iop50", "center3"] = "iou50"
    """When a detection matches an object, see `danet evaluate`; AP50 always uses an IoU of 0.5."""

    class_map: dict[str, str] = field(default_factory=dict)
    """New names for the categories of `val` and `tune`."""

    stride: int = 1
    """Use every N-th image of each video of `val` and `tune`."""

    recall: float = 0.9
    """Recall at which false alarms are counted."""

    resamples: int = 1000
    """Bootstrap resamples for the 95 % intervals."""

    out: str = "runs/ablate"
    """Folder for ablation.md, ablation.json, ablation.png, config.yaml, and a folder per variant and seed (with
    `folds`, inside a folder per fold)."""

    json: str | None = None
    """Also write the content of ablation.json to this file."""

    quiet: bool = False
    """Print only errors and warnings."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise UserError(f"--seeds must be one or more distinct integers from 0 on, got {self.seeds}")
        weights = ["adcr_weight", "sskd_weight"]
        check_values(self, weights, "be positive", lambda value: 0 < value < float("inf"), prefix="--")
        check_values(self, ["folds"], "be 2 or more", lambda value: value >= 2, prefix="--")
        if self.folds is not None:
            if self.tune is not None:
                raise UserError(
                    f"--tune {self.tune}: cannot be used with --folds (tuning images come from the training folds)"
                )
            if self.teachers():
                raise UserError("--folds: cannot be used with teachers, which were trained on evaluated recordings")
        check_values(self, ["recall"], "lie between 0 and 1", lambda value: 0 < value <= 1, prefix="--")
        check_values(self, ["resamples", "stride"], "be at least 1", lambda value: value >= 1, prefix="--")

    def teachers(self) -> dict[str, str]:
        """Weights files of the teachers by size."""
        paths = {size: getattr(self, f"teacher_{size}") for size in ("small", "medium", "large")}
        return {size: path for size, path in paths.items() if path is not None}

    def row_arguments(self) -> dict[str, list[str]]:
        """The additional arguments of ``danet train`` for each row, by the row's name.

        Raises UserError for a row that does not exist or lacks its teachers, and for a name in ``more`` that is not
        usable.
        """
        teachers, names = self.teachers(), self.rows
        if names is None:
            names = [name for name in TABLE_2 if teachers or "sskd" not in name]
        rows = {}
        for name in names:
            parts = [] if name == BASELINE else name.split("+")
            unknown = [part for part in parts if part not in COMPONENTS]
            if unknown or len(set(parts)) != len(parts):
                raise UserError(f"--rows {name}: must be {BASELINE}, or some of {', '.join(COMPONENTS)} joined by +")
            words = ["--model.safem", str("safem" in parts).lower(), "--model.acfa", str("acfa" in parts).lower()]
            words += ["--adcr.weight", str(self.adcr_weight if "adcr" in parts else 0.0)]
            if "sskd" in parts:
                if not teachers:
                    raise UserError(f"--rows {name}: sskd needs teachers; give --teacher_small, _medium and _large")
                # All rows use the same batch size, even if a preset has another one for distillation.
                words += ["--distill.weight", str(self.sskd_weight), "--distill.batch", "null"]
                words += [word for size, path in teachers.items() for word in (f"--distill.{size}", path)]
            rows[name] = words
        for name, words in self.more.items():
            if name in rows or not re.fullmatch(r"\w[\w .+-]*", name):
                raise UserError(f"--more {name!r}: must be a new row name that is a valid folder name")
            rows[name] = words
        if not rows:
            raise UserError("--rows: there is no row to run; name at least one")
        return rows
