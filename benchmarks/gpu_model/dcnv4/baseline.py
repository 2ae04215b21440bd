"""Compiles DCNv4's kernels from a checkout, and executes their machine code with the launches that DCNv4 chooses."""

import ast
import struct
from pathlib import Path

import torch

from benchmarks.gpu_model.dcnv4.shapes import OFFSET_SCALE, Shape
from benchmarks.gpu_model.kernels import Execution, Kernel, compile_cubin, process_memory
from benchmarks.gpu_model.machine import Launch, Machine
from benchmarks.gpu_model.sampling import some_blocks

HERE = Path(__file__).parent
SOURCES = Path("DCNv4_op/src/cuda")
TABLES = Path("DCNv4_op/DCNv4/functions/table.py")

Launches = dict[tuple[str, str], tuple[int, int]]


def compile_kernels(checkout: Path, folder: Path) -> Path:
    """The cubin of the kernels that DCNv4 launches for float16 and 3x3 windows without softmax."""
    flags = tuple(f"-I{path}" for path in (HERE / "include", checkout.resolve() / SOURCES))
    return compile_cubin(HERE / "kernels.cu", folder / "dcnv4", (*flags, "-w"))


def tuned_launches(checkout: Path) -> Launches:
    """DCNv4's tables of launches, by direction and shape: channels per thread, and threads per block."""
    tables = {}
    for statement in ast.parse((checkout / TABLES).read_text()).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            tables[statement.targets[0].id] = ast.literal_eval(statement.value)
    return {
        (direction, shape): (values[0], values[1])
        for direction, table in (("forward", "TABLE"), ("backward", "BWDTABLE"))
        for shape, values in tables[table].items()
    }


def choose_launch(shape: Shape, direction: str, tuned: Launches) -> tuple[int, int]:
    """Channels per thread, and output pixels per block, as ``dcnv4_func.py`` of DCNv4 chooses them."""
    found = tuned.get((direction, str(shape)))
    if found is not None:
        per_thread, threads = found
        return per_thread, threads // (shape.channels // per_thread) // shape.groups
    if direction == "forward":
        per_thread, most_threads = 8, 512
    else:
        per_thread, most_threads = 2 if shape.channels >= 64 else 1, 256
    pixels, threads_per_pixel = shape.N * shape.H * shape.W, shape.groups * shape.channels // per_thread
    fitting = [m for m in range(1, 65) if pixels % m == 0 and m * threads_per_pixel <= most_threads]
    return per_thread, max(fitting, default=1)


def execute(shape: Shape, direction: str, kernels: dict[str, Kernel], tuned: Launches) -> Execution:
    """Execute some blocks of DCNv4's launch for a shape."""
    per_thread, pixels = choose_launch(shape, direction, tuned)
    input, packed = shape.tensors()
    # A block whose pixels are those of two images reads and writes past the first one. Spare images keep this inside.
    spare = [torch.zeros_like(tensor[:1]) for tensor in (input, packed)]
    input, packed = torch.cat([input, spare[0]]), torch.cat([packed, spare[1]])
    transfer = {1: "atHalf", 2: "unsigned int", 4: "uint2", 8: "uint4", 16: "ulonglong4"}[per_thread]
    prefix = "forward_kernel_dcn_reg" if direction == "forward" else "backward_kernel_dcn_warp_primitive"
    kernel = kernels[f"{prefix}<atHalf, {per_thread}, {transfer}, 1, 9, false>"]
    grad_output, grad_input = torch.randn_like(input), torch.zeros_like(input, dtype=torch.float32)
    grad_offset = torch.zeros_like(packed, dtype=torch.float32)
    third = grad_output  # the output of the forward pass has the same shape
    sizes = (shape.groups, shape.channels, shape.H * shape.W, 3, 3, 1, 1, 1, 1, 1, 1, *(shape.H, shape.W) * 2)
    data = struct.pack("3Q15if2i", *_addresses(input, packed, third), *sizes, OFFSET_SCALE, 0, pixels)
    if direction == "backward":
        data += struct.pack("2Q", *_addresses(grad_input, grad_offset))
    data += struct.pack("i", shape.offset_channels)
    block = (shape.channels // per_thread, shape.groups, pixels)
    shared = 0 if direction == "forward" else 4 * shape.groups * pixels * 9 * 2
    grid = (shape.N * shape.H * shape.W // pixels, 1, 1)
    launch = Launch(prefix, grid, block, shared, data)
    blocks = some_blocks(launch)
    machine = Machine(kernel.function, launch, blocks, process_memory(), kernel.shared_bytes)
    return Execution(launch, kernel, blocks, machine.run())


def _addresses(*tensors: torch.Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def bytes(shape: Shape, direction: str) -> float:
    """The bytes that device memory must move: backward writes the gradient of the offsets in float32."""
    extra = 2.0 * shape.N * shape.H * shape.W * shape.offset_channels if direction == "backward" else 0.0
    return shape.bytes(direction) + extra
