"""The training loop."""

import math
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from danet.checkpoint import save_weights
from danet.data.coco_dataset import ImageRecord
from danet.data.loader import Batch, DetectionDataset, EpochSampler, make_loader
from danet.evaluation.metrics import quick_metrics
from danet.inference.detector import Detector
from danet.inference.predict import predict
from danet.losses import DetectionLoss
from danet.models import DANet
from danet.models.blocks import channels_last
from danet.training.log import TrainingLog
from danet.training.optimizer import average_weights, build_optimizer, freeze_norms, learning_rate
from danet.training.options import TrainOptions
from danet.training.run_folder import BEST, STATE, WEIGHTS
from danet.training.signals import stop_on_signals
from danet.training.state import TrainingState, fixed_options
from danet.utils import distributed
from danet.utils.errors import UserError
from danet.utils.files import atomic_path

VALIDATION_BATCH = 8
VALIDATION_CHUNK = 64  # images between two looks at whether to stop


class Trainer:
    """One run: a model, its data, and the folder in which everything is kept.

    Args:
        options: of the command.
        model: on ``device``.
        dataset: the training samples.
        validation: images to validate on; empty for none.
        extra_losses: further loss terms by name, on ``device``, see ``TrainOptions.build_losses``. Their parameters
            are trained as well and saved in the state, but not in the weights.
    """

    def __init__(
        self,
        options: TrainOptions,
        model: DANet,
        dataset: DetectionDataset,
        validation: Sequence[ImageRecord],
        device: torch.device,
        extra_losses: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.options = options
        self.dataset = dataset
        self.validation = validation
        self.device = device
        self.folder = Path(options.out)
        self.sampler = EpochSampler(
            dataset.sizes,
            dataset.weights,
            batch=options.batch,
            epochs=options.epochs,
            seed=options.seed,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )
        self.model = channels_last(model).train()
        self.extra_losses = channels_last(nn.ModuleDict(extra_losses or {})).train()
        self.fingerprints: dict[str, str] = {}
        for term in self.extra_losses.values():
            self.fingerprints |= getattr(term, "fingerprints", dict)()
        if options.freeze_norm:
            freeze_norms(self.model)
            freeze_norms(self.extra_losses)
        self.criterion = DetectionLoss(self.model, options.assignment)
        self.autocast = _autocast_dtype(options.amp, device)
        self.state = TrainingState(
            model=self.model,
            average=average_weights(self.model, options.ema) if options.ema else None,
            optimizer=build_optimizer(self.model, options, self.extra_losses),
            extra_losses=self.extra_losses,
            scaler=torch.amp.GradScaler(device.type, enabled=self.autocast == torch.float16),
        )
        self.stop = threading.Event()
        self._saved = time.monotonic()
        self.log: TrainingLog | None = None  # only in the process that writes

    @property
    def weights(self) -> DANet:
        """The model to validate and to keep: the averaged one where there is one."""
        return self.model if self.state.average is None else cast(DANet, self.state.average.module)

    def resume(self) -> None:
        """Takes up the saved state. A run that was cut off before it saved one begins again."""
        path = self.folder / STATE
        if not path.exists():
            return
        self.state.load(path, self._identity())
        self.sampler.start_step = self.state.progress.step
        if self.sampler.start_step > self.sampler.total_steps:
            epochs = self.sampler.start_step / self.sampler.steps_per_epoch
            raise UserError(f"{path}: {epochs:g} epochs are done, more than --epochs {self.options.epochs}")

    def run(self) -> bool:
        """Trains to the end, or until a signal asks to stop: then the state is saved and False returned."""
        self.network: DANet | DistributedDataParallel = self.model
        if distributed.world_size() > 1:
            device_ids = [self.device] if self.device.type == "cuda" else None
            self.network = DistributedDataParallel(self.model, device_ids=device_ids)
        if distributed.rank() != 0:
            with stop_on_signals(self.stop):
                return self._loop()
        self.log = TrainingLog(
            self.folder,
            step=self.state.progress.step,
            finished_epoch_at=self.state.progress.finished_epoch_at,
            total_steps=self.sampler.total_steps,
            steps_per_epoch=self.sampler.steps_per_epoch,
            batch=self.options.batch,
            quiet=self.options.quiet,
            tensorboard=self.options.tensorboard,
        )
        with self.log, stop_on_signals(self.stop):
            self._save()
            return self._loop()

    def _loop(self) -> bool:
        progress = self.state.progress
        if progress.step and progress.step % self.sampler.steps_per_epoch == 0:
            self._end_epoch()  # a state saved between an epoch's last step and the end of its validation
        pinned = self.device.type == "cuda"
        loaded = iter(make_loader(self.dataset, self.sampler, workers=self.options.workers or 0, pin_memory=pinned))
        while progress.step < self.sampler.total_steps:
            if distributed.any_process(self.stop.is_set(), self.device):
                self._save()
                return False
            started = time.monotonic()
            self._step(_next(loaded))
            progress.seconds += time.monotonic() - started
            if progress.step % self.sampler.steps_per_epoch == 0:
                self._end_epoch()
            elif self._save_due():
                self._save()
        if distributed.any_process(self.stop.is_set(), self.device):
            return False
        self._finish()
        return True

    def _step(self, batch: Batch) -> None:
        """One update of the weights. A loss or gradient that is not finite stops the run before it does harm."""
        options, state, step = self.options, self.state, self.state.progress.step
        # Each step has its own random numbers: nothing to save, and no process depends on another's.
        torch.manual_seed(_seed(options.seed, step, distributed.rank()))
        lr = learning_rate(step, self.sampler.total_steps, options)
        for group in state.optimizer.param_groups:
            group["lr"] = lr

        batch = batch.to(self.device)
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            output = self.network(batch.images)
        terms = self.criterion(output, batch.boxes, batch.labels, batch.ignore)
        for term in self.extra_losses.values():
            with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
                terms |= term(output, batch)
        loss = torch.stack(list(terms.values())).sum()
        state.optimizer.zero_grad(set_to_none=True)
        state.scaler.scale(loss).backward()
        distributed.average_gradients(self.extra_losses.parameters())
        state.scaler.unscale_(state.optimizer)
        # Each for itself, so that what the extras learn does not shorten the model's step.
        norm, extras_norm = (
            torch.nn.utils.clip_grad_norm_([*module.parameters()], options.clip or math.inf)
            for module in (self.model, self.extra_losses)
        )

        # Each process has its part of the global sums divided by the mean normaliser: the mean is the whole.
        shared = distributed.mean(torch.stack([loss.detach(), *(term.detach() for term in terms.values())]))
        *values, norm, extras_norm = torch.cat([shared, torch.stack([norm, extras_norm.to(norm.device)])]).tolist()
        losses = dict(zip(["loss", *terms], values, strict=True))
        self._check_finite(losses, norm + extras_norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if state.average is not None:
            state.average.update_parameters(self.model)
        state.progress.step += 1
        if self.log:
            self.log.step(state.progress.step, losses, lr, norm)

    def _check_finite(self, losses: dict[str, float], norm: float) -> None:
        wrong = [f"{name} is {value}" for name, value in losses.items() if not math.isfinite(value)]
        # With float16 the scaler leaves out steps whose gradient overflows, and lowers its scale.
        if not wrong and not self.state.scaler.is_enabled() and not math.isfinite(norm):
            wrong = [f"the gradient's norm is {norm}"]
        if wrong:
            step = self.state.progress.step
            raise UserError(
                f"step {step + 1} (epoch {step // self.sampler.steps_per_epoch + 1}): {', '.join(wrong)}; "
                f"stopped, the last good state is kept in {self.folder / STATE}; try a lower --lr or --clip 10"
            )

    def _end_epoch(self) -> None:
        """Validates if it is time, prints the epoch's line, saves. Does nothing if that was done before."""
        progress, options = self.state.progress, self.options
        if self.log is None or progress.finished_epoch_at == progress.step:
            return
        epoch = progress.step // self.sampler.steps_per_epoch
        figures = None
        if self.validation and (epoch % options.val_every == 0 or progress.step == self.sampler.total_steps):
            self._save()
            started = time.monotonic()
            figures = self._validate()
            progress.seconds += time.monotonic() - started
            if figures is None:  # stopped; the saved state begins with this validation
                return
            # Of equals the later: it has seen more, and scores keep rising when AP no longer does.
            if figures["ap50"] >= progress.best.get("ap50", 0.0):
                progress.best = {"epoch": epoch, **figures}
                self._save_weights(BEST, progress.best)
            self.log.validation(progress.step, figures)
        progress.finished_epoch_at = progress.step
        self.log.end_epoch(epoch, learning_rate(progress.step - 1, self.sampler.total_steps, options), figures)
        self._save()

    def _validate(self) -> dict[str, float] | None:
        """Figures of the averaged weights on the validation images; None if a signal came in between."""
        detector = Detector(self.weights, score_threshold=0.05)
        detections = []
        for start in range(0, len(self.validation), VALIDATION_CHUNK):
            if self.stop.is_set():
                return None
            chunk = self.validation[start : start + VALIDATION_CHUNK]
            detections += predict(detector, chunk, VALIDATION_BATCH, quiet=True)[0]
        return quick_metrics(self.validation, detections, self.dataset.classes)

    def _save_due(self) -> bool:
        options = self.options
        steps = options.save_every_steps
        return bool(steps and self.state.progress.step % steps == 0) or (
            time.monotonic() - self._saved >= options.save_every_minutes * 60
        )

    def _save(self) -> None:
        if self.log:
            self.state.save(self.folder / STATE, self._identity())
        self._saved = time.monotonic()

    def _save_weights(self, name: str, figures: dict[str, float]) -> None:
        save_weights(self.folder / name, self.weights, {"step": self.state.progress.step, "validation": figures})

    def _finish(self) -> None:
        """Leaves the weights to use: the best by validation, or else the last."""
        if self.log is None:
            return
        if self.state.progress.best:
            with atomic_path(self.folder / WEIGHTS) as temporary:
                shutil.copyfile(self.folder / BEST, temporary)
        else:
            self._save_weights(WEIGHTS, {})

    def _identity(self) -> dict:
        return {"data": self.dataset.fingerprint(), **self.fingerprints, **fixed_options(self.options)}


def _next(loaded: Iterator[Batch]) -> Batch:
    try:
        return next(loaded)
    except UserError as error:
        # A loader process hands on its error as the text of a traceback; the message is its last line.
        prefix = f"{UserError.__module__}.{UserError.__qualname__}: "
        raise UserError(str(error).strip().splitlines()[-1].removeprefix(prefix)) from error


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def _autocast_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    if amp == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return {"off": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[amp]
