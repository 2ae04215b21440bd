"""The exception that commands report in one line, and a check of options that raises it."""

from collections.abc import Callable, Sequence


class UserError(ValueError):
    """An error that the user can correct, such as an invalid file, option or value; commands exit with code 2.

    The message is one line that starts with the name of the file or option.

    Example:
        >>> str(UserError("train.json: image 'a.png' does not exist"))
        "train.json: image 'a.png' does not exist"
    """

    exit_code = 2
    """Exit code of a command that ends with this error."""


class FaultError(UserError):
    """A fault of the machine in the middle of a run, such as a full disk or a killed process; commands exit with 1.

    Example:
        >>> FaultError("runs/a/metrics.csv: cannot be written (No space left on device)").exit_code
        1
    """

    exit_code = 1


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
