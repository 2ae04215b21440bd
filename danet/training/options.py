"""Options of a training run: what ``danet train`` reads from presets, YAML files and the command line."""

from dataclasses import dataclass, field
from typing import Literal

from danet.config import Assignment, ModelConfig
from danet.data.loader import DataSource
from danet.data.scales import EDGES, SCALES, Scale, check_scale_edges
from danet.data.transforms import Augmentation
from danet.utils.errors import UserError

PRESETS = (
    *("default", "paper", "demo", "svanstrom", "svanstrom_frames", "sirst"),
    *("teacher_small", "teacher_medium", "teacher_large"),
)
CONFIG = "config.yaml"


@dataclass(frozen=True)
class AdcrOptions:
    """The contrastive loss between targets and distractors (section 3.1.3); the defaults leave it out."""

    weight: float = 0.0
    """Weight of the loss, lambda_1 of eq. 10; 0 leaves it out, the paper has 0.1."""

    temperature: float = 0.1
    """Temperature mu of eq. 7."""

    negatives: int = 3
    """Negative samples for every positive one."""

    levels: int = 4
    """How many levels are compared, from the finest on; at strides 16 and 32 a small target is less than a cell."""

    literal: bool = False
    """Eq. 6 as it is printed: summed over the anchors (and the levels), each of which is its own positive, too."""

    def __post_init__(self) -> None:
        for name in ("weight", "negatives"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"adcr.{name} must be 0 or more, got {getattr(self, name)}")
        if not 1 <= self.levels <= 4:
            raise UserError(f"adcr.levels must be 1 to 4, got {self.levels}")
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"adcr.temperature must be positive, got {self.temperature}")


@dataclass
class DistillOptions:
    """Teachers to learn from (section 3.2), each trained with `--scale`; none by default."""

    small: str | None = None
    """Weights file of the teacher for images with small targets."""

    medium: str | None = None
    """Weights file of the teacher for medium targets."""

    large: str | None = None
    """Weights file of the teacher for large targets."""

    weight: float = 0.05
    """Weight of the distillation loss (lambda_2 of eq. 10)."""

    batch: int | None = None
    """Images a step when there is a teacher; by default `batch`."""

    literal: bool = False
    """The teachers' EKEM and UFP learn as well, as eq. 8 is printed; what is to be learned then loses its rank."""

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise UserError(f"distill.weight must be 0 or more, got {self.weight}")
        if self.batch is not None and self.batch < 1:
            raise UserError(f"distill.batch must be positive, got {self.batch}")

    def files(self) -> dict[Scale, str]:
        """The weights files given, by scale."""
        return {scale: getattr(self, scale) for scale in SCALES if getattr(self, scale) is not None}


@dataclass
class TrainOptions:
    """Options of ``danet train``. The defaults are the preset ``default``."""

    data: list[str | DataSource] = field(default_factory=list)
    """Training datasets: COCO json files, or folders with one. In a YAML file each may also have a
    weight and a class_map."""

    val: str | DataSource | None = None
    """Validation dataset; without one the last weights are the result."""

    out: str = "runs/train"
    """Folder of the run: config.yaml, metrics.csv, validation.csv, last.safetensors (the state to resume
    from), best.safetensors, weights.safetensors (the result)."""

    resume: bool = False
    """Go on with the run in --out, or in RUN_DIR for `--resume RUN_DIR`, exactly where its last state was
    saved, with its own options."""

    overwrite: bool = False
    """Replace a run that is in --out."""

    weights: str | None = None
    """Start from the weights in this file instead of random ones, or from those of the package: shipped. The model must
    be the same but for the names of the classes; those that are new learn from nothing."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The detector."""

    augmentation: Augmentation = field(default_factory=Augmentation)
    """How training images are varied."""

    scale: Scale | None = None
    """Learn and validate targets of this scale alone, as a teacher does: those of others become ignore regions, and
    images on which no target can be magnified to this scale are left out. By default all."""

    scale_edges: tuple[float, float] = EDGES
    """Edges between small, medium and large targets: sqrt(width * height) in pixels of the network's input."""

    target: str | None = None
    """The class that `scale`, `adcr` and `distill` mean by target; by default the model's first."""

    assignment: Assignment = "centre"
    """Which cells learn a box (for the default head): those near its centre, or those that ATSS chooses."""

    adcr: AdcrOptions = field(default_factory=AdcrOptions)
    """The loss that tells targets from distractors (section 3.1.3)."""

    distill: DistillOptions = field(default_factory=DistillOptions)
    """Teachers of one scale each to learn from."""

    epochs: int = 60
    """Passes over the training data."""

    batch: int = 8
    """Images a step, over all processes together."""

    optimizer: Literal["sgd", "adamw"] = "adamw"
    """Optimiser."""

    lr: float = 2e-3
    """Highest learning rate."""

    momentum: float = 0.9
    """Momentum of sgd; beta1 of adamw."""

    nesterov: bool = False
    """Nesterov's momentum, for sgd."""

    weight_decay: float = 0.05
    """Weight decay; an L2 penalty for sgd, decoupled for adamw."""

    decay_norms: bool = False
    """Weight decay also on biases and on the scales of norms."""

    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up."""

    final_lr: float = 0.01
    """Where the cosine ends, as a part of lr."""

    warmup_steps: int = 200
    """Steps over which the learning rate rises from near zero; at most a tenth of all."""

    clip: float = 10.0
    """Largest norm of the gradient, longer ones are shortened; 0 does not clip."""

    ema: float = 0.998
    """Decay of the moving average of the weights that is validated and kept; 0 keeps the weights themselves."""

    amp: Literal["auto", "off", "bfloat16", "float16"] = "auto"
    """Type of the convolutions; auto: bfloat16 (float16 on older GPUs) on CUDA, float32 on the CPU."""

    freeze_norm: bool = False
    """Batch norms keep their statistics, so that images of a batch do not depend on each other."""

    seed: int = 0
    """Of the weights, the order of the images and their augmentation."""

    device: str = "auto"
    """cpu, cuda, cuda:N, or auto: CUDA where there is one."""

    threads: int | None = None
    """CPU threads of torch; by default torch's choice."""

    workers: int | None = None
    """Processes that load images; 0 loads in the training process, the default under 4 cores. The data are the same."""

    cache_mb: int = 1024
    """Decoded images kept in memory, in MiB over all loading processes."""

    val_every: int = 1
    """Epochs between validations; the last epoch always has one."""

    save_every_minutes: float = 5.0
    """Minutes between saved states; every epoch ends with one as well."""

    save_every_steps: int = 0
    """Steps between saved states, besides those; 0 is off."""

    tensorboard: bool = False
    """Write TensorBoard files into the run's folder."""

    json: str | None = None
    """Write the final figures to this JSON file."""

    quiet: bool = False
    """Print nothing but errors."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "lr", "val_every"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("weight_decay", "warmup_steps", "clip", "cache_mb", "save_every_minutes", "save_every_steps"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed must lie between 0 and 2^63, got {self.seed}")
        for name in ("momentum", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 0 and less than 1, got {getattr(self, name)}")
        if not 0 <= self.final_lr <= 1:
            raise UserError(f"final_lr must lie between 0 and 1, got {self.final_lr}")
        check_scale_edges(self.scale_edges)
        if self.target is not None and self.target not in self.model.classes:
            raise UserError(f"target {self.target}: not a class of the model ({', '.join(self.model.classes)})")
        if self.assignment != "centre" and self.model.head != "default":
            raise UserError(f"assignment {self.assignment}: is for the default head, model.head is {self.model.head}")
        if self.nesterov and self.momentum == 0:
            raise UserError("nesterov needs a momentum")
        if self.threads is not None and self.threads < 1:
            raise UserError(f"threads must be positive, got {self.threads}")
        if self.workers is not None and self.workers < 0:
            raise UserError(f"workers must be 0 or more, got {self.workers}")
