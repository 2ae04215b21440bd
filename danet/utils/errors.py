"""The one exception that commands turn into a single line and exit code 2."""


class UserError(ValueError):
    """Something the user can put right: a bad file, option or value.

    The message is one line and names the thing, e.g. ``train.json: image 'a.png' does not exist``.
    """
