"""Prints the predicted time of every kernel on an H100 and an H200; needs nvcc, cuobjdump, g++ and no GPU.

    python -m benchmarks.gpu_model                        all cases
    python -m benchmarks.gpu_model "sdc forward"          the cases whose name contains a text
    python -m benchmarks.gpu_model --bounds "sdc"         also the time that each resource needs

The exit code is 1 if a kernel exceeds its budget.
"""

import argparse
from pathlib import Path

from benchmarks.gpu_model import cases, model
from benchmarks.gpu_model.kernels import FOLDER
from benchmarks.gpu_model.operands import UnsupportedCode


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("filter", nargs="?", default="", help="part of the names of the cases")
    parser.add_argument("--bounds", action="store_true", help="also print the time that each resource needs on an H200")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where compiled kernels are kept")
    options = parser.parse_args()
    names = [name for name in cases.CASES if options.filter in name]
    code = cases.compile_operators(sorted(set(map(cases.operator_of, names))), options.folder)
    results = []
    for name in names:
        try:
            results.append(cases.predict(cases.CASES[name](), code))
        except UnsupportedCode as error:
            parser.error(
                f"{name}: the performance model does not support {error}; see benchmarks/gpu_model/operands.py"
            )
    print("\n".join(cases.rows(results)))
    if options.bounds:
        for result in results:
            for counts, prediction in zip(result.counts, result.predictions[model.H200.name], strict=True):
                times = sorted(prediction.bounds.items(), key=lambda item: -item[1])
                text = ", ".join(f"{name} {seconds * 1e6:.1f}" for name, seconds in times if seconds > 1e-7)
                issue = "/".join(f"{value:.0f}" for value in counts.issue)
                print(f"{result.case.name}: us on an H200: {text}; issue a block {issue}")
    failures = [failure for result in results for failure in result.failures()]
    print("\n".join(failures))
    return int(bool(failures))


if __name__ == "__main__":
    raise SystemExit(main())
