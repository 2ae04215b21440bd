"""Text of users and files as it may be printed and drawn."""


def printable(text: object) -> str:
    """The text with line breaks, control characters and invalid characters as escapes.

    A name from a file could otherwise change the terminal, and characters that UTF-8 cannot represent end ``print``
    with an error and OpenCV's text functions with a crash.

    Example:
        >>> printable("drone"), printable("a\\nb\\ud800")
        ('drone', 'a\\\\nb\\\\ud800')
    """
    characters = str(text)
    return characters if characters.isprintable() else "".join(map(_escape, characters))


def _escape(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
