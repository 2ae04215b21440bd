"""Runs the kernels of seeded.cu with several seeds.

In mode "sanitize", a bug ends the process, so that test_emulation.py starts this file with ASan:
    python -m emulation.seeded_outcomes MODULE bug|right NAME...
"""

import sys
from pathlib import Path
from types import ModuleType

from emulation.modules import load_module

SEEDS = (0, 1, 7, 8)


def outcomes(module: ModuleType, name: str, bug: bool) -> list[str]:
    """For each seed "ok", "values" (wrong results), "error: ..." or "report: ..."."""
    return [_outcome(module, name, bug, seed) for seed in SEEDS]


def _outcome(module: ModuleType, name: str, bug: bool, seed: int) -> str:
    module.settings.seed = seed
    module.clear_reports()
    try:
        is_right = module.run(name, bug)
    except RuntimeError as error:
        module.clear_reports()
        return f"error: {error}" if module.run("trap", False) else "the next launch does not work"
    reports = module.reports()
    if reports:
        return f"report: {reports[0]}"
    return "ok" if is_right else "values"


if __name__ == "__main__":
    _, path, kind, *names = sys.argv
    seeded = load_module(Path(path))
    for name in names:
        print(*outcomes(seeded, name, kind == "bug"), sep="\n", flush=True)
