"""The command-line layer of every command: options from a dataclass, presets, YAML files, one-line errors.

Importing this module loads neither torch nor OpenCV.
"""

import dataclasses
import functools
import importlib.util
import itertools
import os
import re
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from danet.utils.errors import UserError
from danet.utils.files import check_folder, check_new_file, parse_yaml, read_yaml
from danet.utils.guard import run_guarded
from danet.utils.help_page import HelpPage, format_help
from danet.utils.load_monitor import start_load_monitor
from danet.utils.suggestions import find_spelling, nearest, suggestion
from danet.utils.threads import prepare_threads
from danet.utils.typed_options import (
    Option,
    OptionValues,
    convert,
    dataclass_type,
    members,
    paths_as_texts,
    sequence_type,
)
from danet.utils.urls import mask_values

Options = typing.TypeVar("Options")
Names = Sequence[str]
"""Names of options or presets, or the words of a command line."""

PRESETS = Path(__file__).parents[1] / "presets"

# YAML_LIST: null, or a list such as [1, 2], as one word. SIZE: such as 192x256.
YAML_LIST = re.compile(r"null|\[.*\]", re.DOTALL)
SIZE = re.compile(r"\d+x\d+")
NUMBERS = re.compile(r"[-+.]*\d[-+\d.,xe]*", re.IGNORECASE)
"""One number, or several joined by commas or x."""
ASSIGNMENT = re.compile(r"([A-Za-z_][\w.-]*)=(.*)", re.DOTALL)
"""An option as some other tools take it, such as imgsz=320."""
WEIGHTS_SUFFIXES = (".safetensors", ".onnx", ".pt", ".pth")


def run(
    command: Callable,
    options: Any,
    *,
    prog: str,
    positionals: Names = (),
    presets: Names = (),
    inputs: Mapping[str, Names] | None = None,
    page: HelpPage | None = None,
    argv: Names | None = None,
) -> int:
    """Parses ``argv`` into an ``options`` dataclass, calls ``command(options)`` and returns the exit code.

    Values are taken from the defaults, then ``--preset``, then ``--config FILE``, then the command line. An unknown
    option, an invalid value, a missing input file, and a UserError or OSError of the command print one line and return
    2 (1 for a fault of the machine, such as a full disk); Ctrl-C returns 130. Any other exception prints one line and
    returns 1 (2 if another package cannot be imported); ``--debug`` shows its traceback.

    Hyphens and underscores in names are the same, and lists are separated by spaces or commas.

    Raises:
        SystemExit: after ``--help`` and ``--print_config``, and if OpenCV cannot be loaded.

    Args:
        command: a function of the dataclass that returns ``None`` or an exit code; its docstring begins the help.
        options: a dataclass. The docstrings below its fields become the help, nested dataclasses become dotted options
            (``--model.name``), and list and tuple fields take several words (``--data A B``).
        prog: the name in messages, such as ``danet train``.
        positionals: names of fields that may also be given as words without an option, in this order; a list field may
            only be the last and takes all remaining words.
        presets: names of YAML files in ``danet/presets`` that ``--preset NAME`` accepts.
        inputs: options whose values are paths -> words that stand for something else than a path, such as ``shipped``.
            The paths must exist and must not be the file of ``--json``, which is checked before the command loads
            torch.
        page: the groups of options in the help, and examples.
        argv: the words; by default those of the process.

    Example:
        >>> from danet.config import ModelConfig
        >>> run(lambda config: print(config.groups), ModelConfig, prog="example", argv=["--groups", "8"])
        8
        0
    """
    words = list(sys.argv[1:] if argv is None else argv)
    about = (command.__doc__ or "").strip().split("\n\n")[0]

    def work() -> int | None:
        require_opencv()
        parsed = parse(options, words, prog=prog, about=about, positionals=positionals, presets=presets, page=page)
        check_inputs(parsed, inputs or {})
        if (report := getattr(parsed, "json", None)) is not None:  # it is written last, perhaps hours later
            check_new_file(Path(report), overwrite=True)
            check_folder(Path(report).parent)
            check_outputs([report], _input_paths(parsed, inputs or {}))
        threads_are_chosen = "OMP_NUM_THREADS" in os.environ
        if prepare_threads():
            start_load_monitor(adapt_threads=not threads_are_chosen)
        prepare_opencv()
        return command(parsed)

    return run_guarded(prog, work, debug="--debug" in words)


def require_opencv() -> None:
    """Prints one line and raises SystemExit(2) if OpenCV is not installed; does not load it, which takes a while."""
    if importlib.util.find_spec("cv2") is None:
        prepare_opencv()


def prepare_opencv() -> None:
    """Silences OpenCV's own messages in this process; without OpenCV, prints one line and raises SystemExit(2).

    ``run`` calls it before the command. A library must not.
    """
    try:
        from danet.utils.image_io import quiet_opencv
    except ImportError as error:
        print(f"danet: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    quiet_opencv()


def check_inputs(options: Any, inputs: Mapping[str, Names]) -> None:
    """Checks that the paths in options exist, see ``run``. Numbers of cameras, URLs and patterns are not checked.

    Raises:
        UserError: a path does not exist.

    Example:
        >>> from danet.config import ModelConfig
        >>> check_inputs(ModelConfig(name="missing.yaml"), {"name": ["danet_s"]})
        Traceback (most recent call last):
        danet.utils.errors.UserError: missing.yaml: no such file or folder
    """
    for path in _input_paths(options, inputs):
        if not any(sign in path for sign in "*?[") and not os.path.exists(path):
            raise UserError(f"{path}: no such file or folder")


def _input_paths(options: Any, inputs: Mapping[str, Names]) -> Iterator[str]:
    """The paths in options, see ``run``, without other words, numbers of cameras, and URLs."""
    for name, words in inputs.items():
        value = functools.reduce(getattr, name.split("."), options)
        for each in value if isinstance(value, list) else [value]:
            path = str(getattr(each, "path", each))  # of a DataSource
            if each is not None and path not in words and not path.isdecimal() and "://" not in path:
                yield path


def check_outputs(outputs: Iterable[Path | str | None], inputs: Iterable[Path | str | None] = ()) -> None:
    """Checks that a command replaces neither a file that it reads nor a result of its own.

    Args:
        outputs: the files that the command writes; None is left out.
        inputs: the files that it reads; None is left out. For a dataset, see ``danet.data.coco_dataset.dataset_files``.

    Raises:
        UserError: two outputs are the same file, or an output is an input, also by another path or a link.

    Example:
        >>> check_outputs(["val.json"], ["weights.safetensors", "data/../val.json"])
        Traceback (most recent call last):
        danet.utils.errors.UserError: val.json: is an input of this command and would be replaced; give another output
    """
    read = {os.path.realpath(path) for path in inputs if path is not None}
    written: set[str] = set()
    for path in outputs:
        if path is None:
            continue
        if (file := os.path.realpath(path)) in read:
            raise UserError(f"{path}: is an input of this command and would be replaced; give another output")
        if file in written:
            raise UserError(f"{path}: would be written twice, with different contents; give different outputs")
        written.add(file)


def parse(
    options: type[Options],
    argv: Names,
    *,
    prog: str = "danet",
    about: str = "",
    positionals: Names = (),
    presets: Names = (),
    page: HelpPage | None = None,
) -> Options:
    """Parses ``argv`` into an ``options`` dataclass, see ``run``.

    Raises:
        UserError: an option is unknown or missing, or a value does not fit; the message names both.
        SystemExit: after ``--help`` and ``--print_config``.

    Example:
        >>> from danet.config import ModelConfig
        >>> parse(ModelConfig, ["--name", "danet_nano", "--classes", "drone", "bird"]).classes
        ['drone', 'bird']
        >>> parse(ModelConfig, ["--neck-width", "32", "--classes", "drone,bird"]).classes
        ['drone', 'bird']
    """
    values = OptionValues(options)
    control = {
        "help": Option("help", bool, "Show this help and exit.", False),
        "help_all": Option("help_all", bool, "Show all options and exit.", False),
        "preset": Option("preset", Literal[tuple(presets)], "Use a recipe of the package; may be repeated.", None),
        "config": Option("config", str, "Read options from this YAML file; typed options override it.", None),
        "print_config": Option("print_config", bool, "Print the resulting options as YAML and exit.", False),
        "debug": Option("debug", bool, "Show the traceback of an error.", False),
    }
    if not presets:
        del control["preset"]
    known = {**control, **values.known}
    typed, loose = _split(argv, known)
    requested = {name for name, _ in typed}
    if requested & {"help", "help_all"}:
        everything = "help_all" in requested
        text = format_help(
            known.values(), page or HelpPage(), prog=prog, about=about, positionals=positionals, everything=everything
        )
        print(text, end="", flush=True)  # a closed pipe raises here, not at exit
        raise SystemExit(0)
    for word in loose:
        _refuse_assignment(word, known)
    for name in positionals:
        if loose and name not in requested:
            count = len(loose) if typing.get_origin(sequence_type(known[name].hint)) is list else 1
            typed.append((name, loose[:count]))
            loose = loose[count:]
    if loose:
        raise UserError(f"unexpected argument {loose[0]!r}")
    # Typed options override files and files override presets, wherever they stand.
    for name, words in sorted(typed, key=lambda item: {"preset": 0, "config": 1}.get(item[0], 2)):
        try:
            value = convert(words[0], known[name].hint) if name in control else _value_of(words, known[name].hint)
        except ValueError as error:
            raise UserError(f"--{name}: {error}") from error
        if name in ("preset", "config"):
            _read_file(PRESETS / f"{value}.yaml" if name == "preset" else Path(value), values, control)
        elif name not in control:
            try:
                values.set(name, value)
            except UserError as error:
                raise UserError(f"{error}{_group_suggestion(name, words[0], known)}") from error
    if "print_config" in requested:
        for option in values.known.values():
            if option.default is dataclasses.MISSING and "." not in option.name:
                values.values.setdefault(option.name, None)
        print(dump(values.build()), end="", flush=True)
        raise SystemExit(0)
    return values.build()


def check_out(options: Any) -> None:
    """Checks that results can be written into the folder ``options.out``.

    Raises:
        UserError: the folder cannot be written, or holds the ``config.yaml`` of another command, for example of a
            training run, which could not be resumed without it.
    """
    check_folder(options.out)
    config = Path(options.out) / "config.yaml"
    if config.is_file():
        try:
            saved = read_yaml(config)
        except UserError:
            saved = None
        if not isinstance(saved, dict) or saved.keys() - {item.name for item in dataclasses.fields(options)}:
            raise UserError(f"{config}: belongs to another command; give another --out")


def dump(options: Any) -> str:
    """Formats the options as YAML that ``--config`` reads back; passwords in URLs are masked, paths become texts.

    Example:
        >>> from danet.config import ModelConfig
        >>> dump(ModelConfig()).splitlines()[0]
        'name: danet_s'
    """
    return yaml.safe_dump(mask_values(dataclasses.asdict(paths_as_texts(options))), sort_keys=False)


def _split(argv: Names, known: Mapping[str, Option]) -> tuple[list[tuple[str, list[str]]], list[str]]:
    """Splits ``argv`` into options with their words, and words that belong to no option.

    The type of an option determines how many words after it are its value. A list takes all words up to the next option
    (a list of numbers: all numbers). A tuple takes words until it has all elements. A switch takes true or false, if
    that follows, otherwise no word. Any other option takes one word. ``--no-switch`` sets a switch to false. After a
    lone ``--``, no word is an option.
    """
    typed: list[tuple[str, list[str]]] = []
    loose: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return typed, loose + rest
        if not _is_option(word):
            loose.append(word)
            continue
        option, equals, value = word.partition("=")
        name = find_spelling(option.removeprefix("--"), known) if option != "-h" else "help"
        positive = find_spelling(re.sub("^no[-_]", "", name), known)
        if name not in known and positive in known and known[positive].hint is bool and not equals:
            name, equals, value = positive, "=", "false"
        if name not in known:
            raise UserError(f"unknown option {option}{suggestion(option.lstrip('-'), known)}")
        following = list(itertools.takewhile(lambda word: not _is_option(word), rest))
        words = [value] if equals else following[: _count_words(following, known[name].hint)]
        if not equals:
            del rest[: len(words)]
            if known[name].hint is bool and not words:
                words = ["true"]
        if not words:
            raise UserError(f"--{name}: a value is missing")
        typed.append((name, words))
    return typed, loose


def _is_option(word: str) -> bool:
    return word.startswith("-") and not re.match(r"-$|-\.?\d", word)


def _count_words(following: list[str], hint: Any) -> int:
    """How many of the words that follow an option of type ``hint`` are its value."""
    if not following:
        return 0
    first = following[0]
    if hint is bool:
        return int(first.lower() in ("true", "false"))
    sequence = sequence_type(hint)
    if sequence is None or YAML_LIST.fullmatch(first):
        return 1
    if first.startswith("[") and any(word.endswith("]") for word in following):  # [1, 2] without quotes
        return next(index for index, word in enumerate(following, 1) if word.endswith("]"))
    items = typing.get_args(sequence)
    if typing.get_origin(sequence) is list:
        numbers = sum(1 for _ in itertools.takewhile(NUMBERS.fullmatch, following))
        return max(1, numbers) if _is_numeric(items[0]) else len(following)
    counts = itertools.accumulate(len(_split_list(word, items[0])) for word in following)
    return next((index for index, count in enumerate(counts, 1) if count >= len(items)), len(following))


def _is_numeric(hint: Any) -> bool:
    return set(members(hint)) <= {int, float}


def _value_of(words: list[str], hint: Any) -> Any:
    """The value that the words of an option stand for."""
    sequence = sequence_type(hint)
    if sequence is None:
        return _parse_mapping(words[0], hint)
    together = " ".join(words)
    if YAML_LIST.fullmatch(together):
        return parse_yaml(together, together)
    item = typing.get_args(sequence)[0]
    return [_parse_mapping(part, item) for word in words for part in _split_list(word, item)]


def _split_list(word: str, item: Any) -> list[str]:
    """The items of a list in one word: 1,2 or 192x256 or drone,bird. A comma can also belong to a path or a mapping."""
    if int in members(item) and SIZE.fullmatch(word):
        return word.split("x")
    if _is_numeric(item):
        return [part for part in word.split(",") if part]
    parts = [part.strip() for part in word.split(",") if part.strip()]
    is_single = os.path.exists(word) or word.startswith("{") or "://" in word
    is_path = "." in word or os.sep in word
    return [word] if is_single or not parts or (is_path and not all(map(os.path.exists, parts))) else parts


def _refuse_assignment(word: str, known: Mapping[str, Option]) -> None:
    """Raises UserError for a word such as conf=0.3 whose name is an option or similar to one, unless it is a file."""
    found = ASSIGNMENT.fullmatch(word)
    if found is None or os.path.exists(word):
        return
    name = find_spelling(found[1], known)
    if name not in known:
        name = nearest(found[1], known) or ""
    if name:
        raise UserError(f"{word}: not an option; did you mean --{name} {found[2]}?")


def _group_suggestion(name: str, word: str, known: Mapping[str, Option]) -> str:
    """The end of a message about ``--model danet_s``, where ``model`` is a group of options."""
    if name not in known or not dataclass_type(known[name].hint) or word.startswith("{"):
        return ""
    for option in known.values():
        is_choice = typing.get_origin(option.hint) is Literal and word in typing.get_args(option.hint)
        if option.name.startswith(f"{name}.") and is_choice:
            return f"; did you mean --{option.name} {word}?"
    if "weights" in known and word.endswith(WEIGHTS_SUFFIXES):
        return f"; did you mean --weights {word}?"
    return f"; its options are --{name}.NAME, see --help-all"


def _parse_mapping(word: str, hint: Any) -> Any:
    """The mapping that a word such as ``{"path": "a"}`` stands for, where the type allows one; otherwise the word."""
    allowed = any(dataclasses.is_dataclass(each) or typing.get_origin(each) is dict for each in members(hint))
    return parse_yaml(word, word) if allowed and word.startswith("{") else word


def _read_file(path: Path, values: OptionValues, control: Iterable[str]) -> None:
    """Sets the options of a YAML file. Raises UserError naming the file and what is wrong in it."""
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold options, one per line, such as 'quiet: true'")
    for name in control:
        if name in content:
            raise UserError(f"{path}: {name} can only be typed, not given in a file")
    try:
        values.update(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
