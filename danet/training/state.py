"""The saved state of a training run, from which it resumes exactly. It is written atomically and never unpickled."""

import dataclasses
import json
import os
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from danet.checkpoint import load_tensors, save_tensors
from danet.config import EXTRA_CHANNELS, EXTRA_CHANNELS_VERSION
from danet.training.options import MAY_CHANGE_ON_RESUME, TrainOptions
from danet.utils.errors import UserError

FORMAT = "danet-training-state-1"


@dataclass
class Progress:
    """The progress of a run."""

    step: int = 0
    """Optimizer steps since the start."""
    finished_epoch_at: int = 0
    """The number of optimizer steps at the end of the last finished epoch. An epoch is finished when it is logged and,
    if due, validated."""
    best: dict[str, float] = field(default_factory=dict)
    """Epoch and metrics of the best validation so far; empty before the first one."""
    seconds: float = 0.0
    """Time spent on training steps and validation."""
    improved_epoch: float = 0
    """Epoch of the last validation that was better than all before it, for early stopping."""
    validated_epoch: float = 0
    """Epoch of the last validation."""
    validation_data: str = ""
    """Fingerprint of the images of ``best``: AP50 on other images cannot be compared with it."""

    def record_validation(self, epoch: float, metrics: dict[str, float], data: str) -> bool:
        """Notes the metrics of a validation; returns whether its weights are to be kept as the best ones.

        Args:
            epoch: epochs since the start.
            metrics: at least "ap50".
            data: fingerprint of the images.

        Example:
            >>> progress = Progress()
            >>> [progress.record_validation(epoch, {"ap50": ap}, "") for epoch, ap in ((1, 0.5), (2, 0.4), (3, 0.5))]
            [True, False, True]
            >>> progress.improved_epoch, progress.validated_epoch, progress.best["epoch"]
            (1, 3, 3)
        """
        best = self.best.get("ap50", -1.0)
        self.validated_epoch = epoch
        if metrics["ap50"] > best:
            self.improved_epoch = epoch
        # Of epochs with equal AP50, keep the last: the scores of detections still rise when AP50 does not.
        is_best = metrics["ap50"] >= best
        if is_best:
            self.best, self.validation_data = {"epoch": epoch, **metrics}, data
        return is_best

    def forget_other_validation(self, data: str) -> bool:
        """Forgets the best validation if its images have another fingerprint than ``data``; returns whether it does.

        Earlier versions stored no fingerprint, and validated at another image scale.
        """
        is_other = bool(self.best) and self.validation_data != data
        if is_other:
            self.best, self.improved_epoch = {}, self.validated_epoch
        return is_other

    @classmethod
    def from_json(cls, values: object) -> "Progress":
        """Reads what ``dataclasses.asdict`` gave; earlier versions did not write the last three values.

        Raises ValueError if a value has another type or is out of its range.

        Example:
            >>> Progress.from_json({"step": 3, "finished_epoch_at": 0, "best": {}, "seconds": 1.5}).step
            3
        """
        known = [item.name for item in dataclasses.fields(cls)]
        if not isinstance(values, dict) or not {*known[:-3]} <= values.keys() <= {*known}:
            raise ValueError(f"progress must have the keys {', '.join(known)}")
        best = values["best"]
        if not isinstance(best, dict) or not all(_is_number(value, float) for value in best.values()):
            raise ValueError("progress.best must hold numbers")
        if best and not {"epoch", "ap50"} <= best.keys():
            raise ValueError("progress.best must have the keys epoch and ap50")
        values = {"improved_epoch": best.get("epoch", 0), "validated_epoch": best.get("epoch", 0), **values}
        if not isinstance(values.get("validation_data", ""), str):
            raise ValueError("progress.validation_data must be a text")
        for name in known[:-1]:
            kind = int if name in ("step", "finished_epoch_at") else float
            if name != "best" and not _is_number(values[name], kind):
                raise ValueError(f"progress.{name} must be a number of at least 0")
        if values["finished_epoch_at"] > values["step"]:
            raise ValueError("progress.finished_epoch_at must be at most progress.step")
        return cls(**values)


def _is_number(value: object, kind: type) -> bool:
    """Whether a JSON value is a number from 0 to below 2^63; an integer if ``kind`` is int."""
    accepted = (int,) if kind is int else (int, float)
    return isinstance(value, accepted) and not isinstance(value, bool) and 0 <= value < 2**63


@dataclass
class TrainingState:
    """Everything that changes during training.

    The learning rate, torch's random numbers, the order of the samples and their augmentation are functions of the
    options and the step. So the step is all that must be saved of them.
    """

    model: nn.Module
    average: AveragedModel | None
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    extra_losses: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    """Loss terms other than detection. Their tensors are saved under the prefix ``extras.``"""
    progress: Progress = field(default_factory=Progress)

    def save(self, path: str | os.PathLike, identity: dict) -> None:
        """Writes the state atomically.

        Args:
            path: the file to write.
            identity: JSON values by name that must be the same in a run that resumes from this state.
        """
        header = {
            "identity": identity,
            "progress": dataclasses.asdict(self.progress),
            "scaler": self.scaler.state_dict(),
        }
        save_tensors(path, FORMAT, self._tensors(), header)

    def load(self, path: str | os.PathLike, identity: dict) -> None:
        """Restores the state in place.

        Args:
            path: a file that ``save`` has written.
            identity: compared with the one that was saved.

        Raises:
            UserError: the file is missing or not a training state, ``identity`` differs from the saved one, or the
                tensors do not fit the model.
        """
        tensors, header = load_tensors(path, FORMAT)
        try:
            for name, value in header["identity"].items():
                if name in identity and name != EXTRA_CHANNELS and identity[name] != value:
                    raise UserError(
                        f"{path}: this run has {name} {value!r}, got {identity[name]!r}; "
                        "resume it with its own options, or start a new run with another --out"
                    )
            # Older states with such channels lack the name.
            if header["identity"].get(EXTRA_CHANNELS) != identity.get(EXTRA_CHANNELS):
                raise UserError(
                    f"{path}: this run has another definition of the input channels that model.lags and "
                    "model.local_contrast add; start a new run with another --out"
                )
            self.progress = Progress.from_json(header["progress"])
            self._restore(tensors)
            self._restore_scaler(header["scaler"])
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{path}: does not fit this model ({reason[:200]})") from error

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {
            f"{prefix}.{name}": value
            for prefix, module in self._modules().items()
            for name, value in module.state_dict().items()
        }
        for name, parameter in self._parameters().items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if value is not None:
                    tensors[f"optimizer.{key}.{name}"] = value
        return tensors

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        parameters = self._parameters()
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "extras": {}}
        for name, value in tensors.items():
            part, rest = name.split(".", 1)
            # Squared gradients of an optimizer may overflow in a healthy run, weights may not.
            if part != "optimizer" and value.is_floating_point() and not value.isfinite().all():
                raise ValueError(f"{name} has values that are not finite")
            if part == "optimizer":
                key, owner = rest.split(".", 1)
                self.optimizer.state[parameters[owner]][key] = _like(parameters[owner], value, name)
            else:
                parts[part][rest] = value
        for prefix, module in self._modules().items():
            module.load_state_dict(parts[prefix])

    def _restore_scaler(self, saved: object) -> None:
        """Restores the gradient scaler, whose state is empty unless it is used (float16)."""
        if not self.scaler.is_enabled():
            return
        current = self.scaler.state_dict()
        if not isinstance(saved, dict) or saved.keys() != current.keys():
            raise ValueError(f"scaler must have the keys {', '.join(current)}")
        if not all(_is_number(value, type(current[name])) for name, value in saved.items()):
            raise ValueError("scaler must hold positive numbers")
        self.scaler.load_state_dict(saved)

    def _modules(self) -> dict[str, nn.Module]:
        """The modules whose tensors are saved, by their prefix in the file."""
        modules = {"model": self.model, "average": self.average, "extras": self.extra_losses}
        return {prefix: module for prefix, module in modules.items() if module is not None}

    def _parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters by their names in the optimizer's part of the state."""
        extras = {f"extras.{name}": parameter for name, parameter in self.extra_losses.named_parameters()}
        return dict(self.model.named_parameters()) | extras


def _like(parameter: Tensor, value: Tensor, name: str) -> Tensor:
    """``value`` with the device and memory format of its parameter, as optimizers expect; counters are only copied."""
    if value.ndim == 0:
        return value.clone()
    if value.shape != parameter.shape:
        raise ValueError(f"{name} has the shape {[*value.shape]}, its parameter {[*parameter.shape]}")
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def fixed_options(options: TrainOptions) -> dict:
    """The options that must not change when a run is resumed, as JSON values by dotted names (``model.name``).

    They include the definition of the further input channels, if the network has any.
    """
    flat = _flatten(json.loads(json.dumps(dataclasses.asdict(options))))
    fixed = {key: value for key, value in flat.items() if MAY_CHANGE_ON_RESUME.isdisjoint((key, key.split(".")[0]))}
    return fixed | ({EXTRA_CHANNELS: EXTRA_CHANNELS_VERSION} if options.model.has_extra_channels else {})


def _flatten(values: dict, prefix: str = "") -> dict:
    flat: dict = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
