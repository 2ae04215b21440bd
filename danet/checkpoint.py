"""Weights files: safetensors with the model's configuration in the header. Reading one never unpickles anything."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from danet.config import EXTRA_CHANNELS, EXTRA_CHANNELS_VERSION, ModelConfig
from danet.models import DANet, build_model
from danet.models.blocks import MBB
from danet.utils.errors import FaultError, UserError
from danet.utils.files import atomic_path
from danet.utils.shipped_weights import SHIPPED_FOLDER, find_weights, shipped_names
from danet.utils.typed_options import OptionValues

FORMAT = "danet-weights-1"
"""Value of ``format`` in the header of a weights file."""

MAX_CONFIG_VALUE = 4096
"""Maximum of every number, and of the number of classes, in the configuration of a weights file."""

MAX_NAME_CHARACTERS = 200

MAX_GROWTH = 2.0
"""Maximum ratio of the values of a network to those in its file; compact files store fewer values."""

MAX_REASON_CHARACTERS = 200
"""Maximum length of the reason in a message, which may quote the file."""

STORED_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64)
"""Dtypes of the tensors that a weights file may have."""

SHIPPED = SHIPPED_FOLDER / "danet_s.safetensors"
"""The default weights: a detector of drones, birds, airplanes and helicopters in single infrared frames."""


def save_weights(path: str | os.PathLike, model: DANet, metadata: dict | None = None, *, compact: bool = False) -> None:
    """Writes the model's parameters and buffers, its configuration and metadata, atomically.

    Args:
        path: file to write.
        model: network in its training form (not fused).
        metadata: values that JSON can represent.
        compact: write less than half the size. Every MBB is stored as one convolution, and weights as float16. Vectors
            (biases, norms) remain float32, since variances may exceed the range of float16.

    Raises:
        UserError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> model = build_model(ModelConfig(name="danet_nano"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights(f"{folder}/weights.safetensors", model, {"epochs": 3})
        ...     loaded, metadata = load_weights(f"{folder}/weights.safetensors")
        >>> loaded.config.name, metadata
        ('danet_nano', {'epochs': 3})
    """
    header = {"config": dataclasses.asdict(model.config), "metadata": metadata or {}, "compact": compact}
    if model.config.has_extra_channels:
        header[EXTRA_CHANNELS] = EXTRA_CHANNELS_VERSION
    tensors = model.state_dict()
    if compact:
        for name, module in model.named_modules():
            if isinstance(module, MBB):
                fused = module.fuse()
                tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(f"{name}.")}
                tensors |= {f"{name}.weight": fused.weight, f"{name}.bias": fused.bias}
        tensors = {key: tensor.half() if tensor.ndim > 1 else tensor for key, tensor in tensors.items()}
    save_tensors(path, FORMAT, tensors, header)


def load_weights(path: str | os.PathLike, device: str | torch.device = "cpu") -> tuple[DANet, dict]:
    """Reads a model that ``save_weights`` wrote.

    Returns:
        The model in eval mode on ``device``, and the metadata.

    Raises:
        UserError: the file is missing, is not readable, or is not a weights file of this version; its header describes
            another network than its tensors; a tensor holds NaN or infinite values; or the network was trained with
            another definition of the channels that ``lags`` and ``local_contrast`` add.

    Example:
        >>> model, metadata = load_weights(SHIPPED)
        >>> model.config.classes
        ['drone', 'bird', 'airplane', 'helicopter']
    """
    tensors, header = load_tensors(path, FORMAT)
    _check_finite(path, tensors)
    with _naming_what_does_not_fit(path):
        config = parse_config(header["config"])
    if config.has_extra_channels and header.get(EXTRA_CHANNELS) != EXTRA_CHANNELS_VERSION:
        raise UserError(
            f"{path}: was trained with another definition of the input channels that model.lags and "
            "model.local_contrast add; train it again with this version of DANet"
        )
    with _naming_what_does_not_fit(path):
        _check_config_fits(config, tensors)
        model = build_model(config)
        model.load_state_dict(_load_compact(model, tensors) if header.get("compact") else tensors)
        metadata = dict(header["metadata"])
    return model.eval().to(device), metadata


@contextlib.contextmanager
def _naming_what_does_not_fit(path: str | os.PathLike) -> Iterator[None]:
    """Turns the errors of a file that somebody else may have written into a UserError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{path}: weights do not fit this version of DANet ({reason[:MAX_REASON_CHARACTERS]})"
        ) from error


def add_metadata(source: str | os.PathLike, path: str | os.PathLike, metadata: dict) -> None:
    """Writes a copy of a weights file with further metadata, atomically; the tensors remain the same bit for bit.

    Args:
        source: a weights file.
        path: file to write; it may be ``source``.
        metadata: values that JSON can represent; they replace those of the same names.

    Raises:
        UserError: ``source`` is not a readable weights file, or ``path`` cannot be written.

    Example:
        >>> path = getfixture("tmp_path") / "weights.safetensors"
        >>> add_metadata(SHIPPED, path, {"camera": "north gate"})
        >>> load_weights(path)[1]["camera"]
        'north gate'
    """
    tensors, header = load_tensors(source, FORMAT)
    if not isinstance(header.get("metadata"), dict):
        raise UserError(f"{source}: weights do not fit this version of DANet (they have no metadata)")
    save_tensors(path, FORMAT, tensors, {**header, "metadata": {**header["metadata"], **metadata}})


def save_tensors(path: str | os.PathLike, kind: str, tensors: dict[str, Tensor], header: dict) -> None:
    """Writes named tensors and a JSON header to a safetensors file of a kind, atomically.

    Raises:
        UserError: the file cannot be written; FaultError if the disk is full.
    """
    with atomic_path(path) as temporary:
        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            save_file(stored, temporary, metadata={"format": kind, "header": json.dumps(header)})
        except SafetensorError as error:  # mostly a full disk
            raise FaultError(f"{path}: cannot be written ({error})") from error


def load_tensors(path: str | os.PathLike, kind: str) -> tuple[dict[str, Tensor], dict]:
    """Reads the tensors and the header that ``save_tensors`` wrote.

    Raises:
        UserError: the file is missing, is not readable, or is of another kind.
    """
    if kind == FORMAT:
        path = find_weights(path)
    path = Path(path)
    if os.path.isdir(path):  # unlike Path.is_dir, without an error for a name that is too long
        advice = f"; name the weights in it, such as {path / 'weights.safetensors'}" if kind == FORMAT else ""
        raise UserError(f"{path}: is a folder{advice}")
    if not os.path.isfile(path):
        names = f"; weights in the package: {', '.join(shipped_names())}" if kind == FORMAT and not path.suffix else ""
        raise UserError(f"{path}: no such file{names}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != kind:
                raise UserError(f"{path}: a safetensors file, but not of kind {kind}")
            header = json.loads(metadata["header"])
            if not isinstance(header, dict):
                raise UserError(f"{path}: not a readable safetensors file (its header is no JSON object)")
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except RecursionError:
        raise UserError(f"{path}: not a readable safetensors file (its header is nested too deeply)") from None
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error


def parse_config(values: Mapping[str, Any]) -> ModelConfig:
    """Reads the configuration of a network from a file that anybody may have written.

    Raises:
        UserError: a value has another type than in ``ModelConfig``, is larger than ``MAX_CONFIG_VALUE``, or is not a
            text that can be shown.

    Example:
        >>> parse_config({"name": "danet_nano", "classes": ["drone"]}).name
        'danet_nano'
    """
    if not isinstance(values, Mapping):
        raise UserError(f"the configuration must be a JSON object, got {type(values).__name__}")
    options = OptionValues(ModelConfig)
    options.update(dict(values))
    config: ModelConfig = options.build()
    for name, value in dataclasses.asdict(config).items():
        numbers = value if isinstance(value, list) else [value]
        if len(numbers) > MAX_CONFIG_VALUE or any(type(n) is int and abs(n) > MAX_CONFIG_VALUE for n in numbers):
            raise UserError(f"model.{name} is larger than {MAX_CONFIG_VALUE}")
    for name in config.classes:
        if not name.isprintable() or len(name) > MAX_NAME_CHARACTERS:
            raise UserError(f"model.classes: {ascii(name)[:80]} is not a printable name")
    return config


def _check_config_fits(config: ModelConfig, tensors: dict[str, Tensor]) -> None:
    """Raises UserError if ``config`` asks for a larger network than ``tensors`` can fill, before it takes memory."""
    blocks = sum(config.depths or ())
    if 2 * blocks > len(tensors):  # every block has at least two tensors
        raise UserError(f"model.depths asks for {blocks} blocks, but the file has only {len(tensors)} tensors")
    with torch.device("meta"):
        asked = sum(tensor.numel() for tensor in build_model(config).state_dict().values())
    stored = sum(tensor.numel() for tensor in tensors.values())
    if asked > MAX_GROWTH * stored:
        raise UserError(f"the configuration asks for {asked} values, but the file has only {stored}")


def _check_finite(path: str | os.PathLike, tensors: dict[str, Tensor]) -> None:
    """Raises UserError if a tensor has an unsupported dtype, or NaN or infinite values: nothing would be detected."""
    for name, tensor in tensors.items():
        if tensor.dtype not in STORED_DTYPES:
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{path}: {name} has the dtype {dtype}, which is not supported")
        bad = tensor.numel() - int(tensor.isfinite().sum())
        if bad:
            raise UserError(
                f"{path}: {name} holds NaN or infinite values, got {bad} of {tensor.numel()}; "
                "the file is damaged or its training diverged, use another file"
            )


def _load_compact(model: DANet, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of ``model`` for the tensors of a compact file, which it removes from ``tensors``."""
    for name, module in model.named_modules():
        if isinstance(module, MBB):
            weight, bias = tensors.pop(f"{name}.weight"), tensors.pop(f"{name}.bias")
            if weight.shape != module.conv3x3.weight.shape or bias.shape != weight.shape[:1]:
                raise ValueError(f"{name} has the shape {list(weight.shape)}")
            module.load_fused(weight, bias)
    # Of the blocks, only the fused convolution is stored. All other tensors must be in the file.
    blocks = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, MBB))
    return {name: value for name, value in model.state_dict().items() if name.startswith(blocks)} | tensors
