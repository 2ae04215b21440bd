"""``python -m danet.train``: trains a detector, and goes on exactly where a run was cut off."""

from danet.utils.cli import prepare_opencv

if __name__ == "__main__":
    prepare_opencv()  # before the imports below, which need OpenCV

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from danet.data.loader import (
    MINIMUM_SIZE,
    DetectionDataset,
    EpochSampler,
    collate,
    default_workers,
    load_source,
)
from danet.data.scales import Bucket
from danet.training.options import CONFIG, PRESETS, TrainOptions
from danet.utils import cli
from danet.utils.errors import UserError
from danet.utils.files import check_folder, write_json, write_text

if TYPE_CHECKING:
    import torch
    from torch import nn

    from danet.models import DANet
    from danet.training.trainer import Trainer


def train(options: TrainOptions) -> int:
    """Trains a detector on COCO datasets.

    Ctrl-C saves the state and exits with code 130; `--resume RUN_DIR` goes on, also after a kill.
    """
    from danet.utils import distributed

    _check_folder(options)
    if not options.data:
        raise UserError("--data: no training dataset given")
    with distributed.process_group(options.device) as device:
        return _train(options, device)


def _train(options: TrainOptions, device: "torch.device") -> int:
    import torch

    from danet.models import build_model
    from danet.training.start import start_from
    from danet.training.trainer import STATE, WEIGHTS, Trainer
    from danet.utils import distributed

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
    from danet.utils import distributed

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
