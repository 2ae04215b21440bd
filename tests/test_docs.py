"""The documentation keeps its word: its Python runs, and the tests and files that it names are there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from danet.__main__ import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


EXAMPLES = [
    block for page in PAGES for block in blocks(page, "python") if re.search(r"^(from|import) danet", block, re.M)
]


def test_python_examples_run(tmp_path):
    """In a process of their own, outside of the repository's folder."""
    cv2.imwrite(str(tmp_path / "frame.png"), np.full((64, 80), 90, np.uint8))
    code = "\n".join(EXAMPLES)
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"],
        capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert len(EXAMPLES) >= 7


def unrolled(loop: re.Match) -> str:
    return "".join(loop[3].replace(f"${loop[1]}", word) for word in loop[2].split())


def commands() -> list[str]:
    """The lines that call danet, without comments, those of loops for every word of the loop."""
    text = "\n".join(block for page in PAGES for block in blocks(page, "sh")).replace("\\\n", " ")
    text = re.sub(r"^for (\w+) in ([^;]+); do\n(.*?)^done$", unrolled, text, flags=re.DOTALL | re.MULTILINE)
    lines = [re.sub(r" +# .*", "", line).strip() for line in text.splitlines()]
    return sorted({line for line in lines if line.startswith("danet ") and "$" not in line and "--resume" not in line})


@pytest.mark.parametrize("command", commands())
def test_commands_have_the_options_that_they_are_given(command, capsys):
    words = shlex.split(command)[1:]
    names = 2 if words[0] == "data" else 1
    names += words[:2] == ["data", "import"]
    with pytest.raises(SystemExit) as ended:
        sys.exit(main([*words[:names], "--print_config", *words[names:]]))
    assert ended.value.code in (None, 0), capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page):
    for name in re.findall(r"`((?:tests|csrc|danet|benchmarks)/[\w./]+?)(?:::(\w+))?`", page.read_text()):
        path, test = ROOT / name[0], name[1]
        assert path.exists() or "NAME" in name[0], name
        assert not test or re.search(rf"^def {test}\(", path.read_text(), re.MULTILINE), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_documentation_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([\w-]+))?\)", page.read_text()):
        path = page.parent / target if target else page
        assert path.exists(), target
        titles = re.findall(r"^#+ (.*)", path.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], (
            anchor
        )
