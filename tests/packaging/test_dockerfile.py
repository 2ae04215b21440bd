"""The Dockerfile: its steps run in plain folders, one for each stage, with new environments instead of base images.

Steps that install packages of the system are left out: the machine that runs the tests has a compiler.
"""

import os
import shlex
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
BASE_IMAGE = "python:3.12-slim"


def read_instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, such as ("RUN", "pip install ...")."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line and not line.startswith("#")]


def copied_files() -> list[Path]:
    """The files of the repository that .dockerignore leaves in the build context."""
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    kept = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    tracked = subprocess.run(["git", "ls-files", *kept], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(line) for line in tracked.splitlines()]


class Stage:
    """A stage of the build: a folder that stands for its file system, and an environment for its Python."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.work = self.root
        venv.create(folder / "venv", with_pip=True)
        path = os.pathsep.join([str(folder / "venv/bin"), os.environ["PATH"]])
        # torch and the other dependencies are those of this environment, so that the test downloads little.
        packages = next((folder / "venv/lib").glob("python3*")) / "site-packages"
        (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self.environment = {**os.environ, "PATH": path, "VIRTUAL_ENV": str(folder / "venv")}

    def copy(self, words: list[str], stages: dict[str, "Stage"]) -> None:
        if words[0].startswith("--from="):
            source = stages[words[0].removeprefix("--from=")].root / words[1].lstrip("/")
            shutil.copytree(source, self.root / words[2].lstrip("/"))
            return
        assert words == [".", "."]
        for path in copied_files():
            (self.work / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, self.work / path)

    def run(self, command: str) -> str:
        command = command.replace(" /wheels", f" {self.root}/wheels")
        result = subprocess.run(
            ["bash", "-ec", command], cwd=self.work, capture_output=True, text=True, timeout=1800, env=self.environment
        )
        assert result.returncode == 0, f"{command}\n{result.stdout[-3000:]}{result.stderr[-3000:]}"
        return result.stdout


@pytest.mark.long
def test_dockerfile_steps_give_a_working_command(tmp_path):
    stages: dict[str, Stage] = {}
    stage = None
    entrypoint = None
    for instruction, text in read_instructions():
        if instruction == "FROM":
            image, *name = text.replace(" AS ", " ").split()
            assert image == BASE_IMAGE
            name = name[0] if name else "final"
            stage = stages[name] = Stage(tmp_path / name)
            stage.root.mkdir()
        elif instruction == "ARG":
            assert text.startswith("TORCH=")
            stage.environment["TORCH"] = "torch"  # as with docker build --build-arg
        elif instruction == "WORKDIR":
            stage.work = stage.root / text.lstrip("/")
            stage.work.mkdir()
        elif instruction == "COPY":
            stage.copy(text.split(), stages)
        elif instruction == "RUN":
            if not text.startswith("apt-get"):
                stage.run(text)
        elif instruction == "ENTRYPOINT":
            entrypoint = eval(text)
        else:
            assert instruction in ("ENV", "CMD")

    # Run the image's command on an image in its working folder, as `docker run --volume` does.
    cv2.imwrite(str(stage.work / "frame.png"), np.full((64, 96), 90, np.uint8))
    printed = stage.run(shlex.join([*entrypoint, "detect", "frame.png", "--device", "cpu"]))
    assert "compiled operators" in printed and (stage.work / "runs/detect/frame.png").is_file()
    assert "danet" in stage.run("python -c 'import danet; print(danet.__file__)'")
