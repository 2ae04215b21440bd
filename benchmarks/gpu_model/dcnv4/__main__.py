"""Compares danet.ops.dcnv4 with DCNv4's kernels, as the performance model predicts both; no GPU is needed.

    git clone https://github.com/OpenGVLab/DCNv4 PATH
    python -m benchmarks.gpu_model.dcnv4 PATH                    all shapes, forward and backward
    python -m benchmarks.gpu_model.dcnv4 PATH 64x56x56           the shapes whose name contains a text

The exit code is 1 if our kernel is predicted to be slower in one shape.
"""

import argparse
from pathlib import Path

from benchmarks.gpu_model import model
from benchmarks.gpu_model.cases import compile_operators
from benchmarks.gpu_model.dcnv4 import baseline
from benchmarks.gpu_model.dcnv4.shapes import SHAPES, call_ours
from benchmarks.gpu_model.kernels import FOLDER, Cubin
from benchmarks.gpu_model.sampling import some_blocks


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_model.dcnv4",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkout", type=Path, help="a checkout of https://github.com/OpenGVLab/DCNv4")
    parser.add_argument("filter", nargs="?", default="", help="part of the names of the shapes")
    parser.add_argument("--device", choices=("H100", "H200"), default="H200")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where compiled kernels are kept")
    options = parser.parse_args()
    if not (options.checkout / baseline.SOURCES).is_dir():
        parser.error(f"{options.checkout}: must be a checkout of DCNv4, but has no folder {baseline.SOURCES}")
    device = model.H100 if options.device == "H100" else model.H200
    ours = compile_operators(["sdc"], options.folder)
    theirs = Cubin(baseline.compile_kernels(options.checkout, options.folder)).kernels
    tuned = baseline.tuned_launches(options.checkout)
    header = f"{'N x H x W x groups x channels':<30}{'DCNv4 us':>10}{'ours us':>9}{'ratio':>7}"
    print(f"{header}  {'bottleneck of DCNv4':<20}bottleneck of ours")
    slower = 0
    for shape in SHAPES:
        for direction in ("forward", "backward"):
            name = f"{shape} {direction}"
            if options.filter not in name:
                continue
            other = model.predict(
                model.count(baseline.execute(shape, direction, theirs, tuned)), device, baseline.bytes(shape, direction)
            )
            with ours.running(some_blocks) as executions:
                call_ours(shape, direction)
            (execution,) = executions
            own = model.predict(model.count(execution), device, shape.bytes(direction))
            slower += own.seconds >= other.seconds
            print(
                f"{name:<30}{other.seconds * 1e6:>10.1f}{own.seconds * 1e6:>9.1f}"
                f"{other.seconds / own.seconds:>7.2f}  {other.bottleneck:<20}{own.bottleneck}",
                flush=True,
            )
    if slower:
        print(f"ours is slower in {slower} cases")
    return int(slower > 0)


if __name__ == "__main__":
    raise SystemExit(main())
