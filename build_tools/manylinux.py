"""Gives a wheel the manylinux tag that auditwheel finds it to be worth: python build_tools/manylinux.py WHEEL

The renamed wheel takes the old one's place. `auditwheel repair` would copy libraries into it; here there are none to
copy: what is not the system's is torch's, which is loaded first and may lie anywhere.
"""

import sys
from pathlib import Path

TORCH = frozenset({"libtorch_cpu.so", "libtorch_cuda.so"})


def retag(wheel: Path) -> Path:
    try:
        from auditwheel.wheel_abi import analyze_wheel_abi
        from auditwheel.wheeltools import InWheelCtx, add_platforms, get_wheel_platforms
    except ImportError:
        raise SystemExit("danet: auditwheel is needed for the manylinux tag; pip install auditwheel") from None
    if not wheel.is_file():
        raise SystemExit(f"danet: {wheel}: no such wheel")

    found = analyze_wheel_abi(None, None, wheel, TORCH, disable_isa_ext_check=False, allow_graft=False)
    policy = found.overall_policy
    if not policy.name.startswith(("manylinux", "musllinux")):
        raise SystemExit(f"danet: {wheel.name} fits no manylinux tag; `auditwheel show {wheel}` says why")
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
