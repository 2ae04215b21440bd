"""The training loop: steps, validation, and saving."""

import contextlib
import functools
import math
import shutil
import sys
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
from danet.data.batch_loader import LoaderWorkerError
from danet.data.coco_dataset import ImageRecord
from danet.data.epoch_sampler import EpochSampler
from danet.data.image_domain import ImageDomain
from danet.data.loader import Batch, DetectionDataset, make_loader
from danet.losses import DetectionLoss
from danet.models import DANet
from danet.training.learning_curves import CurvePictures
from danet.training.log import TrainingLog, epochs_after
from danet.training.mixed_precision import autocast_dtype
from danet.training.optimizer import average_weights, build_optimizer, freeze_norms, freeze_parts, learning_rate
from danet.training.options import TrainOptions
from danet.training.previews import write_previews
from danet.training.run_folder import BEST, STATE, WEIGHTS, RunLock, lock_run_folder
from danet.training.state import TrainingState, fixed_options
from danet.training.validation import Validation
from danet.utils import distributed
from danet.utils.errors import FaultError, UserError
from danet.utils.files import DISK_FAULTS, atomic_path, write_error
from danet.utils.load_monitor import use_all_threads, use_free_cores
from danet.utils.memory_format import channels_last
from danet.utils.stop_signals import stop_on_signals


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
        extra_losses: loss terms by name that are added to the detection loss, on ``device``, see
            ``TrainOptions.build_losses``. Their parameters are trained too; the weights file does not contain them.
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
        self.validation = Validation(validation, dataset.classes)
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
        # Hashes, by name, of what loss terms load, such as the weights of teachers; most terms load nothing. A run
        # resumes only if they are unchanged.
        self.loss_fingerprints: dict[str, str] = {}
        for term in self.extra_losses.values():
            self.loss_fingerprints |= getattr(term, "fingerprints", dict)()
        if options.freeze_norm:
            freeze_norms(self.model)
            freeze_norms(self.extra_losses)
        freeze_parts(self.model, options.freeze)
        self.criterion = DetectionLoss(self.model, options.assignment)
        self.autocast = autocast_dtype(options.amp, device)
        self.state = TrainingState(
            model=self.model,
            average=average_weights(self.model, options.ema) if options.ema else None,  # the EMA model
            optimizer=build_optimizer(self.model, options, self.extra_losses),
            extra_losses=self.extra_losses,
            scaler=torch.amp.GradScaler(device.type, enabled=self.autocast == torch.float16),
        )
        self.stop = threading.Event()
        """Set when a stop signal has arrived."""
        self.end_reason = ""
        """Why a finished run ended before its last epoch, if it did."""
        self._saved_at = time.monotonic()
        self._saved_step: int | None = None
        # ``run`` sets these three in rank 0, the only process that writes files.
        self.log: TrainingLog | None = None
        self.curves: CurvePictures | None = None
        self.lock: RunLock | None = None

    @property
    def model_to_save(self) -> DANet:
        """The model that is validated and saved: the moving average of ``model``, or ``model`` if ``ema`` is 0."""
        return self.model if self.state.average is None else cast(DANet, self.state.average.module)

    def resume(self) -> None:
        """Loads the saved state; does nothing if the run was interrupted before its first save.

        Raises:
            UserError: the state is unreadable, belongs to a run with other options or data (see
                ``TrainingState.load``), or has more epochs than ``options.epochs``.
        """
        path = self.folder / STATE
        if not path.exists():
            return
        self.state.load(path, self._identity())
        progress = self.state.progress
        if progress.forget_other_validation(self.validation.fingerprint) and distributed.rank() == 0:
            notice = "the best AP50 so far is of other validation images, and no longer counts"
            print(f"danet train: warning: {path}: {notice}", file=sys.stderr)
        self._saved_step = progress.step
        self.sampler.start_step = progress.step
        if self.sampler.start_step > self.sampler.total_steps:
            epochs = self.sampler.start_step / self.sampler.steps_per_epoch
            raise UserError(f"{path}: has {epochs:g} epochs already, got --epochs {self.options.epochs}; give more")

    def run(self, lock: RunLock | None = None) -> bool:
        """Trains and returns True; on a stop signal, saves the state and returns False.

        The run ends after the last epoch, or earlier by early stopping or the time limit.

        Args:
            lock: the lock of the run folder, see ``lock_run_folder``; by default the folder is locked here.

        Raises:
            UserError: a loss or (except with float16) a gradient is not finite, an image cannot be read, or another
                training writes into the folder.
            FaultError: the disk is full, the folder was removed, or a loader process was killed. The last saved state
                is whole.
        """
        self.network: DANet | DistributedDataParallel = self.model  # the wrapper averages gradients over processes
        if distributed.world_size() > 1:
            device_ids = [self.device] if self.device.type == "cuda" else None
            self.network = DistributedDataParallel(self.model, device_ids=device_ids)
        try:
            with contextlib.ExitStack() as stack:
                if distributed.rank() == 0:
                    self.lock = lock or stack.enter_context(lock_run_folder(self.folder))
                    steps = {"total_steps": self.sampler.total_steps, "steps_per_epoch": self.sampler.steps_per_epoch}
                    self.log = stack.enter_context(TrainingLog(self.options, self.state.progress, **steps))
                    self.curves = CurvePictures(self.folder) if self.options.plots else None
                stack.enter_context(stop_on_signals(self.stop))
                stack.callback(use_all_threads)
                self._save()
                if self.log and self.options.plots:
                    write_previews(self.dataset, self.sampler, self.folder)
                return self._loop()
        except FaultError as error:
            raise FaultError(f"{error}; {self._what_is_saved()}") from error
        except OSError as error:  # of TensorBoard's files
            if error.errno not in DISK_FAULTS:
                raise
            raise FaultError(f"{write_error(self.folder, error)}; {self._what_is_saved()}") from error

    def _what_is_saved(self) -> str:
        stopped = f"training stopped after step {self.state.progress.step}"
        if self._saved_step is None or not (self.folder / STATE).is_file():
            return f"{stopped}, no state is saved"
        return f"{stopped}, the state of step {self._saved_step} is saved; danet train --resume {self.folder} continues"

    def _loop(self) -> bool:
        progress = self.state.progress
        if progress.step and progress.step % self.sampler.steps_per_epoch == 0:
            self._end_epoch()  # needed if the run was interrupted during the validation of this epoch
        loader = make_loader(
            self.dataset,
            self.sampler,
            workers=self.options.workers or 0,
            pin_memory=self.device.type == "cuda",
            worker_start=self.lock.close_in_child if self.lock else None,
        )
        with contextlib.closing(iter(loader)) as batches:
            while progress.step < self.sampler.total_steps and not self._check_early_end():
                if self.lock:
                    self.lock.check()
                started = time.monotonic()
                batch = None if self.stop.is_set() else self._next_batch(batches)
                # All processes stop together, because all must take part in the operations of a step.
                stops = distributed.any_process(batch is None or self.stop.is_set(), self.device)
                if stops or batch is None:
                    self._save()
                    if self.curves:
                        self.curves.draw()
                    return False
                self._step(batch)
                progress.seconds += time.monotonic() - started
                if progress.step % self.sampler.steps_per_epoch == 0:
                    self._end_epoch()
                elif self._save_due():
                    self._save()
        if distributed.any_process(self.stop.is_set(), self.device):
            return False
        return self._finish()

    def _check_early_end(self) -> bool:
        """Whether early stopping or the time limit ends the run before its last epoch, the same in all processes.

        Sets ``end_reason``.
        """
        options, progress = self.options, self.state.progress
        # Epochs since the last validation do not count: AP50 may have risen in them.
        if options.patience and progress.validated_epoch - progress.improved_epoch >= options.patience:
            self.end_reason = f"AP50 did not rise for {options.patience} epochs (patience)"
        elif options.max_minutes is not None and progress.seconds >= 60 * options.max_minutes:
            self.end_reason = f"the time limit of {options.max_minutes:g} minutes is reached (max_minutes)"
        if not options.patience and options.max_minutes is None:
            return False
        return distributed.any_process(bool(self.end_reason), self.device)

    def _next_batch(self, batches: Iterator[Batch]) -> Batch | None:
        """The next batch, or None if the stop signal has also ended a loader process."""
        try:
            return next(batches)
        except LoaderWorkerError as error:
            if self.stop.is_set():
                return None
            self._save()
            raise FaultError(
                f"{error}; the system ends a process when the memory is exhausted: try fewer --workers, a smaller "
                "--batch or --cache_mb"
            ) from error
        except UserError:
            self._save()
            raise

    def _step(self, batch: Batch) -> None:
        """Updates the weights once. Raises UserError before the update if a loss or gradient is not finite.

        With float16, a gradient that is not finite raises no error; the scaler skips the update.
        """
        options, state, step = self.options, self.state, self.state.progress.step
        if options.threads is None:
            use_free_cores()
        # Seed torch at every step, so that a resumed run needs no saved random state.
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

        # Average the losses over processes. That gives the loss of the whole batch, because each process divides its
        # sum by the mean of the normalizers of all processes (such as the number of positives), not by its own
        # normalizer.
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
        # With float16, gradients may overflow: the scaler skips the step and lowers its scale.
        if not problems and not self.state.scaler.is_enabled() and not math.isfinite(norm):
            problems = [f"the gradient norm is {norm}"]
        if problems:
            step = self.state.progress.step
            raise UserError(
                f"step {step + 1} (epoch {step // self.sampler.steps_per_epoch + 1}): {', '.join(problems)}; "
                f"training stopped, the last good state is in {self.folder / STATE}; try a lower --lr or --clip 10"
            )

    def _end_epoch(self) -> None:
        """Validates if it is due, logs the epoch and saves the state, all in rank 0; does nothing if already done."""
        progress, options = self.state.progress, self.options
        if self.log is None or progress.finished_epoch_at == progress.step:
            return
        epoch = progress.step // self.sampler.steps_per_epoch
        metrics = None
        if self.validation and (epoch % options.val_every == 0 or progress.step == self.sampler.total_steps):
            self._save()
            metrics = self._record_validation(self.log)
            if metrics is None:  # stopped by a signal; the resumed run starts with this validation
                return
        progress.finished_epoch_at = progress.step
        self.log.end_epoch(epoch, learning_rate(progress.step - 1, self.sampler.total_steps, options), metrics)
        self._save()
        if self.curves:
            self.curves.draw_if_due()

    def _record_validation(self, log: TrainingLog) -> dict[str, float] | None:
        """Validates and keeps the weights if they are the best so far; None if a stop signal arrived."""
        progress, started = self.state.progress, time.monotonic()
        metrics = self.validation.measure(self.model_to_save, self._domain, self._go_on)
        progress.seconds += time.monotonic() - started
        if metrics is None:
            return None
        epoch = epochs_after(progress.step, self.sampler.steps_per_epoch)
        if progress.record_validation(epoch, metrics, self.validation.fingerprint):
            self._save_weights(BEST, progress.best)
        log.validation(progress.step, metrics)
        return metrics

    def _go_on(self) -> bool:
        """Adapts the number of threads to the load; returns whether the run goes on, because no stop signal arrived."""
        if self.options.threads is None:
            use_free_cores()
        return not self.stop.is_set()

    def _save_due(self) -> bool:
        steps, seconds = self.options.save_every_steps, time.monotonic() - self._saved_at
        due = steps > 0 and self.state.progress.step % steps == 0
        return due or seconds >= self.options.save_every_minutes * 60

    def _save(self) -> None:
        if self.log and self.lock:
            self.lock.check()  # a removed folder would be created again, with this file only
            try:
                self.state.save(self.folder / STATE, self._identity())
            except UserError:
                self.lock.check()  # the reason may be that the folder was removed while the file was written
                raise
            self._saved_step = self.state.progress.step
        self._saved_at = time.monotonic()

    def _save_weights(self, name: str, metrics: dict[str, float]) -> None:
        metadata = {"step": self.state.progress.step, "validation": metrics, **self._domain.to_metadata()}
        save_weights(self.folder / name, self.model_to_save, metadata)

    @functools.cached_property
    def _domain(self) -> ImageDomain:
        return ImageDomain.of_training(self.dataset.used_records(), self.dataset.augmentation)

    def _finish(self) -> bool:
        """Writes the final weights: those of the best epoch, or the last weights if no epoch was validated.

        A time limit ends a run in the middle of an epoch: its weights are validated first. Returns False if a signal
        stopped that.
        """
        if self.log is None:
            return True
        progress = self.state.progress
        ends_early = progress.step < self.sampler.total_steps
        if ends_early:
            self._save()
        # Without a best validation, the run was finished before, with other validation images.
        is_due = self.log.validated_step != progress.step if ends_early else not progress.best
        if self.validation and is_due and not self._record_validation(self.log):
            return False
        if ends_early or is_due:
            self._save()
        if progress.best and (self.folder / BEST).is_file():
            with atomic_path(self.folder / WEIGHTS) as temporary:
                shutil.copyfile(self.folder / BEST, temporary)
        else:
            if progress.best:
                notice = f"{self.folder / BEST} was removed; {WEIGHTS} are the last weights"
                print(f"danet train: warning: {notice}", file=sys.stderr)
            self._save_weights(WEIGHTS, {})
        if self.curves:
            self.curves.draw()
        return True

    def _identity(self) -> dict:
        """The fingerprint of the run: values by name that ``TrainingState.load`` compares when the run is resumed."""
        return {"data": self.dataset.fingerprint(), **self.loss_fingerprints, **fixed_options(self.options)}


def _combine_seeds(*seeds: int) -> int:
    return int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0])
