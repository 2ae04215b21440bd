"""``python -m danet.train``: trains a detector, and goes on exactly where a run was cut off."""

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from danet import cli
from danet.config import Assignment, ModelConfig
from danet.data.loader import (
    MINIMUM_SIZE,
    DataSource,
    DetectionDataset,
    EpochSampler,
    collate,
    default_workers,
    load_source,
)
from danet.data.scales import EDGES, SCALES, Bucket, Scale, check_scale_edges
from danet.data.transforms import Augmentation
from danet.errors import UserError
from danet.files import check_folder, write_json, write_text

if TYPE_CHECKING:
    import torch
    from torch import nn

    from danet.models import DANet
    from danet.training.trainer import Trainer

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


def train(options: TrainOptions) -> int:
    """Trains a detector on COCO datasets.

    Ctrl-C saves the state and exits with code 130; `--resume RUN_DIR` goes on, also after a kill.
    """
    from danet.training import distributed

    _check_folder(options)
    if not options.data:
        raise UserError("--data: no training dataset given")
    with distributed.process_group(options.device) as device:
        return _train(options, device)


def _train(options: TrainOptions, device: "torch.device") -> int:
    import torch

    from danet.models import build_model
    from danet.training import distributed
    from danet.training.start import start_from
    from danet.training.trainer import STATE, WEIGHTS, Trainer

    if options.threads:
        torch.set_num_threads(options.threads)
    if options.workers is None:
        options = dataclasses.replace(options, workers=default_workers(distributed.world_size()))
    if options.distill.files() and options.distill.batch:
        options = dataclasses.replace(options, batch=options.distill.batch)
    target = options.target or next(iter(options.model.classes), "")
    bucket = Bucket(options.scale, options.scale_edges, target) if options.scale else None
    dataset = DetectionDataset(
        options.data,
        options.model.classes,
        channels=options.model.input_channels,
        augmentation=options.augmentation,
        seed=options.seed,
        cache_bytes=options.cache_mb * 2**20 // max(1, options.workers or 0),
        bucket=bucket,
    )
    validation = load_source(options.val) if options.val else []
    if bucket is not None:
        validation = [bucket.restrict(record) for record in validation if bucket.takes(record)]
        if options.val and not validation:
            raise UserError(f"--val: every image shows a {target}, none of them {bucket}")
    torch.manual_seed(options.seed)
    model = build_model(options.model)
    unknown: list[str] = []
    if options.weights and not (options.resume and (Path(options.out) / STATE).exists()):
        unknown = start_from(options.weights, model, lambda: _images(dataset, options.seed))
    model = model.to(device)
    extras, fingerprints = _further_losses(options, model, target, device)
    trainer = Trainer(options, model, dataset, validation, device, extras, fingerprints)
    if options.resume:
        trainer.resume()
    if distributed.rank() == 0:
        _prepare_folder(options)
        if not options.quiet:
            print(_header(options, trainer, unknown))
    finished = trainer.run()
    if distributed.rank() == 0:
        progress = trainer.state.progress
        if not finished:
            go_on = f"danet train --resume {options.out}"
            print(f"stopped after step {progress.step}; go on with: {go_on}", file=sys.stderr)
        elif not options.quiet:
            best = progress.best
            shown = f": epoch {best['epoch']}, AP50 {best['ap50']:.3f}, F1 {best['f1']:.3f}" if best else ""
            print(f"done in {progress.seconds / 60:.1f} minutes{shown}; weights: {Path(options.out) / WEIGHTS}")
        if finished and options.json:
            write_json(options.json, {"steps": progress.step, "seconds": progress.seconds, "best": progress.best})
    return 0 if finished else 130


def _further_losses(
    options: TrainOptions, model: "DANet", target: str, device: "torch.device"
) -> tuple[dict[str, "nn.Module"], dict[str, str]]:
    """ADCR and SSKD where they are asked for, and what identifies the files that they were made from."""
    label = options.model.classes.index(target)
    extras: dict[str, nn.Module] = {}
    fingerprints: dict[str, str] = {}
    if options.adcr.weight:
        from danet.losses.adcr import build_adcr

        extras["adcr"] = build_adcr(model, options.adcr, label).to(device)
    teachers = options.distill.files()
    if teachers:
        from danet.distill import Distiller, Teacher, load_teacher

        loaded: dict[str, Teacher] = {
            scale: load_teacher(path, channels=options.model.input_channels, device=device)
            for scale, path in teachers.items()
        }
        extras["sskd"] = Distiller(
            model.widths,
            loaded,
            weight=options.distill.weight,
            edges=options.scale_edges,
            target=label,
            literal=options.distill.literal,
        ).to(device)
        fingerprints = {f"distill.{scale} with the content": each.fingerprint() for scale, each in loaded.items()}
    return extras, fingerprints


def _images(dataset: DetectionDataset, seed: int, count: int = 16) -> "torch.Tensor":
    """Images of different recordings, as they are trained on; the same in every process."""
    first = next(iter(EpochSampler(dataset.sizes, dataset.weights, batch=count, epochs=1, seed=seed)))
    return collate([dataset[key] for key in first]).images


def _check_folder(options: TrainOptions) -> None:
    check_folder(options.out)
    config = Path(options.out) / CONFIG
    if options.resume and not config.is_file():
        raise UserError(f"{options.out}: no run to resume ({CONFIG} is missing)")
    if config.exists() and not options.resume and not options.overwrite:
        raise UserError(f"{options.out}: holds a run; give --resume, --overwrite, or another --out")


def _prepare_folder(options: TrainOptions) -> None:
    """Leaves nothing of an earlier run that this one does not go on from, and saves the options."""
    from danet.training.trainer import BEST, STATE, WEIGHTS

    folder = Path(options.out)
    if not options.resume:
        for name in (STATE, BEST, WEIGHTS):
            (folder / name).unlink(missing_ok=True)
    for leftover in folder.glob(f".{Path(STATE).stem}-*"):  # of a process killed while it saved
        leftover.unlink(missing_ok=True)
    # What reads the file back decides for itself whether it may go on or replace something.
    write_text(folder / CONFIG, cli.dump(dataclasses.replace(options, resume=False, overwrite=False)))


def _header(options: TrainOptions, trainer: "Trainer", unknown: list[str]) -> str:
    from danet import ops
    from danet.models import summary
    from danet.training import distributed

    processes = distributed.world_size()
    count = f"{processes} processes, " if processes > 1 else ""
    taught = "".join(f", {scale} targets taught by {path}" for scale, path in options.distill.files().items())
    learned = f" with {trainer.dataset.bucket} targets" if trainer.dataset.bucket else ""
    height, width = options.augmentation.crop or (256, 320)
    size = max(height, MINIMUM_SIZE), max(width, MINIMUM_SIZE)  # smaller crops are padded
    return "\n".join(
        (
            f"{ops.describe()}, {trainer.device}, {count}{options.workers} loader processes",
            summary.describe(trainer.weights, size),
            f"{len(trainer.dataset)} training images{learned}, {len(trainer.validation)} to validate, classes "
            f"{', '.join(options.model.classes)}; {trainer.sampler.steps_per_epoch} steps of {options.batch} an epoch, "
            f"{options.epochs} epochs, in {options.out}{taught}",
            *([f"{options.weights} does not know: {', '.join(unknown)}"] if unknown else []),
        )
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    return cli.run(train, TrainOptions, prog="danet train", presets=PRESETS, argv=_expand_resume(argv))


def _expand_resume(argv: list[str]) -> list[str]:
    """Rewrites ``--resume [RUN_DIR]`` so that the run's own options are read first and typed ones then override."""
    pairs = (token.split("=", 1) if token.startswith(("--resume=", "--out=")) else [token] for token in argv)
    argv = list(itertools.chain.from_iterable(pairs))
    if "--resume" not in argv:
        return argv
    at = argv.index("--resume")
    value = argv[at + 1] if at + 1 < len(argv) and not argv[at + 1].startswith("-") else None
    rest = argv[:at] + argv[at + (1 if value is None else 2) :]
    if value is not None and value.lower() == "false":
        return rest
    if value is None or value.lower() == "true":
        given = [value for option, value in itertools.pairwise(rest) if option == "--out"]
        folder = given[-1] if given else TrainOptions.out
    else:
        folder = value
        rest += ["--out", folder]
    config = Path(folder) / CONFIG
    saved = ["--config", str(config)] if config.is_file() else []
    return [*saved, *rest, "--resume=true"]


if __name__ == "__main__":
    raise SystemExit(main())
