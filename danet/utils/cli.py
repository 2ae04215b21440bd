"""The one style of every command: dataclass options, presets, YAML files, one-line errors."""

import dataclasses
import difflib
import itertools
import json
import re
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonargparse
from jsonargparse import ArgumentError, ArgumentParser

from danet.utils.errors import UserError
from danet.utils.files import check_folder, read_text

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = typing.TypeVar("Options", bound="DataclassInstance")

try:
    import danet.utils.image_io  # noqa: F401
except ImportError as error:  # commands import this module before all that needs OpenCV, hence here
    print(f"danet: error: {error}", file=sys.stderr)
    raise SystemExit(2) from None

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)

PRESETS = Path(__file__).parents[1] / "presets"

# A list or tuple in one word, and a size such as 192x256.
WHOLE = re.compile(r"null|\[.*\]", re.DOTALL)
SIZE = re.compile(r"\d+x\d+")


def run(
    command: Callable,
    options: type[Options],
    *,
    prog: str,
    positionals: Sequence[str] = (),
    presets: Sequence[str] = (),
    argv: Sequence[str] | None = None,
) -> int:
    """Parses ``argv`` into an ``options`` dataclass, calls ``command(options)``, returns its exit code.

    Args:
        command: takes the dataclass, returns ``None`` or an exit code.
        options: a dataclass whose attribute docstrings become the help; nested dataclasses give
            dotted options (``--model.name``); list and tuple fields take several words (``--data A B``).
        prog: name in messages, such as ``danet train``.
        positionals: names of fields that may also be given as words that belong to no option, in this
            order; a list field may only be the last and takes all remaining words.
        presets: names of YAML files in ``danet/presets`` offered as ``--preset NAME``.

    Values are taken from the defaults, then ``--preset``, then ``--config FILE``, then the command
    line. A misspelt option, an impossible value or a UserError prints one line and returns 2.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        given = parse(options, argv, prog=prog, about=_summary(command), positionals=positionals, presets=presets)
        if (figures := getattr(given, "json", None)) is not None:  # written last, perhaps hours later
            check_folder(Path(figures).parent)
        return command(given) or 0
    except UserError as error:
        message = str(error)
    except OSError as error:  # the last resort: a traceback helps nobody with a full disk
        message = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part is not None)
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    print(f"{prog}: error: {message}", file=sys.stderr)
    return 2


def parse(
    options: type[Options],
    argv: Sequence[str],
    *,
    prog: str = "danet",
    about: str = "",
    positionals: Sequence[str] = (),
    presets: Sequence[str] = (),
) -> Options:
    """The ``options`` dataclass that ``argv`` stands for, see ``run``; whatever is wrong with it is a UserError."""
    parser = ArgumentParser(prog=prog, description=about, exit_on_error=False, allow_abbrev=False)
    if presets:
        parser.add_argument("--preset", choices=list(presets), help="a recipe shipped with danet; several may be given")
    parser.add_argument("--config", action="config", help="YAML file of options; typed ones override it")
    parser.add_class_arguments(options, None, as_group=False)
    try:
        parsed = parser.parse_args(_expand(list(argv), options, positionals, presets))
        if presets and parsed.preset is not None:  # --preset itself never gets here
            raise UserError("preset can only be typed, not given in a file")
        values = parser.instantiate(parsed)
    except ArgumentError as error:
        raise UserError(_one_line(error.message or str(error), options)) from error
    return options(**{field.name: values[field.name] for field in dataclasses.fields(options)})


def check_out(options: Any) -> None:
    """Raises UserError if nothing can be written into ``options.out``, or another command's config.yaml is there.

    Evaluating into a training run's folder would otherwise take away what the run resumes from.
    """
    import yaml

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
    """The resolved options as YAML that ``--config`` reads back."""
    import yaml

    return yaml.safe_dump(dataclasses.asdict(options), sort_keys=False)


def _summary(command: Callable) -> str:
    return (command.__doc__ or "").strip().split("\n\n")[0]


def _expand(argv: list[str], options: type, positionals: Sequence[str], presets: Sequence[str]) -> list[str]:
    """Rewrites what a person types into ``--option=value`` for jsonargparse.

    An option takes one word, a list all up to the next option, a tuple as many as it has elements, a
    ``--switch`` only true or false and none otherwise; ``--no-switch`` is false. Words that are left are the
    positionals. Presets and then ``--config`` files come first, so that everything typed overrides them.
    """
    hints = {f"--{name}": hint for name, hint in _fields(options)}
    presets_given: list[str] = []
    configs: list[str] = []
    typed: list[str] = []
    loose: list[str] = []
    given = set()
    rest = list(argv)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if not _is_option(option):
            loose.append(option + equals + value)
            continue
        if not equals and hints.get(positive := option.replace("--no-", "--", 1)) is bool and positive != option:
            option, equals, value = positive, "=", "false"
        words = [value] if equals else _take(rest, hints.get(option, str))
        given.add(option)
        if option in ("-h", "--help"):
            rest[:0] = words
            typed.append(option)
        elif not words:
            typed.append(option)
        elif option == "--preset" and words[0] in presets:
            presets_given.append(f"--config={PRESETS / words[0]}.yaml")
        elif option == "--config":
            _check_file(words[0], [*hints, *(["--preset"] if presets else [])])
            configs.append(f"--config={words[0]}")
        else:
            typed.append(_assign(option, words, hints.get(option, str)))
    for name in positionals:
        option = f"--{name}"
        if loose and option not in given:
            count = len(loose) if _part(hints[option], list) else 1
            words, loose = loose[:count], loose[count:]
            typed.append(f"{option}={json.dumps(words) if _part(hints[option], list) else words[0]}")
    if loose:
        raise UserError(f"unexpected argument {loose[0]!r}")
    return [*presets_given, *configs, *typed]


def _check_file(path: str, names: Sequence[str]) -> None:
    """Raises UserError naming a file of options that is no YAML mapping, or has one that is not among ``names``."""
    import yaml

    text = read_text(path)
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold options, one a line, such as 'quiet: true'")

    def check(options: dict, prefix: str) -> None:
        for key, value in options.items():
            name = f"{prefix}{key}"
            if name not in names:
                raise UserError(f"{path}: unknown option {name[2:]}{_nearest(name, names)}")
            if isinstance(value, dict) and any(each.startswith(f"{name}.") for each in names):
                check(value, f"{name}.")

    check(content, "--")


def _nearest(wrong: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(wrong, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _is_option(word: str) -> bool:
    return word.startswith("-") and not re.match(r"-$|-\.?\d|-\.(inf|nan)", word)


def _take(rest: list[str], hint: object) -> list[str]:
    """Removes the words that belong to an option of type ``hint`` from the front of ``rest``."""
    following = list(itertools.takewhile(lambda word: not _is_option(word), rest))
    if hint is bool:
        return [rest.pop(0)] if following and following[0].lower() in ("true", "false") else ["true"]
    count = 1
    if following and not WHOLE.fullmatch(following[0]):
        if _part(hint, list):
            count = len(following)
        elif (numbers := _part(hint, tuple)) and not SIZE.fullmatch(following[0]):
            count = len(typing.get_args(numbers))
    words = following[:count]
    del rest[: len(words)]
    return words


def _assign(option: str, words: list[str], hint: object) -> str:
    """``--option=value``, the words of a list or tuple as JSON; in these 192x256 is two numbers."""
    container = _part(hint, list) or _part(hint, tuple)
    if container is None or (len(words) == 1 and WHOLE.fullmatch(words[0])):
        return f"{option}={words[0]}"
    kinds = typing.get_args(container)
    values: list[object] = []
    for word in words:
        if kinds[0] is int and SIZE.fullmatch(word):
            values += word.split("x")
        elif word.startswith("{"):
            try:
                values.append(json.loads(word))
            except ValueError as error:
                raise UserError(f"{option}: {word} is not valid JSON ({error})") from None
        else:
            values.append(word)
    if typing.get_origin(container) is tuple and len(values) != len(kinds):
        raise UserError(f"{option}: takes {len(kinds)} numbers, got {' '.join(words)}")
    return f"{option}={json.dumps(values)}"


def _part(hint: object, kind: type) -> object | None:
    """The list or tuple type in ``hint``, which may be a union."""
    parts = () if typing.get_origin(hint) is dict else typing.get_args(hint)
    return next((part for part in (hint, *parts) if typing.get_origin(part) is kind), None)


def _fields(options: type, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted names and types of all options, nested dataclasses included."""
    hints = typing.get_type_hints(options)
    for item in dataclasses.fields(options):
        hint = hints[item.name]
        yield prefix + item.name, hint
        for inner in (hint, *typing.get_args(hint)):
            if isinstance(inner, type) and dataclasses.is_dataclass(inner) and typing.get_origin(hint) is not list:
                yield from _fields(inner, f"{prefix}{item.name}.")


def _one_line(message: str, options: type) -> str:
    """jsonargparse's message as one line in our words, with the nearest name for a misspelt option."""
    message = " ".join(message.split())
    match = re.match(r"(?:Unrecognized arguments|unrecognized arguments): (\S+)", message)
    if match:
        wrong = match[1].split("=")[0]
        return f"unknown option {wrong}{_nearest(wrong, [f'--{name}' for name, _ in _fields(options)])}"
    message = re.sub(r'Parser key "([^"]+)":', r"--\1:", message)
    message = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", message)
    # Of a union jsonargparse lists all that was tried; its kinds and the value say enough.
    message = re.sub(
        r"Does not validate against any of the Union subtypes Subtypes: \[(.*)\] Errors: .* Given value: (.*)",
        lambda union: f"Expected {union[1].replace(', NoneType', ' or null')}. Got value: {union[2]}",
        message,
    )
    return message.replace("typing.", "").replace("Literal", "one of ").replace("Expected a ", "Expected ")
