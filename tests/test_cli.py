from dataclasses import dataclass, field
from typing import Literal

import pytest

from danet import cli
from danet.errors import UserError


@dataclass
class Inner:
    name: Literal["a", "b"] = "a"
    """Which letter."""
    sizes: list[int] | None = None
    """Some sizes in pixels."""


@dataclass
class Options:
    data: list[str]
    """The data."""
    count: int = 5
    """How many."""
    quiet: bool = False
    """Say nothing."""
    inner: Inner = field(default_factory=Inner)


def run(*argv: str) -> tuple[int, list[Options]]:
    seen: list[Options] = []

    def command(options: Options) -> None:
        """Does it.

        With care."""
        if options.count == 13:
            raise UserError("count: 13 brings bad luck")
        seen.append(options)

    return cli.run(command, Options, prog="danet test", positionals=["data"], argv=argv), seen


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["a", "b"], Options(["a", "b"])),
        (["--data", "a", "b", "--count", "3"], Options(["a", "b"], 3)),
        (["a", "--count=3", "--quiet"], Options(["a"], 3, True)),
        (["a", "--quiet", "false"], Options(["a"])),
        (["--quiet", "--data", "a"], Options(["a"], quiet=True)),
        (["a", "--inner.name", "b", "--inner.sizes", "1", "2"], Options(["a"], inner=Inner("b", [1, 2]))),
        (['--data=["a"]', "--inner.sizes=[4]"], Options(["a"], inner=Inner(sizes=[4]))),
    ],
)
def test_what_people_type(argv, expected):
    assert run(*argv) == (0, [expected])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["a", "--cuont", "3"], "unknown option --cuont; did you mean --count?"),
        (["a", "--cou", "3"], "unknown option --cou; did you mean --count?"),
        (["a", "--count", "x"], "--count: Expected a int. Got value: x"),
        (["a", "--inner.name", "z"], "--inner.name: Expected a one of ['a', 'b']. Got value: z"),
        (["a", "--count", "13"], "count: 13 brings bad luck"),
        (["a", "--config", "nowhere.yaml"], "nowhere.yaml"),
        ([], "data"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(argv, message, capsys):
    code, seen = run(*argv)
    error = capsys.readouterr().err
    assert code == 2 and seen == []
    assert error.startswith("danet test: error: ") and message in error
    assert error.count("\n") == 1


def test_a_file_is_overridden_by_what_is_typed_and_dump_reads_back(tmp_path):
    saved = tmp_path / "config.yaml"
    saved.write_text(cli.dump(Options(["a"], 7, inner=Inner("b", [1]))))
    assert run("--config", str(saved)) == (0, [Options(["a"], 7, inner=Inner("b", [1]))])
    assert run("--config", str(saved), "--count", "8") == (0, [Options(["a"], 8, inner=Inner("b", [1]))])


def test_help_explains_each_field(capsys):
    with pytest.raises(SystemExit) as stop:
        run("--help")
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "How many. (type: int, default: 5)" in text and "Some sizes in pixels." in text and "Does it." in text
