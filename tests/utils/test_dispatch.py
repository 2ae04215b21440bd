import pytest

from danet.__main__ import main


@pytest.mark.parametrize(
    ("words", "listed"),
    [
        ([], ["data", "train", "evaluate", "ablate", "report", "detect"]),
        (["data"], ["import", "split", "synthesize", "inspect"]),
        (["data", "import"], ["coco", "yolo", "voc", "masks", "svanstrom"]),
    ],
)
def test_dispatch_lists_names_and_rejects_unknown_ones(words, listed, capsys):
    assert main([*words, "--help"]) == 0
    output = capsys.readouterr().out
    assert all(f"\n  {name}" in output for name in listed)
    for wrong in (["nonsense"], []):
        assert main([*words, *wrong]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1
        assert ", ".join(listed) in captured.err and captured.err.startswith(" ".join(["danet", *words]) + ": error")


def test_dispatch_passes_the_other_words_to_the_command(capsys):
    assert main(["data", "inspect", "--edgse", "3"]) == 2
    assert "danet data inspect: error: unknown option --edgse; did you mean --edges?" in capsys.readouterr().err
