"""The documentation matches the code: its Python blocks run, and the commands, files and tests that it names exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from scenes import write_scenes

from danet.__main__ import main
from danet.data.coco_dataset import load_coco, write_coco

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = "tests|csrc|danet|benchmarks|experiments|build_tools|tools|examples|include"


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


EXAMPLES = [
    block for page in PAGES for block in blocks(page, "python") if re.search(r"^(from|import) danet", block, re.M)
]


@pytest.mark.long
def test_docs_python_examples_run(tmp_path):
    """Runs all examples in one new process, outside the repository."""
    cv2.imwrite(str(tmp_path / "frame.png"), np.full((64, 80), 90, np.uint8))
    for name in ("train", "val"):  # the synthetic scenes of "Getting started"
        scenes = load_coco(write_scenes(tmp_path / f"data/demo/{name}", 8))
        write_coco(tmp_path / f"data/demo/{name}.json", scenes.records, ["drone", "bird"])
    code = "\n".join(EXAMPLES)
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"],
        capture_output=True, text=True, timeout=300, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert len(EXAMPLES) >= 7


def unroll_loop(loop: re.Match) -> str:
    return "".join(loop[3].replace(f"${loop[1]}", word) for word in loop[2].split())


def commands() -> list[str]:
    """All danet commands of the shell blocks, without comments, with loops unrolled."""
    text = "\n".join(block for page in PAGES for block in blocks(page, "sh")).replace("\\\n", " ")
    text = re.sub(r"^for (\w+) in ([^;]+); do\n(.*?)^done$", unroll_loop, text, flags=re.DOTALL | re.MULTILINE)
    lines = [re.sub(r" +# .*", "", line).strip() for line in text.splitlines()]
    return sorted({line for line in lines if line.startswith("danet ") and "$" not in line and "--resume" not in line})


@pytest.mark.parametrize("command", commands())
def test_docs_commands_have_known_options(command, capsys):
    words = shlex.split(command)[1:]
    names = 2 if words[0] == "data" else 1
    names += words[:2] == ["data", "import"]
    with pytest.raises(SystemExit) as ended:
        sys.exit(main([*words[:names], "--print_config", *words[names:]]))
    assert ended.value.code in (None, 0), capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_docs_named_files_and_tests_exist(page):
    for name in re.findall(rf"`((?:{FOLDERS})/[\w./-]+?)(?:::(\w+))?`", page.read_text()):
        path, test = ROOT / name[0], name[1]
        assert path.exists() or "NAME" in name[0], name
        assert not test or re.search(rf"^def {test}\(", path.read_text(), re.MULTILINE), name


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_docs_result_files_exist(page):
    """Files of measurements are named without their folder in the tables "Raw data"."""
    raw_data = page.read_text().partition("## Raw data")[2]
    for name in re.findall(r"`([\w-]+\.json)`", raw_data):
        assert any(path for folder in ("benchmarks", "experiments") for path in (ROOT / folder).rglob(name)), name


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_docs_relative_links_resolve(page):
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([\w-]+))?\)", page.read_text()):
        path = page.parent / target if target else page
        assert path.exists(), target
        titles = re.findall(r"^#+ (.*)", path.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], (
            anchor
        )


def test_docs_pages_open_with_their_purpose():
    """Every page but the home page and the API says first what its reader can do after reading it."""
    for page in (ROOT / "docs").glob("*.md"):
        paragraph = page.read_text().split("\n\n")[1]
        assert page.name == "index.md" or paragraph.startswith("After reading this page you "), page.name
