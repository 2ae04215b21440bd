"""Predicts the time of a whole network on a GPU, as the sum of its launches, without a device.

    python -m benchmarks.gpu_model.network danet          total, and the time of each kind of launch
    python -m benchmarks.gpu_model.network danet --list   every launch

The launches are those of a deployed network for one image of FRAME_SIZE (``launches.py``). On sm_90, all launches of
``danet`` and ``danet_s`` are our own kernels; the attention modules of ``danet_nano`` are too narrow for the kernel of
``safem``. The model (``model.py``) predicts each launch for tensors of random values that the L2 cache holds. The sum
assumes that a captured network starts every launch as soon as the one before has ended.
"""

import argparse
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from benchmarks.gpu_model import model
from benchmarks.gpu_model.cases import compile_operators, some_blocks
from benchmarks.gpu_model.kernels import Execution, KernelLaunch, MachineCode, plain_name, process_memory
from benchmarks.gpu_model.launches import FRAME_SIZE, LaunchRecorder, deployed_network, memory_like
from benchmarks.gpu_model.machine import Launch, Machine

OPERATORS = ("rep_conv", "safem")
"""The folders in csrc with the kernels of a deployed network."""


@dataclass(frozen=True)
class PredictedLaunch:
    """One launch: its operator, its kernel, the sizes of the operator's tensors, and the predicted seconds."""

    op: str
    kernel: str
    sizes: str
    seconds: float
    bottleneck: str


class LaunchPredictor(LaunchRecorder):
    """Inside the block, predicts the launches of all operators, in ``predictions``.

    Launches of equal calls are executed once.
    """

    def __init__(self, code: MachineCode, device: model.Device = model.H200) -> None:
        super().__init__(device.multiprocessors)
        self.predictions: list[PredictedLaunch] = []
        self._code = code
        self._device = device
        self._counts: dict[tuple, model.Counts] = {}
        self._sizes = ""
        self._call: tuple = ()
        self._lets_next_start = False  # whether the previous launch does

    def _run_emulated(self, name: str, arguments: tuple, keywords: dict[str, Any]) -> Any:
        tensors = [leaf for leaf in tree_leaves((arguments, keywords)) if isinstance(leaf, Tensor)]
        self._sizes = ", ".join("x".join(map(str, tensor.shape)) for tensor in tensors[:2])
        self._call = tuple(
            (leaf.shape, leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else leaf
            for leaf in tree_leaves((arguments, keywords))
        )
        return super()._run_emulated(name, arguments, keywords)

    def _memory(self, tensor: Tensor) -> Tensor:
        memory = memory_like(tensor)
        return memory.normal_(std=0.5) if memory.is_floating_point() else memory

    def _record(self, record: KernelLaunch) -> bool:
        sizes = record.grid, record.block, record.shared_bytes
        launch = Launch(plain_name(record.kernel), *sizes, record.parameters, record.cluster, record.programmatic)
        key = launch.kernel, *sizes, record.cluster, self._call
        if key not in self._counts:
            if launch.kernel not in self._code.kernels:
                raise LookupError(f"network: {launch.kernel} is not a kernel of {' or '.join(OPERATORS)}")
            kernel = self._code.kernels[launch.kernel]
            blocks = some_blocks(launch)
            machine = Machine(kernel.function, launch, blocks, process_memory(), kernel.shared_bytes)
            self._counts[key] = model.count(Execution(launch, kernel, blocks, machine.run()), self._device)
        counts = self._counts[key]
        found = model.predict(counts, self._device, 0.0, overlaps=self._lets_next_start)
        self._lets_next_start = counts.opcodes["PREEXIT"] > 0
        self.predictions.append(PredictedLaunch(record.op, launch.kernel, self._sizes, found.seconds, found.bottleneck))
        return super()._record(record)


def predict_network(name: str, device: model.Device = model.H200) -> list[PredictedLaunch]:
    """The launches of a deployed network in float16 for one image, with their predicted times.

    Args:
        name: the name of a model, such as "danet_s".
        device: the GPU; of compute capability 9.0.
    """
    torch.manual_seed(0)
    network, images = deployed_network(name)
    with torch.no_grad(), LaunchPredictor(compile_operators(OPERATORS), device) as predictor:
        network(images)
    if len(predictor.predictions) != len(predictor.launches):
        raise LookupError("network: torch's operators launch kernels, which the model cannot predict")
    return predictor.predictions


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="danet", choices=("danet", "danet_s"), help="name of the model")
    parser.add_argument("--list", action="store_true", help="print every launch")
    options = parser.parse_args()
    launches = predict_network(options.model)
    if options.list:
        for launch in launches:
            print(f"{launch.seconds * 1e6:>7.1f} us  {launch.bottleneck:<10} {launch.kernel}  {launch.sizes}")
    by_kernel: dict[str, list[float]] = defaultdict(list)
    for launch in launches:
        by_kernel[launch.kernel].append(launch.seconds)
    for kernel, seconds in sorted(by_kernel.items(), key=lambda item: -sum(item[1])):
        print(f"{sum(seconds) * 1e6:>7.1f} us  {len(seconds):>3} x {kernel}")
    total = sum(launch.seconds for launch in launches)
    print(
        f"{total * 1e6:>7.1f} us  {options.model}, {len(launches)} launches for one image of "
        f"{FRAME_SIZE[0]} x {FRAME_SIZE[1]}, predicted for an H200"
    )


if __name__ == "__main__":
    main()
