"""Versions and kernels in use, printed by `python -m danet.ops` and at the start of every command."""

import platform

import torch

from danet.ops import library


def info() -> dict[str, str | int]:
    """The versions of Python, torch and CUDA, and which kernels the operators use.

    Keys: python, torch, cuda (runtime version or "none"), operators ("compiled" or "reference"), why (the reason, if
    they are references), instruction_set (of the CPU kernels; DANET_CPU_CAPABILITY=default|avx2|avx512 selects a lower
    one), matrix_unit (what multiplies bfloat16 values in the CPU kernels: "AMX", the vector instructions "AVX512_BF16",
    "AMX, emulated" or "none"; DANET_CPU_CAPABILITY=avx512 switches both off, avx512-bf16 selects AVX512_BF16 instead of
    AMX, amx-emulated selects the emulation), cuda_architectures (of the CUDA kernels, or the reason why there are
    none), threads.

    Example:
        >>> from danet.ops import info
        >>> sorted(info())[:3]
        ['cuda', 'cuda_architectures', 'instruction_set']
    """
    compiled = library.WHY_NOT is None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "operators": "compiled" if compiled else "reference",
        "why": library.WHY_NOT or "",
        "instruction_set": library.CAPABILITIES[torch.ops.danet.cpu_capability()] if compiled else "none",
        "matrix_unit": library.MATRIX_UNITS[torch.ops.danet.matrix_unit()] if compiled else "none",
        "cuda_architectures": _cuda_architectures(),
        "threads": torch.get_num_threads(),
    }


def _cuda_architectures() -> str:
    if library.WHY_NOT_CUDA is not None:
        return f"none: {library.WHY_NOT_CUDA}"
    return library.cuda_fact("architectures").replace("-real", "").replace(",", ", ")


def describe() -> str:
    """The most important entries of `info()` in one line, for logs.

    Example:
        >>> from danet.ops import describe
        >>> describe().startswith("torch ")
        True
    """
    facts = info()
    threads = f"{facts['threads']} thread{'' if facts['threads'] == 1 else 's'}"
    kind = facts["instruction_set"] if facts["operators"] == "compiled" else facts["why"]
    if facts["matrix_unit"] != "none":
        kind = f"{kind}, {facts['matrix_unit']}"
    return f"torch {facts['torch']}, CUDA {facts['cuda']}, {threads}, {facts['operators']} operators ({kind})"
