"""Calls the most important kernels twice on a CUDA device, for a profiler: ``ncu python -m benchmarks.hot_calls``."""

import argparse

import torch

from benchmarks.cases import image
from danet.ops import lcdc, rep_conv, sdc, softmax_gate


def main(arguments: list[str] | None = None) -> int:
    """Run the calls; returns the exit code."""
    argparse.ArgumentParser(prog="python -m benchmarks.hot_calls", description=__doc__).parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.hot_calls: no CUDA device")
    torch.set_default_device("cuda")
    for dtype in (torch.bfloat16, torch.float32):
        x, y = (image(8, 64, 128, 160, dtype=dtype).requires_grad_() for _ in range(2))
        predicted = image(8, 108, 128, 160, dtype=dtype)
        offset, mask = (part.detach().requires_grad_() for part in (predicted[:, :72], predicted[:, 72:]))
        layer, kernel = image(1, 256, 16, 20, dtype=dtype), image(256, 256, 3, 3, dtype=dtype)
        for _ in range(2):
            sdc(x, offset, mask, groups=4).sum().backward()
            lcdc(x, torch.ones(1, 3).to(dtype), gate=True)
            softmax_gate(x, y)
            with torch.no_grad():
                rep_conv(layer, kernel)
    torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
