"""Runs any CUDA program on the CPU, with the race checker: ``python -m emulation.program FILE.cu``, from tests/.

The program is one .cu file with kernels and ``main``, as nvcc compiles it. README.md lists the modes, and the part of
CUDA that is supported. The exit code is 1 if the program is wrong: the checker has reports, the emulator or a sanitizer
stopped it, or the program itself ended with an error.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parent
ROOT = SOURCE.parents[1]
SANITIZE = ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize=vptr"]
KERNEL_FLAGS = {
    "plain": ["-O2", "-g1"],
    "check": ["-O1", "-g", "-fsanitize=thread", "-Wno-tsan", "-DEMULATION_CHECKED"],
    "sanitize": [*SANITIZE, "-fno-sanitize-recover=all"],
}
"""The flags of CMakeLists.txt, by mode."""


class UnsupportedSource(Exception):
    """The source has something that the emulator cannot run."""


def translated(source: str) -> str:
    """CUDA's language extensions as C++ for emulation.h. Line breaks stay where they are.

    Raises:
        UnsupportedSource: with the line and the text that is not supported.
    """
    code = _without_comments(source)
    if found := re.search(r"\b(?:cooperative_groups\b|cudaLaunch\w+|cudaGraph\w*|asm\s*(?:volatile)?\s*\()", code):
        raise UnsupportedSource(f"line {_line(code, found.start())}: {found[0]} is not supported")
    code = re.sub(r"\bextern\s+__shared__\s+([^;\[]+?)(\w+)\s*\[\s*\]\s*;", _dynamic_shared, code)
    code = re.sub(r"\b(?:static\s+)?__shared__\s+([^;]+);", lambda m: _static_shared(m[1]), code)
    return _with_launches(code)


def _without_comments(source: str) -> str:
    """The source with spaces in place of comments; strings stay."""
    pattern = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\''
    return re.sub(pattern, lambda m: m[0] if m[0][0] in "\"'" else re.sub(r"[^\n]", " ", m[0]), source, flags=re.DOTALL)


def _dynamic_shared(match: re.Match) -> str:
    element = re.sub(r"\b(?:volatile|__align__\s*\([^)]*\)|alignas\s*\([^)]*\))\s*", "", match[1]).strip()
    return f"{element}* {match[2]} = static_cast<{element}*>(::emulation::dynamic_shared());"


def _static_shared(declaration: str) -> str:
    """`float a[4][32], b` -> a declaration for every variable."""
    declaration = re.sub(r"__align__\s*\([^)]*\)|alignas\s*\([^)]*\)", "", declaration)
    first, *others = _split(declaration)
    found = re.fullmatch(r"\s*(.+?[\s>])\s*(\w+)\s*((?:\[[^\]]*\]\s*)*)", first, re.DOTALL)
    variables = [found, *(re.fullmatch(r"(\s*)(\w+)\s*((?:\[[^\]]*\]\s*)*)", other) for other in others)]
    if found is None or None in variables:
        raise UnsupportedSource(f"__shared__ {' '.join(declaration.split())}; is not supported")
    element = found[1].strip()
    return " ".join(f"EMULATION_SHARED({m[2]}, {element}{m[3]});" for m in variables if m is not None)


def _with_launches(code: str) -> str:
    """Every `kernel<<<sizes>>>(` as `::emulation::configure(kernel, sizes)(`."""
    parts, place = [], 0
    while (begin := code.find("<<<", place)) >= 0:
        end = code.find(">>>", begin)
        kernel = re.search(r"[A-Za-z_][\w:]*\s*(?:<[^<>;{}]*>)?\s*$", code[place:begin])
        if end < 0 or kernel is None:
            raise UnsupportedSource(f"line {_line(code, begin)}: a launch that is not kernel<<<...>>>(...)")
        parts += [code[place : place + kernel.start()], f"::emulation::configure({kernel[0]}, {code[begin + 3 : end]})"]
        place = end + 3
    return "".join([*parts, code[place:]])


def _line(code: str, place: int) -> int:
    return code.count("\n", 0, place) + 1


def _split(text: str) -> Iterator[str]:
    """The parts of a list, at commas outside of brackets."""
    depth, begin = 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "<([{") - (letter in ">)]}")
        if letter == "," and depth == 0:
            yield text[begin:place]
            begin = place + 1
    yield text[begin:]


EMULATOR = ("fibers.cpp", "launches.cpp", "matrices.cpp", "memory.cpp", "waiting.cpp")  # as in CMakeLists.txt


def build(source: Path, mode: str, defines: list[str]) -> Path:
    """Compile a program for the emulator; the result is an executable file in build/programs."""
    folder = ROOT / "build/programs" / mode / source.stem
    folder.mkdir(parents=True, exist_ok=True)
    translation = folder / f"{source.stem}.cpp"
    translation.write_text(f'#line 1 "{source}"\n' + translated(source.read_text()))
    compiler = [shutil.which("g++") or "g++", "-std=c++17", "-DDANET_EMULATION", "-Wno-unknown-pragmas"]
    includes = [f"-I{path}" for path in (SOURCE / "programs", SOURCE, ROOT / "csrc/common", source.parent)]
    flags = KERNEL_FLAGS[mode]
    host = flags if mode == "sanitize" else ["-O2", "-g1", *(["-DEMULATION_CHECKED"] if mode == "check" else [])]
    # reports.cpp comes last: what it runs at the end of the program reads objects of the other files, and objects are
    # destroyed in the reverse of this order.
    own = [*EMULATOR, *(["checker.cpp"] if mode == "check" else []), "programs/reports.cpp"]
    newest = max(path.stat().st_mtime for path in SOURCE.rglob("*.[ch]*"))
    objects = []
    for name in own:
        objects.append(folder.parent / Path(name).with_suffix(".o").name)
        if not objects[-1].exists() or objects[-1].stat().st_mtime < newest:
            _run([*compiler, *host, *includes, "-c", SOURCE / name, "-o", objects[-1]])
    objects.append(folder / f"{source.stem}.o")
    given = [f"-D{define}" for define in defines]
    kernel = [*flags, "-fno-optimize-sibling-calls", "-include", "cuda_runtime.h", *given]
    _run([*compiler, *kernel, *includes, "-c", translation, "-o", objects[-1]])
    program = folder / source.stem
    link = ["-fsanitize=address,undefined"] if mode == "sanitize" else []
    _run([*compiler, *link, *objects, "-ldl", "-o", program])
    return program


def _run(command: list[str | Path]) -> None:
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"emulation.program: the compiler failed:\n{done.stderr}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m emulation.program", description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, help="the program, FILE.cu")
    parser.add_argument("--mode", choices=KERNEL_FLAGS, default="check", help="see README.md (default: check)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 7], help="orders of blocks and threads to run")
    parser.add_argument("-D", dest="defines", action="append", default=[], metavar="NAME", help="define a macro")
    options = parser.parse_args(arguments)
    if not options.file.is_file():
        parser.error(f"{options.file}: no such file")
    try:
        program = build(options.file.resolve(), options.mode, options.defines)
    except UnsupportedSource as error:
        raise SystemExit(f"emulation.program: {options.file}: {error}") from None
    failed = False
    for seed in options.seeds:
        environment = {**os.environ, "EMULATION_SEED": str(seed), "ASAN_OPTIONS": "detect_leaks=0"}
        code = subprocess.run([program], env=environment).returncode
        print(f"seed {seed}: {'passed' if code == 0 else f'failed with exit code {code}'}", flush=True)
        failed |= code != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
