"""Lists the kernels that a CUDA device launches for one image, in order, without a device.

    python -m benchmarks.gpu_model.launches danet          number of launches by operator
    python -m benchmarks.gpu_model.launches danet --list   every launch with its grid, block and shared memory

The deployed network runs on meta tensors, which have sizes but no values, and for which it takes the same steps as on
a CUDA device. For our own operators, the host code of the CUDA kernels runs in the emulator, which records the launches
in place of running the kernels. For torch's operators, LAUNCHES_OF tells how many kernels they launch.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from benchmarks.gpu_model.kernels import KernelLaunch, load, plain_name
from danet.config import ModelConfig
from danet.models import build_model

FRAME_SIZE = (256, 320)


@dataclass(frozen=True)
class Launch:
    """One kernel launch: its operator and kernel. The sizes of the kernels of other libraries are not known: None."""

    op: str
    kernel: str
    grid: tuple[int, int, int] | None = None
    block: tuple[int, int, int] | None = None
    shared_bytes: int | None = None
    cluster: int | None = None


def convolution_launches(input: Tensor, weight: Tensor, bias: Tensor | None, *_: Any) -> int:
    """cuDNN computes the convolution, and torch adds the bias in a kernel of its own."""
    return 1 if bias is None else 2


LAUNCHES_OF: dict[str, Callable[..., int]] = {
    "convolution": convolution_launches,
    **dict.fromkeys(
        ("_to_copy", "addcmul", "clone", "gelu", "mean", "relu", "sigmoid"),
        lambda *_, **__: 1,
    ),
    **dict.fromkeys(("_unsafe_view", "detach", "empty", "empty_like"), lambda *_, **__: 0),
}
"""The number of kernels that torch launches on a CUDA device, for each of its operators that the network calls. Views
launch none."""


class LaunchRecorder(TorchDispatchMode):
    """Inside the block, records the launches of all operators in ``launches``.

    Args:
        multiprocessors: the number of multiprocessors of the device.
    """

    def __init__(self, multiprocessors: int = 132) -> None:
        super().__init__()
        self.launches: list[Launch] = []
        self.emulation = load()
        self.multiprocessors = multiprocessors

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        """Record what one operator launches, and return its result."""
        namespace, name = function._schema.name.split("::")
        keywords = keywords or {}
        if namespace == "danet":
            return self._run_emulated(name, arguments, keywords)
        with self:  # an operator that only calls others: record those
            results = function.decompose(*arguments, **keywords)
        if results is not NotImplemented:
            return results
        if not function.is_view:
            if name not in LAUNCHES_OF:
                raise LookupError(f"launches: add the number of launches of aten::{name} to LAUNCHES_OF")
            self.launches += [Launch(name, f"aten::{name}")] * LAUNCHES_OF[name](*arguments, **keywords)
        results = function(*arguments, **keywords)
        # As cuDNN does; meta tensors forget the layout in depth-wise convolutions
        is_image = name == "convolution" and is_channels_last(arguments[0])
        return results.to(memory_format=torch.channels_last) if is_image else results

    def _run_emulated(self, name: str, arguments: tuple, keywords: dict[str, Any]) -> Any:
        operator = getattr(torch.ops.danet_emulated, name).default
        arguments, keywords = tree_map_only(Tensor, self._memory, (arguments, keywords))
        settings = self.emulation.settings
        before, settings.multiprocessors = settings.multiprocessors, self.multiprocessors
        try:
            # This mode stays active, so that it records what the operator calls itself, such as a copy of its input.
            with self.emulation.observed(self._record), self:
                results = operator.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *arguments, **keywords)
        finally:
            settings.multiprocessors = before
        return tree_map_only(Tensor, lambda tensor: tensor.to("meta"), results)

    def _memory(self, tensor: Tensor) -> Tensor:
        """The memory on the CPU that an operator gets for a meta tensor."""
        return memory_like(tensor)

    def _record(self, launch: KernelLaunch) -> bool:
        sizes = launch.grid, launch.block, launch.shared_bytes, launch.cluster
        self.launches.append(Launch(launch.op, plain_name(launch.kernel), *sizes))
        return True


def is_channels_last(tensor: Tensor) -> bool:
    """Whether the memory format of an image is channels-last."""
    return tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def memory_like(tensor: Tensor) -> Tensor:
    """Memory on the CPU with the sizes, strides and alignment of a meta tensor; its values are undefined."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in steps) if tensor.numel() else -1
    memory = torch.empty(tensor.storage_offset() + last + 1, dtype=tensor.dtype)
    return memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def deployed_network(
    name: str, *, batch_size: int = 1, dtype: torch.dtype = torch.float16
) -> tuple[torch.nn.Module, Tensor]:
    """A deployed network, with prepared weights, and a batch of images of FRAME_SIZE; both on meta tensors.

    Args:
        name: the name of a model, such as "danet_s".
        batch_size: number of images.
        dtype: type of the network.
    """
    network = build_model(ModelConfig(name=name)).deploy(dtype=dtype, device="meta").network
    images = torch.empty(batch_size, 1, *FRAME_SIZE, dtype=dtype, device="meta").to(memory_format=torch.channels_last)
    with torch.no_grad():
        network(images)  # the first call prepares weights
    return network, images


def network_launches(name: str, *, batch_size: int = 1, dtype: torch.dtype = torch.float16) -> list[Launch]:
    """The launches of a deployed network for a batch of images, from the image to the predictions.

    Arguments are those of ``deployed_network``.
    """
    network, images = deployed_network(name, batch_size=batch_size, dtype=dtype)
    with torch.no_grad(), LaunchRecorder() as recorder:
        network(images)
    return recorder.launches


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="danet", help="name of the model")
    parser.add_argument("--list", action="store_true", help="print every launch")
    options = parser.parse_args()
    launches = network_launches(options.model)
    if options.list:
        for launch in launches:
            sizes = f"  {launch.grid} x {launch.block}, {launch.shared_bytes} bytes, clusters of {launch.cluster}"
            print(launch.kernel + ("" if launch.grid is None else sizes))
    for kernel, count in Counter(launch.kernel for launch in launches).most_common():
        print(f"{count:>4}  {kernel}")
    print(f"{len(launches):>4}  launches of {options.model} for one image")


if __name__ == "__main__":
    main()
