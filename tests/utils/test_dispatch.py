import pytest

import danet
from danet.__main__ import main


@pytest.mark.parametrize(
    ("words", "listed"),
    [
        ([], ["data", "train", "evaluate", "compare", "ablate", "report", "detect", "track"]),
        (["data"], ["import", "split", "synthesize", "inspect"]),
        (["data", "import"], ["coco", "yolo", "voc", "masks", "svanstrom"]),
    ],
)
def test_dispatch_lists_names_and_rejects_unknown_ones(words, listed, capsys):
    for asked in ([], ["--help"], ["-h"], ["help"]):
        assert main([*words, *asked]) == 0
        output = capsys.readouterr().out
        assert all(f"\n  {name}" in output for name in listed)
    assert main([*words, "nonsense"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert ", ".join(listed) in captured.err and captured.err.startswith(" ".join(["danet", *words]) + ": error")


@pytest.mark.parametrize(
    ("words", "suggested"),
    [
        (["trian"], "danet train"),
        (["Detect"], "danet detect"),
        (["eval"], "danet evaluate"),
        (["import", "yolo"], "danet data import"),
        (["data", "imprt"], "danet data import"),
        (["data", "import", "ylo"], "danet data import yolo"),
        ([__file__], f"danet detect {__file__}"),
        (["rtsp://camera"], "danet detect rtsp://camera"),
    ],
)
def test_dispatch_suggests_what_was_meant(words, suggested, capsys):
    assert main(words) == 2
    assert capsys.readouterr().err.endswith(f"; did you mean {suggested}?\n")


@pytest.mark.parametrize(("alias", "name"), [("predict", "detect"), ("val", "evaluate")])
def test_alias_runs_the_command(alias, name, capsys):
    assert main([alias, "--nonsense"]) == 2
    assert capsys.readouterr().err == f"danet {name}: error: unknown option --nonsense\n"
    assert main([]) == 0
    assert f"(also: {alias})" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["help", "train"], ["--help", "train"], ["help", "data", "inspect"]])
def test_help_of_a_command_by_name(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {' '.join(['danet', *words[1:]])} [")


@pytest.mark.parametrize("word", ["version", "--version", "-V"])
def test_version(word, capsys):
    assert main([word]) == 0
    assert capsys.readouterr().out == f"danet {danet.__version__}\n"


def test_dispatch_passes_the_other_words_to_the_command(capsys):
    assert main(["data", "inspect", "--edgse", "3"]) == 2
    assert "danet data inspect: error: unknown option --edgse; did you mean --edges?" in capsys.readouterr().err
