"""Runs a deployed network on the CPU by one operator call, ``run_program`` in csrc/program.

Calling every layer from Python costs about a millisecond per image, which is a fifth of the time of ``danet_s`` in
bfloat16. A program lists the calls once; then C++ makes them for every image.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import _get_current_dispatch_mode

from danet.models.acfa import Neck
from danet.models.backbone import Backbone
from danet.models.blocks import FusedMBB
from danet.models.fuse import FusedACFA, FusedSaFEM
from danet.models.heads import Head, Output
from danet.models.heads.head import FusedTowers
from danet.ops import library

# As in csrc/program/program.h
CONVOLVE, NARROW, SAFEM, ACFA_WEIGHT, FREE = range(5)
NONE = -1
TILE_DEPTH = 32
"""Channels of one tile of the matrix unit, as kTileDepth in csrc/common/amx.h."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclasses.dataclass
class Instruction:
    """An instruction of a program, which computes value ``out`` from the values ``inputs``."""

    kind: int
    out: int
    arguments: list[int]
    inputs: tuple[int, ...]
    weight: int = NONE
    """The index of the prepared weight that it reads."""
    gains_from_border: bool = False
    """Whether a border around the input saves a copy of it: a 3x3 convolution with stride 1 and whole tiles."""
    wants_border: bool = False
    """Whether a convolution writes a border of zeros around its result."""


class CpuProgram:
    """The program of a fused network; see ``program_of``.

    Args:
        network: a DANet whose parts are all fused.

    Raises:
        UnsupportedNetwork: the network has a part without a fused form, such as an ACFA in its literal form.
    """

    def __init__(self, network: Any) -> None:
        self.instructions: list[Instruction] = []
        self.tensors: list[Tensor] = []
        self.numbers: list[float] = []
        self.num_values = 1  # value 0 is the image
        self.uses_torch = False  # whether a convolution is computed by torch's operator
        # Every attribute that the program was built from: the dict that holds it, its name, its value
        self.sources: list[tuple[dict, str, Any]] = []
        self.modules = list(network.modules())
        self.children = [(module._modules, len(module._modules)) for module in self.modules]
        for module in self.modules:
            self.sources += [(module._modules, name, child) for name, child in module._modules.items()]
            self.sources.append(
                (vars(module), "forward", None)
            )  # the instance must not override the method of its class
        if not self.is_current():
            raise UnsupportedNetwork("a module with another forward")
        check_types(network)
        x = self._convolve(network.backbone.stem, 0)
        features = []
        for stage in network.backbone.stages:
            for block in stage:
                x = self._block(block, x)
            features.append(x)
        # Each lateral convolution directly before the fusion that reads it, while its result is in the cache.
        laterals = network.neck.laterals
        fused = [self._convolve(laterals[-1], features[-1])]
        for level in reversed(range(len(network.neck.fusions))):
            lateral = self._convolve(laterals[level], features[level])
            fused.insert(0, self._acfa(network.neck.fusions[level], lateral, fused[0]))
        predictions = [self._towers(tower, x) for tower, x in zip(network.head.towers, fused, strict=True)]
        self.outputs = [*features, *(logits for logits, _ in predictions), *(deltas for _, deltas in predictions)]
        self.levels = len(features)
        self._choose_borders()
        self.code = self._encode()

    def is_current(self) -> bool:
        """Whether the network still has the modules, the weights and the options that the program uses."""
        return all(values.get(name) is value for values, name, value in self.sources) and all(
            len(children) == count for children, count in self.children
        )

    def has_hooks(self) -> bool:
        """Whether a module has a forward hook, which must be called."""
        if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
            return True
        return any(module._forward_hooks or module._forward_pre_hooks for module in self.modules)

    def __call__(self, images: Tensor) -> Output:
        """Runs the network on images of the dtype of its first layer, channels-last."""
        values = library.call(
            "run_program",
            images,
            self.tensors,
            self.code,
            self.numbers,
            self.num_values,
            self.outputs,
            self.uses_torch,
        )
        n = self.levels
        return Output(list(values[:n]), list(values[n : 2 * n]), list(values[2 * n :]))

    def _emit(self, kind: int, *arguments: int, inputs: tuple[int, ...], **options: Any) -> int:
        out = self.num_values
        self.num_values += 1
        self.instructions.append(Instruction(kind, out, list(arguments), inputs, **options))
        return out

    def _option(self, module: nn.Module, name: str) -> Any:
        value = vars(module)[name]
        self.sources.append((vars(module), name, value))
        return value

    def _tensor(self, module: nn.Module, name: str) -> int:
        value = module._buffers[name]
        self.sources.append((module._buffers, name, value))
        return NONE if value is None else self._constant(value)

    def _constant(self, value: Tensor) -> int:
        self.tensors.append(value)
        return len(self.tensors) - 1

    def _block(self, block: nn.Module, x: int) -> int:
        if type(block) is FusedMBB:
            return self._convolve(block, x)
        if type(block) is FusedSaFEM:
            return self._safem(block.prepared, self._option(block, "scale"), x, NONE, NONE)
        raise UnsupportedNetwork(type(block).__name__)

    def _convolve(self, block: nn.Module, x: int) -> int:
        if type(block) is not FusedMBB:
            raise UnsupportedNetwork(type(block).__name__)
        weight, prepared, bias = (self._tensor(block, name) for name in ("weight", "transformed", "bias"))
        self.uses_torch |= block.transformed is None or block.transformed.numel() == 0
        stride, relu, out_dtype = (self._option(block, name) for name in ("stride", "relu", "out_dtype"))
        dtype = NONE if out_dtype is None else DTYPES.index(out_dtype)
        return self._emit(
            CONVOLVE,
            *(x, weight, prepared, bias, stride, int(relu), dtype),
            inputs=(x,),
            weight=prepared,
            gains_from_border=block.weight.shape[2] == 3 and stride == 1 and block.weight.shape[1] % TILE_DEPTH == 0,
        )

    def _safem(self, prepared: Any, scale: float, x: int, up: int, weight: int) -> int:
        self.numbers.append(scale)
        inputs = tuple(value for value in (x, up, weight) if value != NONE)
        packed = self._packed(prepared)
        arguments = (x, packed, up, weight, prepared.groups, len(self.numbers) - 1)
        return self._emit(SAFEM, *arguments, inputs=inputs, weight=packed)

    def _packed(self, prepared: Any) -> int:
        weights = self._option(prepared, "weights")
        if weights.packed is None:
            raise UnsupportedNetwork("SaFEM without packed weights")
        return self._constant(weights.packed)

    def _acfa(self, fusion: nn.Module, shallow: int, deep: int) -> int:
        if type(fusion) is not FusedACFA:
            raise UnsupportedNetwork(type(fusion).__name__)
        packed = self._packed(fusion.deep)
        weight = self._emit(ACFA_WEIGHT, deep, packed, fusion.deep.groups, inputs=(deep,), weight=packed)
        scale = self._option(fusion, "scale")
        return self._safem(fusion.shallow, scale, shallow, self._convolve(fusion.up, deep), weight)

    def _towers(self, towers: nn.Module, x: int) -> tuple[int, int]:
        if type(towers) is not FusedTowers:
            raise UnsupportedNetwork(type(towers).__name__)
        y, channels = self._convolve(towers.blocks, x), towers.channels
        halves = [self._emit(NARROW, y, first, channels, inputs=(y,)) for first in (0, channels)]
        return self._convolve(towers.classify, halves[0]), self._convolve(towers.regress, halves[1])

    def _choose_borders(self) -> None:
        """Lets a convolution write a border of zeros around its result if only convolutions read the result.

        A 3x3 convolution with stride 1 on the matrix unit then needs no copy of its input.
        """

        readers: dict[int, list[Instruction]] = {}
        for instruction in reversed(self.instructions):
            # An instruction that reads a slice (NARROW) counts as a reader of the sliced value.
            found = readers.get(instruction.out, []) if instruction.kind == NARROW else [instruction]
            for value in instruction.inputs:
                readers[value] = found + readers.get(value, [])
        for instruction in self.instructions:
            reading = readers.get(instruction.out, [])
            if instruction.kind == CONVOLVE and instruction.out not in self.outputs:
                only_convolutions = all(each.kind == CONVOLVE for each in reading)
                instruction.wants_border = only_convolutions and any(each.gains_from_border for each in reading)

    def _encode(self) -> list[int]:
        """The instructions as integers. Behind the last use of a value, its memory is freed.

        A convolution gets the weight of the next instruction that has one, so that it can prefetch it.
        """
        code: list[int] = []
        next_weight, not_read_later = NONE, set(range(self.num_values)) - set(self.outputs)
        for instruction in reversed(self.instructions):
            last_reads = sorted(not_read_later.intersection(instruction.inputs))
            not_read_later.difference_update(last_reads)
            arguments = list(instruction.arguments)
            if instruction.kind == CONVOLVE:
                arguments += [int(instruction.wants_border), next_weight]
            next_weight = instruction.weight if instruction.weight != NONE else next_weight
            free = [number for value in last_reads for number in (FREE, value)]
            code = [instruction.kind, instruction.out, *arguments, *free, *code]
        return code


class UnsupportedNetwork(Exception):
    """A part of the network cannot be part of a program."""


def check_types(network: Any) -> None:
    """Raises UnsupportedNetwork if a part of the network does not compute what the program would compute."""
    # The name stands for the class, because its module imports this one.
    is_known = type(network).forward.__qualname__ == "DANet.forward"
    for part, kind in ((network.backbone, Backbone), (network.neck, Neck), (network.head, Head)):
        is_known = is_known and isinstance(part, kind) and type(part).forward is kind.forward
    if not is_known or network.head.towers is None:
        raise UnsupportedNetwork("a part with another forward")


def program_of(network: Any) -> CpuProgram | None:
    """The program of a fused network; None if the network must run from Python.

    Example:
        >>> from danet.config import ModelConfig
        >>> from danet.models import build_model
        >>> deployed = build_model(ModelConfig(name="danet_nano")).deploy()
        >>> program = program_of(deployed.network)
        >>> with torch.no_grad():
        ...     output = program(torch.zeros(1, 1, 64, 96))
        >>> [list(each.shape) for each in output.logits[:2]]
        [[1, 1, 16, 24], [1, 1, 8, 12]]
    """
    try:
        return CpuProgram(network)
    except UnsupportedNetwork:
        return None


def can_run_program(images: Tensor) -> bool:
    """Whether the network may run as a program for these images.

    It may not if something needs to see or change the individual operators: gradients, autocast, forward mode, tracing,
    exporting, compiling, a dispatch mode such as ``FlopCounterMode``, or a subclass of Tensor.
    """
    return (
        type(images) is Tensor
        and images.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and library.runs_compiled(images)
        and not torch._C._functorch.is_functorch_wrapped_tensor(images)
        and _get_current_dispatch_mode() is None
    )
