"""The exception that commands report in one line."""


class UserError(ValueError):
    """An error that the user can correct, such as an invalid file, option or value; commands exit with code 2.

    The message is one line that starts with the name of the file or option.

    Example:
        >>> str(UserError("train.json: image 'a.png' does not exist"))
        "train.json: image 'a.png' does not exist"
    """
