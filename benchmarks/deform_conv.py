"""Measures ``deform_conv2d`` beside torchvision and ONNX Runtime: ``python -m benchmarks.deform_conv [--cpu_time]``.

torchvision and onnxruntime (1.25 or newer) are measured if they are installed.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.timing import alternate
from danet.ops import deform_conv2d

CASES = {
    # C, C_out, H, W, offset groups, weight groups
    "dense, 64 to 64": (64, 64, 64, 80, 1, 1),
    "dense, 128 to 128": (128, 128, 32, 40, 4, 1),
    "dense, 256 to 256": (256, 256, 16, 20, 1, 1),
    "depth-wise, 64": (64, 64, 64, 80, 4, 64),
    "depth-wise, 128": (128, 128, 32, 40, 4, 128),
    "4 groups, 64 to 64": (64, 64, 64, 80, 1, 4),
}


def onnxruntime_deform_conv(x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor, threads: int) -> Callable | None:
    """ONNX Runtime's DeformConv with padding 1, or None if it is not installed."""
    try:
        import onnx
        import onnxruntime
    except ImportError:
        return None
    C_out, C_group, side, _ = weight.shape
    tensors = {"x": x, "weight": weight, "offset": offset, "bias": torch.zeros(C_out), "mask": mask}
    groups = {"group": x.shape[1] // C_group, "offset_group": offset.shape[1] // (2 * side**2)}
    node = onnx.helper.make_node("DeformConv", list(tensors), ["out"], kernel_shape=[side] * 2, pads=[1] * 4, **groups)
    shapes = {**{name: list(t.shape) for name, t in tensors.items()}, "out": [x.shape[0], C_out, *x.shape[2:]]}
    infos = [onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items()]
    graph = onnx.helper.make_graph([node], "deform_conv", infos[:-1], infos[-1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 22)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    arrays = {name: t.contiguous().numpy() for name, t in tensors.items()}
    return lambda: torch.from_numpy(session.run(None, arrays)[0])


def backward_of(function: Callable, tensors: list[Tensor]) -> Callable[[], object]:
    """The backward pass alone, for a gradient in the memory format of the result."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    out = function(*leaves)
    grad_output = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, leaves, grad_output, retain_graph=True)


def least_cpu_time(functions: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """The least CPU time in seconds of one call, which other programs disturb less than the elapsed time."""
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(repetitions):
        for name, function in functions.items():
            function()
            begin = time.process_time()
            function()
            best[name] = min(best[name], time.process_time() - begin)
    return best


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deform_conv", description=__doc__)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--repetitions", type=int, default=30, help="measurements per function")
    parser.add_argument("--cpu_time", action="store_true", help="compare CPU times; use it with --threads 1")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    try:
        from torchvision.ops import deform_conv2d as torchvision
    except ImportError:
        torchvision = None

    def measure(case: str, direction: str, functions: dict[str, Callable[[], object]]) -> None:
        if options.cpu_time:
            times = least_cpu_time(functions, options.repetitions)
        else:
            times = alternate(functions, repetitions=options.repetitions)
        ratios = ", ".join(f"{times[name] / times['danet']:.1f}x {name}" for name in times if name != "danet")
        print(f"{case:<20} {direction:<9} {times['danet'] * 1e3:8.2f} ms   {ratios}", flush=True)

    for case, (C, C_out, H, W, G, groups) in CASES.items():
        x, offset, mask = torch.randn(1, C, H, W), torch.randn(1, 18 * G, H, W), torch.rand(1, 9 * G, H, W)
        weight = torch.randn(C_out, C // groups, 3, 3) * 0.1
        last = [t.contiguous(memory_format=torch.channels_last) for t in (x, offset, mask)]
        ours = lambda x, o, m, w: deform_conv2d(x, o, w, padding=1, mask=m)  # noqa: E731
        theirs = lambda x, o, m, w: torchvision(x, o, w, padding=1, mask=m)  # noqa: E731
        forward: dict[str, Callable[[], object]] = {"danet": lambda: ours(*last, weight)}  # noqa: B023
        backward = {"danet": backward_of(ours, [*last, weight])}
        if torchvision is not None:
            forward["torchvision"] = lambda: theirs(x, offset, mask, weight)  # noqa: B023
            backward["torchvision"] = backward_of(theirs, [x, offset, mask, weight])
        runtime = onnxruntime_deform_conv(x, offset, weight, mask, options.threads)
        if runtime is not None:
            forward["onnxruntime"] = runtime
        for name, function in forward.items():
            torch.testing.assert_close(function(), forward["danet"](), rtol=1e-3, atol=1e-3, msg=f"{case}: {name}")
        with torch.no_grad():
            measure(case, "forward", forward)
        measure(case, "backward", backward)


if __name__ == "__main__":
    main()
