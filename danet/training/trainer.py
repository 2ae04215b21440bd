"""The training loop: steps, validation, and saving."""

import contextlib
import functools
import math
import shutil
import signal
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
from danet.data.image_domain import ImageDomain
from danet.data.loader import Batch, DetectionDataset, EpochSampler, make_loader
from danet.evaluation.metrics import quick_metrics
from danet.inference.detector import Detector
from danet.inference.predict import predict
from danet.losses import DetectionLoss
from danet.models import DANet
from danet.training.log import TrainingLog
from danet.training.optimizer import average_weights, build_optimizer, freeze_norms, learning_rate
from danet.training.options import TrainOptions
from danet.training.run_folder import BEST, STATE, WEIGHTS
from danet.training.state import TrainingState, fixed_options
from danet.utils import distributed
from danet.utils.errors import UserError
from danet.utils.files import atomic_path
from danet.utils.memory_format import channels_last

VALIDATION_BATCH = 8
"""Images per batch in validation."""
VALIDATION_CHUNK = 64
"""Validation images between two checks for a stop signal."""
VALIDATION_SCORE_THRESHOLD = 0.05
"""Minimum score of the detections that are validated."""


class Trainer:
    """Trains a model and writes the files of the run into the folder ``options.out``.

    ``danet.training.train`` builds a trainer from options alone. Use this class to train with a model, a data set or
    loss terms of your own.

    Args:
        options: options of the run.
        model: the network, on ``device``.
        dataset: the training samples.
        validation: the validation images; empty to skip validation.
        device: device of the training.
        extra_losses: loss terms other than detection by name, on ``device``, see ``TrainOptions.build_losses``. Their
            parameters are trained as well; they are saved in the state, but not in the weights.
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
        self.log: TrainingLog | None = None  # only in the process that writes files

    @property
    def result(self) -> DANet:
        """The model that is validated and saved: the moving average if there is one."""
        return self.model if self.state.average is None else cast(DANet, self.state.average.module)

    def resume(self) -> None:
        """Loads the saved state. Without one (the run was interrupted before its first save), training starts anew.

        Raises:
            UserError: the state is unreadable or belongs to a run with other options or data, see
                ``TrainingState.load``, or it has more epochs than ``options.epochs``.
        """
        path = self.folder / STATE
        if not path.exists():
            return
        self.state.load(path, self._identity())
        self.sampler.start_step = self.state.progress.step
        if self.sampler.start_step > self.sampler.total_steps:
            epochs = self.sampler.start_step / self.sampler.steps_per_epoch
            raise UserError(f"{path}: has {epochs:g} epochs already, got --epochs {self.options.epochs}; give more")

    def run(self) -> bool:
        """Trains to the last epoch and returns True; on a stop signal, saves the state and returns False.

        Raises:
            UserError: a loss or a gradient is not finite, or an image cannot be read.
        """
        self.network: DANet | DistributedDataParallel = self.model
        if distributed.world_size() > 1:
            device_ids = [self.device] if self.device.type == "cuda" else None
            self.network = DistributedDataParallel(self.model, device_ids=device_ids)
        with contextlib.ExitStack() as stack:
            if distributed.rank() == 0:
                steps = {"total_steps": self.sampler.total_steps, "steps_per_epoch": self.sampler.steps_per_epoch}
                self.log = stack.enter_context(TrainingLog(self.options, self.state.progress, **steps))
            stack.enter_context(_stop_on_signals(self.stop))
            self._save()
            return self._loop()

    def _loop(self) -> bool:
        progress = self.state.progress
        if progress.step and progress.step % self.sampler.steps_per_epoch == 0:
            self._end_epoch()  # the state was saved before the validation of this epoch had ended
        pinned = self.device.type == "cuda"
        batches = iter(make_loader(self.dataset, self.sampler, workers=self.options.workers or 0, pin_memory=pinned))
        while progress.step < self.sampler.total_steps:
            if distributed.any_process(self.stop.is_set(), self.device):
                self._save()
                return False
            started = time.monotonic()
            self._step(_next_batch(batches))
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
        """Updates the weights once. Raises UserError before the update if a loss or gradient is not finite."""
        options, state, step = self.options, self.state, self.state.progress.step
        # Seed every step by itself: a resumed run then needs no random state.
        torch.manual_seed(_combine_seeds(options.seed, step, distributed.rank()))
        lr = learning_rate(step, self.sampler.total_steps, options)
        for group in state.optimizer.param_groups:
            group["lr"] = lr

        # Forward pass and loss terms.
        batch = batch.to(self.device)
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            output = self.network(batch.images)
        terms = self.criterion(output, batch)
        for term in self.extra_losses.values():
            with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
                terms |= term(output, batch)
        loss = torch.stack(list(terms.values())).sum()

        # Backward pass; DistributedDataParallel averages the gradients of the model, but not of the extra losses.
        state.optimizer.zero_grad(set_to_none=True)
        state.scaler.scale(loss).backward()
        distributed.average_gradients(self.extra_losses.parameters())
        state.scaler.unscale_(state.optimizer)
        # Clip separately, so that large gradients of the extra losses' parameters do not shrink those of the model.
        norm, extra_norm = (
            torch.nn.utils.clip_grad_norm_([*module.parameters()], options.clip or math.inf)
            for module in (self.model, self.extra_losses)
        )

        # Average the losses over processes: each has its own sum divided by the mean normalizer of all processes.
        shared = distributed.mean(torch.stack([loss.detach(), *(term.detach() for term in terms.values())]))
        *values, norm, extra_norm = torch.cat([shared, torch.stack([norm, extra_norm.to(norm.device)])]).tolist()
        losses = dict(zip(["loss", *terms], values, strict=True))
        self._check_finite(losses, norm + extra_norm)

        # Update the weights and their moving average.
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if state.average is not None:
            state.average.update_parameters(self.model)
        state.progress.step += 1
        if self.log:
            self.log.step(state.progress.step, losses, lr, norm)

    def _check_finite(self, losses: dict[str, float], norm: float) -> None:
        problems = [f"{name} is {value}" for name, value in losses.items() if not math.isfinite(value)]
        # With float16, the scaler skips steps whose gradients overflow and lowers its scale.
        if not problems and not self.state.scaler.is_enabled() and not math.isfinite(norm):
            problems = [f"the gradient norm is {norm}"]
        if problems:
            step = self.state.progress.step
            raise UserError(
                f"step {step + 1} (epoch {step // self.sampler.steps_per_epoch + 1}): {', '.join(problems)}; "
                f"training stopped, the last good state is in {self.folder / STATE}; try a lower --lr or --clip 10"
            )

    def _end_epoch(self) -> None:
        """Validates if it is due, logs the epoch and saves the state; does nothing if all of this was done before."""
        progress, options = self.state.progress, self.options
        if self.log is None or progress.finished_epoch_at == progress.step:
            return
        epoch = progress.step // self.sampler.steps_per_epoch
        metrics = None
        if self.validation and (epoch % options.val_every == 0 or progress.step == self.sampler.total_steps):
            self._save()
            started = time.monotonic()
            metrics = self._validate()
            progress.seconds += time.monotonic() - started
            if metrics is None:  # stopped by a signal; the resumed run starts with this validation
                return
            # Prefer the later of equal epochs: scores keep rising when AP no longer does.
            if metrics["ap50"] >= progress.best.get("ap50", 0.0):
                progress.best = {"epoch": epoch, **metrics}
                self._save_weights(BEST, progress.best)
            self.log.validation(progress.step, metrics)
        progress.finished_epoch_at = progress.step
        self.log.end_epoch(epoch, learning_rate(progress.step - 1, self.sampler.total_steps, options), metrics)
        self._save()

    def _validate(self) -> dict[str, float] | None:
        """Metrics on the validation images, or None if a stop signal arrived."""
        detector = Detector(self.result, score_threshold=VALIDATION_SCORE_THRESHOLD)
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

    def _save_weights(self, name: str, metrics: dict[str, float]) -> None:
        metadata = {"step": self.state.progress.step, "validation": metrics, **self._domain.to_metadata()}
        save_weights(self.folder / name, self.result, metadata)

    @functools.cached_property
    def _domain(self) -> ImageDomain:
        return ImageDomain.of_training(self.dataset.records, self.dataset.augmentation)

    def _finish(self) -> None:
        """Writes the final weights: the best by validation, or the last ones without validation."""
        if self.log is None:
            return
        if self.state.progress.best:
            with atomic_path(self.folder / WEIGHTS) as temporary:
                shutil.copyfile(self.folder / BEST, temporary)
        else:
            self._save_weights(WEIGHTS, {})

    def _identity(self) -> dict:
        """What must be the same when the run is resumed."""
        return {"data": self.dataset.fingerprint(), **self.fingerprints, **fixed_options(self.options)}


@contextlib.contextmanager
def _stop_on_signals(stop: threading.Event) -> Iterator[None]:
    """Sets ``stop`` on Ctrl-C (SIGINT) and on SIGTERM, so that the current step is finished first.

    A second signal raises KeyboardInterrupt at once. Outside of the main thread, where Python allows no signal
    handlers, nothing is installed. The previous handlers are restored at the end.
    """

    def handle(number: int, _: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _next_batch(batches: Iterator[Batch]) -> Batch:
    try:
        return next(batches)
    except UserError as error:
        # DataLoader passes on an error of a worker process as the text of its traceback; keep only the message.
        prefix = f"{UserError.__module__}.{UserError.__qualname__}: "
        raise UserError(str(error).strip().splitlines()[-1].removeprefix(prefix)) from error


def _combine_seeds(*seeds: int) -> int:
    return int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0])


def _autocast_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    if amp == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return {"off": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[amp]
