"""Runs a training from its options: builds data, model and losses, and trains."""

import contextlib
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from danet import ops
from danet.data.coco_dataset import ImageRecord
from danet.data.epoch_sampler import EpochSampler
from danet.data.loader import MINIMUM_SIZE, DetectionDataset, collate, default_workers, load_source
from danet.data.scales import SizeRange
from danet.data.temporal import MissingFrames
from danet.models import DANet, build_model, summary
from danet.training.mixed_precision import choose_amp, may_be_faster
from danet.training.options import TrainOptions
from danet.training.run_folder import (
    LABELS,
    SAMPLES,
    STATE,
    WEIGHTS,
    check_run_folder,
    lock_run_folder,
    prepare_run_folder,
    saved_amp,
)
from danet.training.start import start_from
from danet.training.trainer import Trainer
from danet.utils import distributed
from danet.utils.errors import UserError
from danet.utils.typed_options import paths_as_texts

CALIBRATION_IMAGES = 16
"""Training images from which the batch-norm statistics of compact weights are estimated."""
MIN_LEARNED_AP50 = 0.01
"""A best AP50 below this means that the model has learned nothing."""


@dataclass
class TrainingResult:
    """The outcome of ``train``.

    Example:
        >>> result = TrainingResult(True, 100, 60.0, {"epoch": 3, "ap50": 0.9}, Path("runs/a/weights.safetensors"), 0)
        >>> result.best["ap50"]
        0.9
    """

    finished: bool
    """False if a signal stopped the run, which can then be resumed."""
    steps: int
    """Optimizer steps since the start of the run, before and after resuming."""
    seconds: float
    """Time spent on training steps and validation."""
    best: dict[str, float]
    """Epoch and metrics of the best validation; empty without validation."""
    weights: Path
    """File of the trained weights, which a finished run has written."""
    rank: int
    """Rank of this process; only rank 0 writes files."""
    end_reason: str = ""
    """Why a finished run ended before its last epoch: early stopping or a time limit; empty after the last epoch."""
    warnings: list[str] = field(default_factory=list)
    """What makes the result doubtful, such as images without earlier frames, or a model that has learned nothing."""


def train(options: TrainOptions) -> TrainingResult:
    """Trains a detector as the command ``danet train`` does, and writes the files of the run into ``options.out``.

    Under ``torchrun``, every process calls this function. Ctrl-C, SIGTERM and SIGHUP end the run after the current
    step.

    Args:
        options: options of the run; ``data`` is required.

    Raises:
        UserError: a file cannot be read or written, ``options.out`` contains a run that is neither resumed nor
            overwritten, or into which another training writes, the options do not fit the data, the weights or the
            resumed run, or a loss is not finite.
        FaultError: the disk is full, the folder was removed, or a loader process was killed.

    Example:
        >>> import json, tempfile, cv2, numpy
        >>> from danet.config import ModelConfig
        >>> folder = tempfile.TemporaryDirectory()
        >>> image = cv2.imwrite(f"{folder.name}/1.png", numpy.full((64, 64), 90, numpy.uint8))
        >>> coco = {
        ...     "images": [{"id": 1, "file_name": "1.png", "width": 64, "height": 64}],
        ...     "categories": [{"id": 1, "name": "drone"}],
        ...     "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [20, 20, 12, 9]}],
        ... }
        >>> size = Path(folder.name, "train.json").write_text(json.dumps(coco))
        >>> options = TrainOptions([f"{folder.name}/train.json"], out=f"{folder.name}/run", epochs=1, quiet=True)
        >>> options.model = ModelConfig(name="danet_nano")
        >>> train(options).steps
        1
    """
    options = paths_as_texts(options)
    check_run_folder(options)
    with distributed.process_group(options.device) as device:
        trainer, new_classes = build_trainer(options, device)
        with contextlib.ExitStack() as stack:
            lock = stack.enter_context(lock_run_folder(options.out)) if distributed.rank() == 0 else None
            if options.resume:
                trainer.resume()
            if lock is not None:
                check_run_folder(options)  # again: a run may have been written before the folder was locked
                prepare_run_folder(trainer.options)
                if not options.quiet:
                    print(_header(trainer, new_classes))
            finished = trainer.run(lock)
        progress, weights = trainer.state.progress, trainer.folder / WEIGHTS
        return TrainingResult(
            finished,
            progress.step,
            progress.seconds,
            progress.best,
            weights,
            distributed.rank(),
            end_reason=trainer.end_reason,
            warnings=_warnings(trainer) if finished else [],
        )


def _warnings(trainer: Trainer) -> list[str]:
    """Warnings about the data and the result of a finished run."""
    best, steps = trainer.state.progress.best, trainer.state.progress.step
    warnings = _data_warnings(trainer)
    if not best or best["ap50"] >= MIN_LEARNED_AP50:
        return warnings
    pictures = f"look at the boxes in {trainer.folder / SAMPLES} and at {trainer.folder / LABELS}"
    return [
        *warnings,
        f"the model has learned nothing: its best AP50 is {best['ap50']:.3f} after {steps} steps; "
        f"{pictures if trainer.options.plots else 'check the labels'}, train longer (--epochs), or lower --lr",
    ]


def _data_warnings(trainer: Trainer) -> list[str]:
    """Warnings about images that lack earlier frames."""
    validation = MissingFrames((record.past for record in trainer.validation.records), trainer.options.model.lags)
    lines = [trainer.dataset.missing_past.line("training images"), validation.line("validation images")]
    return [f"model.lags: {line}" for line in lines if line]


def build_trainer(options: TrainOptions, device: torch.device) -> tuple[Trainer, list[str]]:
    """Builds the trainer of a run.

    Returns:
        The trainer, and the classes that ``options.weights`` do not have.
    """
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
    if options.amp == "auto" and options.resume:
        # A resumed run must continue exactly, also one that was started on another machine.
        options = dataclasses.replace(options, amp=saved_amp(options.out))
    elif options.amp == "auto" and device.type == "cpu":
        options = _choose_amp(options, model)
    return Trainer(options, model, dataset, validation, device, options.build_losses(model)), new_classes


def _choose_amp(options: TrainOptions, model: DANet) -> TrainOptions:
    """The options with ``amp`` set to "bfloat16" or "off", as measured training steps show.

    If one process has no instructions for bfloat16, the options stay as they are: "auto" is then "off". config.yaml in
    the run folder stores ``amp``, so that a resumed run takes it from there.
    """
    cpu = torch.device("cpu")
    if distributed.any_process(not may_be_faster(), cpu):
        return options
    speak = not options.quiet and distributed.rank() == 0
    if speak:
        print("measuring training steps with and without mixed precision")
    batch = max(1, options.batch // distributed.world_size())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, options.model.network_channels, *_image_size(options), generator=generator)
    amp, reason = choose_amp(model, images)
    if speak:
        print(f"mixed precision {amp}: {reason}")
    return dataclasses.replace(options, amp=amp)


def _load_data(options: TrainOptions) -> tuple[DetectionDataset, list[ImageRecord]]:
    """Loads the training set and the validation images, restricted to targets of ``options.scale`` if it is given."""
    size_range = SizeRange(options.scale, options.scale_edges, options.target_name) if options.scale else None
    dataset = DetectionDataset(
        options.data,
        options.model.classes,
        channels=options.model.input_channels,
        lags=options.model.lags,
        local_contrast=options.model.local_contrast,
        augmentation=options.augmentation,
        seed=options.seed,
        cache_bytes=options.cache_mb * 2**20 // max(1, options.workers or 0),
        size_range=size_range,
    )
    for lag in dataset.missing_past.unavailable:
        raise UserError(
            f"model.lags: no training image has an earlier frame for lag {lag:g} s (field 'past'); import the videos "
            f"with --lags {lag:g}, or train without this lag"
        )
    validation = load_source(options.val, "val") if options.val else []
    if size_range is not None:
        validation = [size_range.ignore_other_scales(record) for record in validation if size_range.accepts(record)]
        if options.val and not validation:
            problem = f"no image has a {options.target_name} of scale {size_range}"
            raise UserError(f"--val: {problem}; choose another scale or other edges")
    return dataset, validation


def _calibration_images(dataset: DetectionDataset, seed: int) -> Tensor:
    """Images of the first epoch, the same in every process."""
    sampler = EpochSampler(dataset.sizes, dataset.weights, batch=CALIBRATION_IMAGES, epochs=1, seed=seed)
    return collate([dataset[key] for key in next(iter(sampler))]).images


def _image_size(options: TrainOptions) -> tuple[int, int]:
    """Height and width of the training images; without crops, those of the usual infrared video."""
    height, width = options.augmentation.crop or (256, 320)
    return max(height, MINIMUM_SIZE), max(width, MINIMUM_SIZE)  # smaller crops are padded


def _header(trainer: Trainer, new_classes: list[str]) -> str:
    options, dataset = trainer.options, trainer.dataset
    processes = f"{distributed.world_size()} processes, " if distributed.world_size() > 1 else ""
    scale = f" for targets of scale {dataset.size_range}" if dataset.size_range else ""
    teachers = "".join(f", teacher of {scale} targets {path}" for scale, path in options.distill.files().items())
    lines = [
        f"{ops.describe()}, {trainer.device}, {processes}{options.workers} loader processes",
        summary.describe(trainer.model_to_save, _image_size(options)),
        f"{len(dataset)} training and {len(trainer.validation.records)} validation images{scale}, "
        f"classes {', '.join(options.model.classes)}; {options.epochs} epochs of {trainer.sampler.steps_per_epoch} "
        f"steps, batch size {options.batch}; run folder {options.out}{teachers}",
    ]
    if new_classes:
        lines.append(f"{options.weights} has no class {', '.join(new_classes)}: its scores start from random weights")
    lines += [f"warning: {line}" for line in _data_warnings(trainer)]
    return "\n".join(lines)
