"""``DeployedDANet``: the network for inference, as ``DANet.deploy`` returns it."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from danet.boxes import Detections
from danet.config import ModelConfig
from danet.models.blocks import FusedMBB
from danet.models.fuse import fuse_modules
from danet.models.graphs import CudaGraphs
from danet.models.heads import Output
from danet.models.program import CpuProgram, can_run_program, program_of
from danet.models.rounding import round_with_error_diffusion
from danet.utils.memory_format import channels_last


class DeployedDANet(nn.Module):
    """A DANet for inference: fused (see ``danet.models.fuse``), channels-last, with CUDA graphs on CUDA devices.

    It is called like a DANet and decodes like one. On CUDA devices without gradients, it replays one CUDA graph per
    image shape: an output is valid until the next call. On the CPU without gradients and without forward hooks, one
    operator call runs the whole network (``danet.models.program``).

    Args:
        network: a DANet in eval mode; it is changed, so that the caller must not use it afterwards.
        dtype: type of weights and activations; scores and boxes are float32, and on the CPU also the first layer.
        device: where it runs.

    Attributes:
        dtype_reason: why ``DANet.deploy`` chose the dtype; empty if its caller did.

    Example:
        >>> from danet.models import build_model
        >>> deployed = build_model(ModelConfig(name="danet_nano")).deploy()
        >>> with torch.no_grad():
        ...     output = deployed(torch.zeros(1, 1, 64, 96))
        >>> len(deployed.decode(output, score_threshold=0.5))
        1
    """

    network: Any  # a DANet, whose module imports this one

    def __init__(self, network: nn.Module, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        fuse_modules(network)
        half = dtype in (torch.float16, torch.bfloat16)
        backbone: Any = network.backbone
        stem = backbone.stem
        # Keep the exact weights of the first layer, which computes in float32 on the CPU: all are rounded below.
        exact = copy.deepcopy(stem) if half and device.type == "cpu" else None
        for module in network.modules():
            if half and isinstance(module, FusedMBB):
                module.weight.copy_(round_with_error_diffusion(module.weight, dtype))
        self.network = channels_last(network, device=device, dtype=dtype).requires_grad_(False)
        if half:
            self.network.head.predict_in_float32()
        self._choose_input_dtype()
        if exact is not None:
            stem.load_state_dict(exact.state_dict())
        self.config: ModelConfig = self.network.config
        self._reset_programs()
        self.dtype_reason = ""

    def _reset_programs(self) -> None:
        """Forgets the CUDA graphs and the CPU program, which use the old weights."""
        self.graphs = CudaGraphs(self.network)
        self.program: CpuProgram | None = None
        self.has_program = True  # False after program_of has returned None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "DeployedDANet":
        before = self.dtype
        super()._apply(fn, recurse)
        if self.dtype != before:
            self.dtype_reason = ""
        self._choose_input_dtype()
        self._reset_programs()
        return self

    def _choose_input_dtype(self) -> None:
        """Lets a 16-bit network on the CPU compute its first layer in float32.

        Images rounded to 16 bits would hide targets of low contrast. On CUDA devices, this layer would take longer.
        """
        stem = self.network.backbone.stem
        is_mixed = self.device.type == "cpu" and self.dtype in (torch.float16, torch.bfloat16)
        if is_mixed:
            stem.float()
        stem.out_dtype = self.dtype if is_mixed else None

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and activations after the first layer; that layer has ``input_dtype``."""
        return self.network.backbone.stages[0][0].weight.dtype

    @property
    def input_dtype(self) -> torch.dtype:
        """Type to which images are converted."""
        return self.network.backbone.stem.weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.network.backbone.stem.weight.device

    def forward(self, images: Tensor) -> Output:
        """Images ``[N, network_channels, H, W]`` of any float type on any device -> ``Output``, see ``DANet``."""
        images = images.to(device=self.device, dtype=self.input_dtype, memory_format=torch.channels_last)
        no_graph = torch.is_grad_enabled() or torch.compiler.is_compiling()
        if images.is_cuda and not no_graph and not torch.cuda.is_current_stream_capturing():
            return self.graphs(images)
        if self.has_program and can_run_program(images) and self.network.accepts(images):
            if self.program is None or not self.program.is_current():
                self.program = program_of(self.network)
                self.has_program = self.program is not None
            if self.program is not None and not self.program.has_hooks():
                return self.program(images)
        return self.network(images)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "program": None}  # a copy makes its own program

    def decode(self, output: Output, **options: Any) -> list[Detections]:
        """Detections of every image of the batch, see ``DANet.decode``."""
        return self.network.decode(output, **options)
