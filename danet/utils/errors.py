"""The exception that commands report in one line, and a check of options that raises it."""

import re
from collections.abc import Callable, Sequence

from danet.utils.urls import mask_urls

MAX_MESSAGE_CHARACTERS = 600
"""A longer message loses its middle, which is usually a value of a file that it quotes."""


class UserError(ValueError):
    """An error that the user can correct, such as an invalid file, option or value; commands exit with code 2.

    The message is one line that starts with the name of the file or option; ``one_line`` makes any text one.

    Example:
        >>> str(UserError("train.json: image 'a.png' does not exist"))
        "train.json: image 'a.png' does not exist"
    """

    exit_code = 2
    """Exit code of a command that ends with this error."""

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


class FaultError(UserError):
    """A fault of the machine in the middle of a run, such as a full disk or a killed process; commands exit with 1.

    Example:
        >>> FaultError("runs/a/metrics.csv: cannot be written (No space left on device)").exit_code
        1
    """

    exit_code = 1


class PeerError(Exception):
    """An error of another process of ``torchrun``, which prints it; commands exit with its code and print nothing.

    Example:
        >>> PeerError(2).exit_code
        2
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"another process has failed with the exit code {exit_code}")
        self.exit_code = exit_code


def one_line(text: str) -> str:
    """Makes one line of at most MAX_MESSAGE_CHARACTERS that is safe to print.

    Line breaks become spaces, other control characters become escapes, passwords in URLs are masked, and the middle of
    a long text is replaced by the number of characters left out.

    Example:
        >>> one_line("http://user:secret@host/x: unknown name 'a\\x1b[0m', expected\\none of 3")
        "http://***@host/x: unknown name 'a\\\\x1b[0m', expected one of 3"
    """
    text = mask_urls(re.sub(r"\s*[\r\n]\s*", " ", text.strip()))
    if len(text) > MAX_MESSAGE_CHARACTERS:
        kept = MAX_MESSAGE_CHARACTERS // 2 - 20
        text = f"{text[:kept]} ... ({len(text) - 2 * kept} characters) ... {text[-kept:]}"
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def check_values(
    options: object, names: Sequence[str], requirement: str, is_valid: Callable[[float], bool], *, prefix: str = ""
) -> None:
    """Raises UserError unless the attributes ``names`` of ``options`` are None or valid.

    Args:
        options: an object that holds the values.
        names: attributes to check.
        requirement: what the message says, such as "be positive".
        is_valid: tells whether a value is valid; it gets no None.
        prefix: precedes the name in the message.

    Example:
        >>> from danet.config import ModelConfig
        >>> check_values(ModelConfig(groups=4), ["groups", "neck_width"], "be at least 1", lambda value: value >= 1)
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and not is_valid(value):
            raise UserError(f"{prefix}{name} must {requirement}, got {value}")
