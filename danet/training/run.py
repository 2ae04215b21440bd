"""A whole training run from its options: builds the data, the model and the losses, and trains."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from danet.data.coco_dataset import ImageRecord
from danet.data.loader import (
    MINIMUM_SIZE,
    DetectionDataset,
    EpochSampler,
    collate,
    default_workers,
    load_source,
)
from danet.data.scales import Bucket
from danet.training.options import TrainOptions
from danet.training.run_folder import STATE, WEIGHTS, check_run_folder, prepare_run_folder
from danet.utils.errors import UserError

if TYPE_CHECKING:
    import torch

    from danet.training.trainer import Trainer

CALIBRATION_IMAGES = 16
"""Images from which compact weights get their batch-norm statistics."""


@dataclass
class TrainingResult:
    """What ``train`` returns."""

    finished: bool
    """False if a signal stopped the run; it can then be resumed."""
    steps: int
    """Optimizer steps since the start of the run, earlier parts of a resumed run included."""
    seconds: float
    """Time spent in training steps and validation."""
    best: dict[str, float]
    """Epoch and metrics of the best validation; empty without validation."""
    weights: Path
    """The file with the trained weights, once the run is finished."""
    rank: int
    """Rank of this process; only rank 0 writes files."""


def train(options: TrainOptions) -> TrainingResult:
    """Trains a detector, as the command ``danet train`` does.

    Under ``torchrun`` every process calls it, and the processes share the work.

    Raises:
        UserError: no data is given, a file or an option does not fit, or a loss is not finite.
    """
    from danet.utils import distributed

    check_run_folder(options)
    if not options.data:
        raise UserError("--data: no training dataset given")
    with distributed.process_group(options.device) as device:
        trainer, new_classes = build_trainer(options, device)
        if options.resume:
            trainer.resume()
        if distributed.rank() == 0:
            prepare_run_folder(trainer.options)
            if not options.quiet:
                print(_header(trainer, new_classes))
        finished = trainer.run()
        progress = trainer.state.progress
        return TrainingResult(
            finished=finished,
            steps=progress.step,
            seconds=progress.seconds,
            best=progress.best,
            weights=trainer.folder / WEIGHTS,
            rank=distributed.rank(),
        )


def build_trainer(options: TrainOptions, device: "torch.device") -> tuple["Trainer", list[str]]:
    """The trainer of a run, and the classes that the weights it starts from do not know."""
    import torch

    from danet.models import build_model
    from danet.training.start import start_from
    from danet.training.trainer import Trainer
    from danet.utils import distributed

    if options.threads:
        torch.set_num_threads(options.threads)
    if options.workers is None:
        options = dataclasses.replace(options, workers=default_workers(distributed.world_size()))
    if options.distill.files() and options.distill.batch:
        options = dataclasses.replace(options, batch=options.distill.batch)
    dataset, validation = _load_data(options)
    torch.manual_seed(options.seed)
    model = build_model(options.model)
    new_classes: list[str] = []
    if options.weights and not (options.resume and (Path(options.out) / STATE).exists()):
        new_classes = start_from(options.weights, model, lambda: _calibration_images(dataset, options.seed))
    model = model.to(device)
    return Trainer(options, model, dataset, validation, device, options.build_losses(model)), new_classes


def _load_data(options: TrainOptions) -> tuple[DetectionDataset, list[ImageRecord]]:
    """The training and the validation set, restricted to the targets of one scale if that is asked for."""
    bucket = Bucket(options.scale, options.scale_edges, options.target_name) if options.scale else None
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
            raise UserError(f"--val: every image shows a {options.target_name}, none of them {bucket}")
    return dataset, validation


def _calibration_images(dataset: DetectionDataset, seed: int) -> "torch.Tensor":
    """A batch of the first epoch, the same in every process."""
    sampler = EpochSampler(dataset.sizes, dataset.weights, batch=CALIBRATION_IMAGES, epochs=1, seed=seed)
    return collate([dataset[key] for key in next(iter(sampler))]).images


def _header(trainer: "Trainer", new_classes: list[str]) -> str:
    from danet import ops
    from danet.models import summary
    from danet.utils import distributed

    options = trainer.options
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
            *([f"{options.weights} does not know: {', '.join(new_classes)}"] if new_classes else []),
        )
    )
