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
from danet.training.options import MAY_CHANGE_ON_RESUME, TrainOptions
from danet.utils.errors import UserError

FORMAT = "danet-training-state-1"


@dataclass
class Progress:
    """The progress of a run."""

    step: int = 0
    """Optimizer steps since the start."""
    finished_epoch_at: int = 0
    """``step`` at the end of the last epoch that was finished; it is finished when it was validated and logged."""
    best: dict[str, float] = field(default_factory=dict)
    """Epoch and metrics of the best validation so far; empty before the first one."""
    seconds: float = 0.0
    """Time spent on training steps and validation."""


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
                if name in identity and identity[name] != value:
                    raise UserError(
                        f"{path}: this run has {name} {value!r}, got {identity[name]!r}; "
                        "resume it with its own options, or start a new run with another --out"
                    )
            self._restore(tensors)
            self.scaler.load_state_dict(header["scaler"])
            self.progress = Progress(**header["progress"])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path}: does not fit this model ({str(error).splitlines()[0]})") from error

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
            if part == "optimizer":
                key, owner = rest.split(".", 1)
                self.optimizer.state[parameters[owner]][key] = _like(parameters[owner], value)
            else:
                parts[part][rest] = value
        for prefix, module in self._modules().items():
            module.load_state_dict(parts[prefix])

    def _modules(self) -> dict[str, nn.Module]:
        """The modules whose tensors are saved, by their prefix in the file."""
        modules = {"model": self.model, "average": self.average, "extras": self.extra_losses}
        return {prefix: module for prefix, module in modules.items() if module is not None}

    def _parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters by their names in the optimizer's part of the state."""
        extras = {f"extras.{name}": parameter for name, parameter in self.extra_losses.named_parameters()}
        return dict(self.model.named_parameters()) | extras


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """``value`` with the device and memory format of its parameter, as optimizers expect; counters are only copied."""
    if value.shape != parameter.shape:
        return value.clone()
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def fixed_options(options: TrainOptions) -> dict:
    """The options that must not change when a run is resumed, as JSON values by dotted names (``model.name``)."""
    flat = _flatten(json.loads(json.dumps(dataclasses.asdict(options))))
    return {key: value for key, value in flat.items() if MAY_CHANGE_ON_RESUME.isdisjoint((key, key.split(".")[0]))}


def _flatten(values: dict, prefix: str = "") -> dict:
    flat: dict = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
