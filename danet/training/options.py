"""Options of a training run, which ``danet train`` reads from presets, YAML files and the command line.

Importing this module loads neither torch nor OpenCV, so that ``danet train`` shows its help and reports an invalid
option without delay.
"""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from danet.config import Assignment, ModelConfig
from danet.data.data_options import EDGES, SCALES, Augmentation, DataSource, Scale, check_scale_edges
from danet.utils.errors import UserError, check_values

if TYPE_CHECKING:
    from torch import nn

    from danet.distill import Distiller
    from danet.losses import ADCR
    from danet.models import DANet

PRESETS = (
    *("default", "paper", "demo", "svanstrom", "svanstrom_frames", "sirst"),
    *("teacher_small", "teacher_medium", "teacher_large"),
)
"""Names of the files in danet/presets that ``danet train --preset`` offers."""
MAY_CHANGE_ON_RESUME = {
    *("data", "val", "out", "resume", "overwrite", "weights", "epochs", "device", "threads", "workers", "cache_mb"),
    *("val_every", "save_every_minutes", "save_every_steps", "tensorboard", "plots", "quiet", "json"),
    *("patience", "max_minutes"),
    *("distill.small", "distill.medium", "distill.large"),
}
"""Options that may differ from those of the run that is resumed. They do not affect the training steps (``threads``
only their rounding), or may be raised (``epochs``); for ``data`` and the teachers the content is compared instead."""


def _is_positive(value: float) -> bool:
    return 0 < value < math.inf


def _is_not_negative(value: float) -> bool:
    return 0 <= value < math.inf


@dataclass(frozen=True)
class AdcrOptions:
    """Options of ADCR, the contrastive loss between targets and distractors (section 3.1.3 of the paper).

    Example:
        >>> TrainOptions(adcr=AdcrOptions(weight=0.1)).adcr.temperature
        0.1
    """

    weight: float = 0.0
    """Weight of the ADCR loss, lambda_1 of eq. 10. 0 (default) disables it; the paper uses 0.1."""

    temperature: float = 0.1
    """Temperature mu of eq. 7."""

    negatives: int = 3
    """Negative samples per positive sample."""

    levels: int = 4
    """Number of feature levels to compare, 1 to 4, starting with the finest (stride 4). At strides 16 and 32 a small
    target is smaller than one cell."""

    literal: bool = False
    """Use eq. 6 as printed: sum over anchors and levels instead of the mean, and count each anchor as its own
    positive."""

    def __post_init__(self) -> None:
        check_values(self, ["weight", "negatives"], "be 0 or more", _is_not_negative, prefix="adcr.")
        check_values(self, ["levels"], "be 1 to 4", lambda value: 1 <= value <= 4, prefix="adcr.")
        check_values(self, ["temperature"], "be positive", _is_positive, prefix="adcr.")

    def build(self, model: "DANet", options: "TrainOptions") -> "ADCR | None":
        """The loss term for a model, or None if ``weight`` is 0."""
        if not self.weight:
            return None
        from danet.losses import ADCR

        return ADCR(
            model.widths[: self.levels],
            model.backbone.strides[: self.levels],
            target=options.target_label,
            weight=self.weight,
            temperature=self.temperature,
            negatives=self.negatives,
            literal=self.literal,
        )


@dataclass
class DistillOptions:
    """Options of SSKD, distillation from teachers that were trained with `--scale` (section 3.2 of the paper).

    Example:
        >>> DistillOptions(small="small.safetensors").files()
        {'small': 'small.safetensors'}
    """

    small: str | None = None
    """Weights file of the teacher for images with small targets. Default: no such teacher."""

    medium: str | None = None
    """Weights file of the teacher for images with medium targets. Default: no such teacher."""

    large: str | None = None
    """Weights file of the teacher for images with large targets. Default: no such teacher."""

    weight: float = 0.05
    """Weight of the distillation loss, lambda_2 of eq. 10."""

    batch: int | None = None
    """Global batch size while distilling. Default: the value of `batch`."""

    literal: bool = False
    """Train EKEM and UFP of the teachers' branch as well, as eq. 8 is printed. The rank of the distillation target then
    drops (see docs/paper.md)."""

    def __post_init__(self) -> None:
        check_values(self, ["weight"], "be 0 or more", _is_not_negative, prefix="distill.")
        check_values(self, ["batch"], "be positive", _is_positive, prefix="distill.")

    def files(self) -> dict[Scale, str]:
        """The given weights files by scale."""
        return {scale: getattr(self, scale) for scale in SCALES if getattr(self, scale) is not None}

    def build(self, model: "DANet", options: "TrainOptions") -> "Distiller | None":
        """The loss term for a model, with the teachers on the model's device, or None if no teacher is given."""
        if not self.files():
            return None
        from danet.distill import Distiller, load_teacher

        device = next(model.parameters()).device
        student, target = options.model, options.target_label
        teachers = {
            str(scale): load_teacher(path, student=student, device=device) for scale, path in self.files().items()
        }
        return Distiller(
            model.widths, teachers, weight=self.weight, edges=options.scale_edges, target=target, literal=self.literal
        )


@dataclass
class TrainOptions:
    """Options of ``danet train``. The defaults are the preset ``default``.

    Raises UserError if a value is out of range or two options do not fit together.

    Example:
        >>> TrainOptions(data=["train.json"], lr=1e-3, target="drone").target_label
        0
    """

    data: list[str | DataSource] = field(default_factory=list)
    """Training datasets: COCO json files, or folders that contain one. In a YAML file each dataset may also have a
    weight and a class_map."""

    val: str | DataSource | None = None
    """Validation dataset, on which the best weights are chosen. Default: none, and the last weights are the result."""

    out: str = "runs/train"
    """Folder of the run: config.yaml, metrics.csv, validation.csv, last.safetensors (the state to resume from),
    best.safetensors (best validation so far), weights.safetensors (the result), and pictures (see `plots`)."""

    resume: bool = False
    """Resume the run in --out, or in RUN_DIR with `--resume RUN_DIR`, from its last saved state and with its own
    options. The result is the same as without the interruption."""

    overwrite: bool = False
    """Replace the run in --out if there is one, and other files with the names of its files."""

    weights: str | None = None
    """Weights file to start from, or `shipped` for the weights of the package. The model options must be the same
    with two exceptions. Classes of the same name keep their weights, new ones start from random weights. Input channels
    that `model.lags` and `model.local_contrast` add start from zero. Default: random weights."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The detector."""

    augmentation: Augmentation = field(default_factory=Augmentation)
    """Random changes of the training images."""

    scale: Scale | None = None
    """Train a teacher of this scale: targets of other scales become ignore regions, in training and in validation, and
    images with targets of which none can be magnified to this scale are left out. Default: all scales."""

    scale_edges: tuple[float, float] = EDGES
    """Boundaries between small, medium and large targets: sqrt(width * height) in pixels of the network's input."""

    target: str | None = None
    """The target class of `scale`, `adcr` and `distill`. Default: the first class of the model."""

    assignment: Assignment = "centre"
    """Label assignment of the default head: cells near the centre of a box (centre), or ATSS (atss)."""

    adcr: AdcrOptions = field(default_factory=AdcrOptions)
    """Contrastive loss between targets and distractors (section 3.1.3)."""

    distill: DistillOptions = field(default_factory=DistillOptions)
    """Distillation from one teacher per scale (section 3.2)."""

    epochs: int = 60
    """Passes over the training data."""

    patience: int = 0
    """Stop after this number of epochs without a better AP50 on `val`. 0 trains all epochs."""

    max_minutes: float | None = None
    """Stop after this time of training and validation, over all parts of a resumed run; the weights are then validated
    once more. The learning rate does not adapt to it. Default: no limit."""

    batch: int = 8
    """Global batch size (images per optimizer step over all processes)."""

    optimizer: Literal["sgd", "adamw"] = "adamw"
    """Optimizer."""

    lr: float = 2e-3
    """Peak learning rate, reached after the warm-up."""

    momentum: float = 0.9
    """Momentum of sgd; beta1 of adamw."""

    nesterov: bool = False
    """Use Nesterov momentum (sgd only)."""

    weight_decay: float = 0.05
    """Weight decay: an L2 penalty for sgd, decoupled for adamw."""

    decay_norms: bool = False
    """Apply weight decay to biases and to the scales of normalization layers as well."""

    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate schedule after the warm-up."""

    final_lr: float = 0.01
    """Learning rate at the end of the cosine schedule, as a fraction of lr."""

    warmup_steps: int = 200
    """Steps of linear learning rate warm-up; limited to a tenth of all steps."""

    clip: float = 10.0
    """Maximum gradient norm; larger gradients are scaled down to it. 0 disables clipping."""

    ema: float = 0.998
    """Decay of the exponential moving average of the weights, which is validated and saved. 0 uses the weights
    themselves."""

    amp: Literal["auto", "off", "bfloat16", "float16"] = "auto"
    """Dtype of automatic mixed precision. auto: bfloat16 on CUDA (float16 on GPUs without it); on CPUs with
    bfloat16 instructions (AMX or AVX512_BF16), bfloat16 if a measured step is at least 1.2 times as fast; off on other
    CPUs."""

    freeze_norm: bool = False
    """Keep the running statistics of batch normalization fixed, so that images of a batch do not affect each other."""

    freeze: list[str] = field(default_factory=list)
    """Parts of the network that are not trained, such as backbone, neck, backbone.stem or backbone.stages.0; their
    batch norms keep their statistics. Useful with `weights`. Default: everything is trained."""

    seed: int = 0
    """Seed of the initial weights, the order of the images and the augmentation."""

    device: str = "auto"
    """cpu, cuda, cuda:N, or auto: CUDA if available."""

    threads: int | None = None
    """CPU threads of torch; by default OMP_NUM_THREADS, which torchrun sets, or one for each core that the process may
    use and that other programs leave."""

    workers: int | None = None
    """Processes that load images; 0 loads them in the training process. Default: chosen by the number of CPU cores, 0
    below 4 cores. The number does not affect the results."""

    cache_mb: int = 1024
    """Memory for decoded images, in MiB over all loader processes."""

    val_every: int = 1
    """Epochs between validations; the last epoch is always validated."""

    save_every_minutes: float = 5.0
    """Minutes between saves of the state; it is also saved after every epoch."""

    save_every_steps: int = 0
    """Steps between additional saves of the state. 0 disables them."""

    tensorboard: bool = False
    """Write TensorBoard files into the folder of the run."""

    json: str | None = None
    """Write the number of steps, the training time and the best metrics to this JSON file."""

    plots: bool = True
    """Write pictures into the folder of the run: augmented training images with their boxes, statistics of the labels,
    and curves of losses and metrics."""

    quiet: bool = False
    """Print only errors and warnings."""

    def __post_init__(self) -> None:
        given: object = self.data
        if not isinstance(given, list | tuple):  # one dataset
            self.data = [self.data]  # type: ignore[list-item]
        positive = ["epochs", "batch", "lr", "val_every", "threads", "max_minutes"]
        check_values(self, positive, "be positive", _is_positive)
        not_negative = ["weight_decay", "warmup_steps", "clip", "cache_mb", "workers", "patience"]
        not_negative += ["save_every_minutes", "save_every_steps"]
        check_values(self, not_negative, "be 0 or more", lambda value: value >= 0)
        check_values(self, ["seed"], "lie between 0 and 2^63", lambda value: 0 <= value < 2**63)
        check_values(self, ["momentum", "ema"], "be at least 0 and less than 1", lambda value: 0 <= value < 1)
        check_values(self, ["final_lr"], "lie between 0 and 1", lambda value: 0 <= value <= 1)
        check_scale_edges(self.scale_edges)
        if self.target is not None and self.target not in self.model.classes:
            raise UserError(f"target {self.target}: not a class of the model ({', '.join(self.model.classes)})")
        if self.assignment != "centre" and self.model.head != "default":
            raise UserError(f"assignment {self.assignment}: needs model.head default, got {self.model.head}")
        if self.nesterov and self.momentum == 0:
            raise UserError("nesterov: needs a momentum above 0, got 0; give --momentum")
        if self.patience and self.val is None:
            raise UserError(f"patience {self.patience}: needs validation images; give --val")

    @property
    def target_name(self) -> str:
        """The target class of `scale`, `adcr` and `distill`."""
        return self.target or next(iter(self.model.classes), "")

    @property
    def target_label(self) -> int:
        """Index of the target class in the model's classes."""
        return self.model.classes.index(self.target_name)

    def build_losses(self, model: "DANet") -> dict[str, "nn.Module"]:
        """The enabled loss terms other than detection, by name, on the model's device.

        Every term is an ``nn.Module`` that follows ``danet.losses.LossTerm``. A term that was built from files also has
        a method ``fingerprints() -> dict[str, str]``: a run resumes only if these values are unchanged.
        """
        terms = {"adcr": self.adcr.build(model, self), "sskd": self.distill.build(model, self)}
        device = next(model.parameters()).device
        return {name: term.to(device) for name, term in terms.items() if term is not None}
