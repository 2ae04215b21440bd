"""Renames a wheel to the manylinux tag that auditwheel determines for it: python build_tools/manylinux.py WHEEL

Replaces `auditwheel repair`, which would copy shared libraries into the wheel. None must be copied: all libraries that
do not belong to the system belong to torch, which is loaded first.
"""

import sys
from pathlib import Path

TORCH_LIBRARIES = frozenset({"libtorch_cpu.so", "libtorch_cuda.so"})


def retag(wheel: Path) -> Path:
    """Replace the wheel by one with the manylinux tag, and return its path."""
    try:
        from auditwheel.wheel_abi import analyze_wheel_abi
        from auditwheel.wheeltools import InWheelCtx, add_platforms, get_wheel_platforms
    except ImportError:
        raise SystemExit("danet: auditwheel is needed for the manylinux tag; pip install auditwheel") from None
    if not wheel.is_file():
        raise SystemExit(f"danet: {wheel}: file not found; build the wheel first: make wheel")

    found = analyze_wheel_abi(None, None, wheel, TORCH_LIBRARIES, disable_isa_ext_check=False, allow_graft=False)
    policy = found.overall_policy
    if not policy.name.startswith(("manylinux", "musllinux")):
        raise SystemExit(f"danet: {wheel.name} fits no manylinux tag; for the reason run: auditwheel show {wheel}")
    with InWheelCtx(wheel, wheel) as context:
        context.out_wheel = add_platforms(context, [policy.name, *policy.aliases], get_wheel_platforms(wheel.name))
        renamed = context.out_wheel
    if renamed != wheel:
        wheel.unlink()
    return renamed


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python build_tools/manylinux.py WHEEL")
    print(retag(Path(sys.argv[1])))
