"""The command-line layer of every command: options from a dataclass, presets, YAML files, one-line errors.

Importing this module loads neither torch nor OpenCV.
"""

import argparse
import dataclasses
import itertools
import json
import re
import sys
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from danet.utils.errors import UserError
from danet.utils.files import check_folder, read_text
from danet.utils.typed_options import Option, OptionValues, convert, members, sequence_type, suggestion, type_name

Options = typing.TypeVar("Options")
Names = Sequence[str]

PRESETS = Path(__file__).parents[1] / "presets"

# A list in one word, such as [1, 2], and a size such as 192x256.
YAML_LIST = re.compile(r"null|\[.*\]", re.DOTALL)
SIZE = re.compile(r"\d+x\d+")


def run(
    command: Callable,
    options: Any,
    *,
    prog: str,
    positionals: Names = (),
    presets: Names = (),
    argv: Names | None = None,
) -> int:
    """Parses ``argv`` into an ``options`` dataclass, calls ``command(options)`` and returns the exit code.

    Values are taken from the defaults, then ``--preset``, then ``--config FILE``, then the command line. An unknown
    option, an invalid value, and a UserError or OSError of the command print one line and return 2; Ctrl-C returns 130.

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
        argv: the words; by default those of the process.

    Example:
        >>> from danet.config import ModelConfig
        >>> run(lambda config: print(config.groups), ModelConfig, prog="example", argv=["--groups", "8"])
        8
        0
    """
    argv = sys.argv[1:] if argv is None else argv
    about = (command.__doc__ or "").strip().split("\n\n")[0]
    try:
        prepare_opencv()
        parsed = parse(options, argv, prog=prog, about=about, positionals=positionals, presets=presets)
        if (report := getattr(parsed, "json", None)) is not None:  # it is written last, perhaps hours later
            check_folder(Path(report).parent)
        return command(parsed) or 0
    except UserError as error:
        message = str(error)
    except OSError as error:  # for example a full disk; a traceback would not help
        message = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part is not None)
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    print(f"{prog}: error: {message}", file=sys.stderr)
    return 2


def prepare_opencv() -> None:
    """Silences OpenCV's own messages in this process; without OpenCV, prints one line and raises SystemExit(2).

    ``run`` calls it, and so does a command before it imports modules that import OpenCV. A library must not.
    """
    try:
        from danet.utils.image_io import quiet_opencv
    except ImportError as error:
        print(f"danet: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    quiet_opencv()


def parse(
    options: type[Options],
    argv: Names,
    *,
    prog: str = "danet",
    about: str = "",
    positionals: Names = (),
    presets: Names = (),
) -> Options:
    """Parses ``argv`` into an ``options`` dataclass, see ``run``.

    Raises:
        UserError: an option is unknown or missing, or a value does not fit; the message names both.
        SystemExit: after ``--help`` and ``--print_config``.

    Example:
        >>> from danet.config import ModelConfig
        >>> parse(ModelConfig, ["--name", "danet_nano", "--classes", "drone", "bird"]).classes
        ['drone', 'bird']
    """
    values = OptionValues(options)
    control = {
        "help": Option("help", bool, "Show this help and exit.", False),
        "preset": Option("preset", Literal[tuple(presets)], "Use a recipe of the package; may be repeated.", None),
        "config": Option("config", str, "Read options from this YAML file; typed options override it.", None),
        "print_config": Option("print_config", bool, "Print the resulting options as YAML and exit.", False),
    }
    if not presets:
        del control["preset"]
    known = {**control, **values.known}
    typed, loose = _split(argv, known)
    requested = {name for name, _ in typed}
    if "help" in requested:
        _print_help(known.values(), prog, about, positionals)
        raise SystemExit(0)
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
            value = convert(words[0], known[name].hint) if name in control else _join(words, known[name].hint)
        except ValueError as error:
            raise UserError(f"--{name}: {error}") from error
        if name in ("preset", "config"):
            _read_file(PRESETS / f"{value}.yaml" if name == "preset" else Path(value), values, control)
        elif name not in control:
            values.set(name, value)
    if "print_config" in requested:
        for option in values.known.values():
            if option.default is dataclasses.MISSING and "." not in option.name:
                values.values.setdefault(option.name, None)
        print(dump(values.build()), end="")
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
            saved = yaml.safe_load(read_text(config))
        except yaml.YAMLError:
            saved = None
        if not isinstance(saved, dict) or saved.keys() - {item.name for item in dataclasses.fields(options)}:
            raise UserError(f"{config}: belongs to another command; give another --out")


def dump(options: Any) -> str:
    """Formats the options as YAML that ``--config`` reads back.

    Example:
        >>> from danet.config import ModelConfig
        >>> dump(ModelConfig()).splitlines()[0]
        'name: danet_s'
    """
    return yaml.safe_dump(dataclasses.asdict(options), sort_keys=False)


def _split(argv: Names, known: dict[str, Option]) -> tuple[list[tuple[str, list[str]]], list[str]]:
    """Splits ``argv`` into options with their words, and words that belong to no option.

    An option takes one word, a list all words up to the next option, a tuple as many as it has elements, a switch only
    true or false if it follows; ``--no-switch`` is false.
    """
    typed, loose, rest = [], [], list(argv)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if not _is_option(option):
            loose.append(option + equals + value)
            continue
        name = "help" if option == "-h" else option.removeprefix("--")
        positive = name.removeprefix("no-")
        if name not in known and positive in known and known[positive].hint is bool and not equals:
            name, equals, value = positive, "=", "false"
        if name not in known:
            raise UserError(f"unknown option {option}{suggestion(name, known)}")
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
    first = following[0] if following else ""
    if hint is bool:
        return int(first.lower() in ("true", "false"))
    sequence = sequence_type(hint)
    if sequence is None or YAML_LIST.fullmatch(first):
        return 1
    if typing.get_origin(sequence) is list:
        return len(following)
    return 1 if SIZE.fullmatch(first) else len(typing.get_args(sequence))


def _join(words: list[str], hint: Any) -> Any:
    """The value that the words of an option stand for; in lists and tuples of int, 192x256 stands for two values."""
    sequence = sequence_type(hint)
    if sequence is None:
        return _parse_mapping(words[0], hint)
    if len(words) == 1 and YAML_LIST.fullmatch(words[0]):
        return _parse_yaml(words[0], words[0])
    item = typing.get_args(sequence)[0]
    if int in members(item):
        return [part for word in words for part in (word.split("x") if SIZE.fullmatch(word) else [word])]
    return [_parse_mapping(word, item) for word in words]


def _parse_mapping(word: str, hint: Any) -> Any:
    """The mapping that a word such as ``{"path": "a"}`` stands for, where the type allows one."""
    allowed = any(dataclasses.is_dataclass(each) or typing.get_origin(each) is dict for each in members(hint))
    return _parse_yaml(word, word) if allowed and word.startswith("{") else word


def _parse_yaml(text: str, source: object) -> Any:
    """Parses YAML or JSON. Raises UserError of one line that starts with ``source`` if it is not valid."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML ({' '.join(str(error).split())})") from error


def _read_file(path: Path, values: OptionValues, control: Iterable[str]) -> None:
    """Sets the options of a YAML file. Raises UserError naming the file and what is wrong in it."""
    content = _parse_yaml(read_text(path), path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold options, one per line, such as 'quiet: true'")
    for name in control:
        if name in content:
            raise UserError(f"{path}: {name} can only be typed, not given in a file")
    try:
        values.update(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _print_help(options: Iterable[Option], prog: str, about: str, positionals: Sequence[str]) -> None:
    """Prints all options with their types and defaults, the options of each nested dataclass in a group."""
    usage = " ".join([prog, *(f"[{name.upper()}]" for name in positionals), "[--OPTION VALUE ...]"])
    parser = argparse.ArgumentParser(prog=prog, usage=usage, description=about)
    groups: dict[str, Any] = {"": parser}
    for option in options:
        if dataclasses.is_dataclass(option.hint):
            groups[option.name] = parser.add_argument_group(f"--{option.name}", option.help)
        elif (parent := option.name.rpartition(".")[0]) in groups and option.name != "help":
            is_required = option.default is dataclasses.MISSING
            default = "required" if is_required else f"default: {json.dumps(option.default)}".replace('"', "")
            text = f"{option.help} (type: {type_name(option.hint)}, {default})".replace("%", "%%")
            value = "VALUE ..." if sequence_type(option.hint) else {bool: "[true|false]"}.get(option.hint, "VALUE")
            groups[parent].add_argument(f"--{option.name}", help=text, metavar=value)
    parser.print_help()
