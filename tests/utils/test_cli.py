import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from danet.__main__ import main
from danet.detect import DetectOptions
from danet.evaluation.ablate_options import AblateOptions
from danet.evaluation.evaluate_options import EvaluateOptions
from danet.export.__main__ import ExportOptions
from danet.report.__main__ import ReportOptions
from danet.training.options import TrainOptions
from danet.utils import cli
from danet.utils.errors import UserError
from danet.utils.help_page import HelpPage
from danet.utils.suggestions import SYNONYMS
from danet.utils.typed_options import OptionValues, list_options


@dataclass
class Inner:
    name: Literal["a", "b"] = "a"
    """Which letter."""
    sizes: list[int] | None = None
    """Some sizes in pixels."""
    crop: tuple[int, int] | None = None
    """Height and width."""
    scale: tuple[float, float] = (1.0, 2.0)
    """A range."""


@dataclass
class Source:
    path: str
    weight: float = 1.0


@dataclass
class Options:
    data: list[str | Source]
    """The data."""
    count: int = 5
    """How many."""
    quiet: bool = False
    """Say nothing."""
    inner: Inner = field(default_factory=Inner)
    is_small: bool = False


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
        (["--count", "3", "a", "--quiet", "b"], Options(["a", "b"], 3, True)),
        (["--quiet", "true", "a"], Options(["a"], quiet=True)),
        (["a", "--inner.scale", "0.5", "2", "b"], Options(["a", "b"], inner=Inner(scale=(0.5, 2.0)))),
        (["a", "--inner.crop", "64", "96"], Options(["a"], inner=Inner(crop=(64, 96)))),
        (["--inner.crop", "64x96", "a"], Options(["a"], inner=Inner(crop=(64, 96)))),
        (["a", "--inner.crop=64x96"], Options(["a"], inner=Inner(crop=(64, 96)))),
        (["a", "--inner.crop", "null"], Options(["a"])),
        (["a", "--inner.sizes", "64x96"], Options(["a"], inner=Inner(sizes=[64, 96]))),
        (["a", "--inner.sizes", "-1", "2", "--count", "-1"], Options(["a"], -1, inner=Inner(sizes=[-1, 2]))),
        (["--data=a.json"], Options(["a.json"])),
        (["--data", "a", '{"path": "b", "weight": 2}'], Options(["a", Source("b", 2.0)])),
        (['--data=["a"]', "--inner.sizes=[4]"], Options(["a"], inner=Inner(sizes=[4]))),
        (["--data", "a,b", "c"], Options(["a", "b", "c"])),
        (["--data", "a,", "b"], Options(["a", "b"])),
        (["a,b"], Options(["a", "b"])),
        (["--data", "[a,", "b]"], Options(["a", "b"])),
        (["a", "--inner.sizes", "1,2"], Options(["a"], inner=Inner(sizes=[1, 2]))),
        (["a", "--inner.sizes=1,2"], Options(["a"], inner=Inner(sizes=[1, 2]))),
        (["--inner.sizes", "1", "2", "a"], Options(["a"], inner=Inner(sizes=[1, 2]))),
        (["--inner.sizes", "[1,", "2]", "a"], Options(["a"], inner=Inner(sizes=[1, 2]))),
        (["--inner.crop", "64,96", "a"], Options(["a"], inner=Inner(crop=(64, 96)))),
        (["--inner.crop", "64,", "96", "a"], Options(["a"], inner=Inner(crop=(64, 96)))),
        (["--inner.scale", "0.5,2", "a"], Options(["a"], inner=Inner(scale=(0.5, 2.0)))),
        (["a", "--is-small"], Options(["a"], is_small=True)),
        (["a", "--is_small"], Options(["a"], is_small=True)),
        (["a", "--is-small=true"], Options(["a"], is_small=True)),
        (["a", "--is-small", "--no-is-small"], Options(["a"])),
        (["a", "--is-small", "--no_is_small"], Options(["a"])),
        (["a", "--inner.name", "B"], Options(["a"], inner=Inner("b"))),
        (["--count", "3", "--", "-odd.mp4"], Options(["-odd.mp4"], 3)),
        (["rtsp://a?b=1,2"], Options(["rtsp://a?b=1,2"])),
        (["a.png,b.png"], Options(["a.png,b.png"])),  # neither is a file
    ],
)
def test_parse_accepts_words_of_every_type(argv, expected):
    assert run(*argv) == (0, [expected])


def test_commas_in_names_of_files_do_not_separate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a,b.png", "c.png", "d.png"):
        (tmp_path / name).touch()
    assert run("a,b.png", "c.png,d.png") == (0, [Options(["a,b.png", "c.png", "d.png"])])


def test_config_accepts_hyphens(tmp_path):
    (tmp_path / "a.yaml").write_text("is-small: true")
    assert run("a", "--config", str(tmp_path / "a.yaml")) == (0, [Options(["a"], is_small=True)])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["a", "--cuont", "3"], "unknown option --cuont; did you mean --count?"),
        (["a", "--cou", "3"], "unknown option --cou; did you mean --count?"),
        (["a", "--count", "x"], "--count: expected int, got 'x'"),
        (["a", "--inner.name", "z"], "--inner.name: expected one of a, b, got 'z'"),
        (["a", "--inner.scale", "x", "2"], "--inner.scale: expected float, got 'x'"),
        (["a", "--inner.crop", "64"], "--inner.crop: expected tuple[int, int] or null, got ['64']"),
        (["a", "--inner.crop", "x", "y"], "--inner.crop: expected tuple[int, int] or null, got ['x', 'y']"),
        (["--data", "a", '{"path": "b"'], '--data: {"path": "b": not valid YAML (while parsing'),
        (["--data", "a", "--count", "3", "clip.mp4"], "unexpected argument 'clip.mp4'"),
        (["a", "--count"], "--count: a value is missing"),
        (["a", "--count", "13"], "count: 13 brings bad luck"),
        (["a", "--config", "nowhere.yaml"], "nowhere.yaml"),
        ([], "data"),
    ],
)
def test_run_reports_an_error_in_one_line_with_code_2(argv, message, capsys):
    code, seen = run(*argv)
    error = capsys.readouterr().err
    assert code == 2 and seen == []
    assert error.startswith("danet test: error: ") and message in error
    assert error.count("\n") == 1


def test_check_outputs_finds_files_under_other_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.json").touch()
    (tmp_path / "link.json").symlink_to("data.json")
    cli.check_outputs([None, "out.json", "other.json"], [None, "data.json"])
    for path in ("link.json", str(tmp_path / "data.json"), "missing/../data.json"):
        with pytest.raises(UserError, match="is an input of this command and would be replaced"):
            cli.check_outputs([path], ["data.json"])
    with pytest.raises(UserError, match="would be written twice"):
        cli.check_outputs(["data.json", "link.json"])


def test_dump_writes_paths_as_texts():
    assert "out: runs/a\n" in cli.dump(TrainOptions(["a.json"], out=Path("runs") / "a"))


def test_config_reads_back_a_dump_and_is_overridden(tmp_path):
    saved = tmp_path / "config.yaml"
    saved.write_text(cli.dump(Options(["a"], 7, inner=Inner("b", [1]))))
    assert run("--config", str(saved)) == (0, [Options(["a"], 7, inner=Inner("b", [1]))])
    assert run("--config", str(saved), "--count", "8") == (0, [Options(["a"], 8, inner=Inner("b", [1]))])


def test_typed_options_override_config_at_any_position(tmp_path):
    saved = tmp_path / "config.yaml"
    saved.write_text(cli.dump(Options(["a"], 7)))
    assert run("b", "--count", "8", "--config", str(saved)) == (0, [Options(["b"], 8)])
    assert run(f"--config={saved}", "b") == (0, [Options(["b"], 7)])


def test_config_that_is_not_text_is_an_error(tmp_path, capsys):
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\x00\xff\x93")
    assert run("a", "--config", str(binary)) == (2, [])
    assert capsys.readouterr().err == f"danet test: error: {binary}: not UTF-8 text (byte 1)\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must hold options, one per line, such as 'quiet: true'"),
        ("hello", "must hold options, one per line, such as 'quiet: true'"),
        ("count: [", "not valid YAML (while parsing"),
        ("cuont: 3", "unknown option cuont; did you mean --count?"),
        ("inner:\n  scale: [1" + "0" * 400 + ", 2]", "--inner.scale: expected float"),
        ("count: " + "[" * 300, "not usable YAML (nested deeper than 100 levels)"),
        ("inner:\n  names: a", "unknown option inner.names; did you mean --inner.name?"),
    ],
)
def test_config_with_invalid_content_is_an_error(tmp_path, capsys, text, said):
    file = tmp_path / "options.yaml"
    file.write_text(text)
    assert run("a", "--config", str(file)) == (2, [])
    assert (error := capsys.readouterr().err).startswith(f"danet test: error: {file}: {said}")
    assert error.count("\n") == 1


def test_presets_are_read_first_and_not_from_files(tmp_path, capsys):
    def train(*argv: str) -> tuple[int, list[TrainOptions]]:
        seen: list[TrainOptions] = []
        return cli.run(seen.append, TrainOptions, prog="danet train", presets=["demo"], argv=argv), seen

    for argv in (["--preset", "demo", "--lr", "1"], ["--lr=1", "--preset=demo"]):
        code, (options,) = train(*argv)
        assert (code, options.model.name, options.lr, options.overwrite) == (0, "danet_nano", 1.0, False)
    (tmp_path / "a.yaml").write_text("preset: demo")
    for argv, words in (
        (["--config", str(tmp_path / "a.yaml")], "preset can only be typed"),
        (["--preset=dmeo"], "--preset: expected one of demo, got 'dmeo'"),
        (["--preset"], "--preset: a value is missing"),
    ):
        assert train(*argv) == (2, [])
        assert words in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_run_reports_an_os_error_in_one_line(tmp_path, capsys):
    def command(options: Options) -> None:
        (tmp_path / "missing").read_text()

    assert cli.run(command, Options, prog="danet test", argv=["--data", "a"]) == 2
    assert capsys.readouterr().err == f"danet test: error: {tmp_path / 'missing'}: No such file or directory\n"


@pytest.mark.parametrize(
    "words", [["detect", "a.png"], ["train"], ["evaluate"], ["data", "inspect"], ["data", "import", "yolo"]]
)
def test_commands_report_missing_opencv(words):
    script = f"import sys; sys.modules['cv2'] = None; from danet.__main__ import main; sys.exit(main({words!r}))"
    assert_reports_missing_opencv(["-c", script])


@pytest.mark.parametrize("module", ["danet.train", "danet.evaluate", "danet.detect"])
def test_command_modules_report_missing_opencv(module):
    script = f"import runpy, sys; sys.modules['cv2'] = None; runpy.run_module({module!r}, run_name='__main__')"
    assert_reports_missing_opencv(["-c", script, "a.png"])


def assert_reports_missing_opencv(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("danet: error: OpenCV (cv2) cannot be loaded")


def all_commands() -> list[str]:
    from danet.__main__ import COMMANDS
    from danet.data.__main__ import COMMANDS as DATA
    from danet.data.importers import FORMATS

    imports = [f"data import {name}" for name in FORMATS]
    return [*(c for c in COMMANDS if c != "data"), *(f"data {c}" for c in DATA if c != "import"), *imports]


@pytest.mark.parametrize("command", all_commands())
def test_every_command_has_quiet_and_json(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "--quiet" in text and "--json" in text


def test_nested_dataclass_is_set_by_dots_or_by_a_mapping():
    nested = {"inner": {"name": "b", "scale": [1, 3]}}
    assert run("a", "--inner", '{"name": "b", "scale": [1, 3]}')[1] == [
        Options(["a"], inner=Inner("b", scale=(1.0, 3.0)))
    ]
    values = OptionValues(Options)
    values.update({"data": ["a"], **nested})
    values.set("inner.name", "a")
    assert values.build() == Options(["a"], inner=Inner("a", scale=(1.0, 3.0)))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--data", '{"weight": 2}'], "--data: expected str or Source"),
        (["a", "--count", "3.0"], "--count: expected int, got '3.0'"),
        (["a", "--inner.scale", "nan", "1"], "--inner.scale: expected float, got 'nan'"),
        (["a", "--inner.scale", ".inf", "1"], "--inner.scale: expected float, got '.inf'"),
        (["a", "--quiet=1"], "--quiet: expected bool, got '1'"),
        (["a", "--inner", "b"], "--inner: expected Inner, got 'b'; did you mean --inner.name b?"),
        (["a", "--inner", "c"], "--inner: expected Inner, got 'c'; its options are --inner.NAME, see --help-all"),
        (["a", "--name", "b"], "unknown option --name; did you mean --inner.name?"),
        (["a", "--size", "3"], "unknown option --size; did you mean --inner.sizes?"),
        (["a", "-count", "3"], "unknown option -count; did you mean --count?"),
        (["a", "count=3"], "count=3: not an option; did you mean --count 3?"),
        (["a", "inner.name=b"], "inner.name=b: not an option; did you mean --inner.name b?"),
        (["a", "--inner", '{"nmae": "b"}'], "unknown option inner.nmae; did you mean --inner.name?"),
    ],
)
def test_values_of_a_wrong_type_are_errors(argv, message, capsys):
    assert run(*argv) == (2, [])
    assert message in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_print_config_prints_yaml_that_config_reads(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run("a", "--inner.sizes", "1", "2", "--print_config")
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert stop.value.code == 0
    assert run("--config", str(tmp_path / "printed.yaml")) == (0, [Options(["a"], inner=Inner(sizes=[1, 2]))])


def test_importing_cli_and_detect_loads_no_heavy_packages():
    script = "import sys, danet.utils.cli, danet.detect; print(*(m for m in ('torch', 'cv2') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_help_shows_field_docstrings_types_and_defaults(capsys):
    with pytest.raises(SystemExit) as stop:
        run("--help")
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "How many. (type: int, default: 5)" in text and "Some sizes in pixels." in text and "Does it." in text


PAGE = HelpPage(
    {"input": ["data"], "more": ["inner.name", "count", "is_small", "help", "help_all"]}, {"x --count 1": "one"}
)


def shown_help(capsys, word: str) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.run(print, Options, prog="danet test", positionals=["data"], page=PAGE, argv=[word])
    assert stop.value.code == 0
    return capsys.readouterr().out.replace("\n" + 30 * " ", " ")  # joins wrapped lines


def test_help_shows_groups_and_examples(capsys):
    text = shown_help(capsys, "--help")
    assert text.startswith("usage: danet test [DATA ...]")
    assert "input:\n  --data" in text and "examples:\n  x --count 1\n      one\n" in text
    assert (
        "Which letter. (one of a, b; default: a)" in text and "How many. (default: 5)" in text and "(required)" in text
    )
    assert "--inner.sizes" not in text and "--help-all` explains all" in text


@pytest.mark.parametrize("word", ["--help-all", "--help_all"])
def test_help_all_shows_every_option(word, capsys):
    text = shown_help(capsys, word)
    assert "--inner.sizes" in text and "(type: int, default: 5)" in text and "examples:" in text


def test_suggestions_name_options_that_exist():
    """Each synonym must belong to some command, so that it does not outlive a renamed option."""
    known = set()
    for options in (TrainOptions, DetectOptions, EvaluateOptions, ExportOptions, AblateOptions, ReportOptions):
        known |= {option.name for option in list_options(options)}
    known |= {"source", "size"}  # of danet data
    assert {name for names in SYNONYMS.values() for name in names} <= known


@pytest.mark.parametrize(
    ("words", "suggested"),
    [
        ("detect --imgsz 640", "--input_size"),
        ("detect --img-size 640", "--input_size"),
        ("detect --conf 0.3", "--score"),
        ("detect --conf-thres 0.3", "--score"),
        ("detect --source a.mp4", "--sources"),
        ("detect --model a.pt", "--weights"),
        ("detect --iou-thres 0.5", "--iou"),
        ("detect --save-txt", "--save_csv"),
        ("detect conf=0.3", "--score 0.3"),
        ("predict --wieghts a", "--weights"),
        ("evaluate --conf 0.3", "--fixed"),
        ("val --batch-size 4", "--batch"),
        ("train --imgsz 640", "--augmentation.crop"),
        ("train --batch-size 4", "--batch"),
        ("train --lr0 0.1", "--lr"),
        ("train --pretrained a", "--weights"),
        ("train --classes drone", "--model.classes"),
        ("train --model danet_s", "--model.name danet_s"),
        ("train --model best.pt", "--weights best.pt"),
        ("train --project runs", "--out"),
        ("train --num-workers 2", "--workers"),
        ("export --half", None),
    ],
)
def test_names_of_other_tools_suggest_ours(words, suggested, capsys):
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.endswith(f"; did you mean {suggested}?\n" if suggested else "unknown option --half\n")


@pytest.mark.parametrize("command", ["train", "detect", "evaluate", "ablate"])
def test_help_of_a_long_command_is_short(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lengths = {}
    for word in ("--help", "--help-all"):
        with pytest.raises(SystemExit):
            main([command, word])
        text = capsys.readouterr().out
        lengths[word] = text.count("\n")
        assert "examples:\n  danet" in text and max(map(len, text.splitlines())) <= 88
    assert lengths["--help"] <= 110 and lengths["--help"] < lengths["--help-all"]
