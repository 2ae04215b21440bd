"""What the operators run on, for the header of every run: `python -m danet.ops`."""

import platform

import torch


def info() -> dict[str, str | int]:
    """Versions, whether the operators are "reference" or "compiled", and why.

    Keys: python, torch, cuda (runtime version or "none"), operators, why, threads.
    """
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "operators": "reference",
        "why": "this version has no compiled kernels",
        "threads": torch.get_num_threads(),
    }


def describe() -> str:
    """`info()` in one line."""
    facts = info()
    threads = f"{facts['threads']} thread{'' if facts['threads'] == 1 else 's'}"
    return f"torch {facts['torch']}, CUDA {facts['cuda']}, {threads}, {facts['operators']} operators ({facts['why']})"
