"""Hides passwords and tokens in URLs before they are printed or stored."""

import re

MASK = "***"

PUBLIC_PARAMETERS = frozenset(
    {"bitrate", "camera", "channel", "codec", "fps", "height", "profile", "quality", "resolution", "stream", "width"}
)
"""Parameters of cameras and streams whose values are shown: they tell one stream from another and are no secret."""

# A URL in a text; punctuation after it belongs to the text.
_URL = re.compile(r"\b[a-z][a-z0-9+.-]*://\S*[^\s:;,.!?\"'()\[\]<>]", re.IGNORECASE)
_PARAMETER = re.compile(r"([?&;#])([^=&;#?]*)=([^&;#]*)")
_SECRET_IN_PATH = re.compile(
    r"((?:user(?:name)?|login|pass(?:word|wd|phrase)?|pwd|token|auth|key|secret|sig(?:nature)?)=)[^/]*", re.IGNORECASE
)


def mask_urls(text: str) -> str:
    """Replaces user names, passwords and tokens in all URLs of a text by ``***``, see ``mask_url``.

    Example:
        >>> mask_urls("rtsp://admin:s3cret@10.0.0.5/live: no image after frame 3")
        'rtsp://***@10.0.0.5/live: no image after frame 3'
    """
    return _URL.sub(lambda match: mask_url(match[0]), text) if "://" in text else text


def mask_url(url: str) -> str:
    """Replaces user name, password and tokens of a URL by ``***``; text that is not a URL stays as it is.

    Masked are the part before ``@``, the values of all parameters except PUBLIC_PARAMETERS, and ``password=...`` and
    the like in the path, as some cameras have it.

    Example:
        >>> mask_url("rtsp://admin:s3cret@10.0.0.5/live?channel=2&token=abc")
        'rtsp://***@10.0.0.5/live?channel=2&token=***'
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    port = authority.rpartition(":")[2]
    if "@" in rest and "@" not in authority and ":" in authority and not port.isdigit() and "]" not in authority:
        authority = rest[: rest.rindex("@") + 1]  # the password contains "/", "?" or "#"
    if "@" in authority:
        rest = f"{MASK}@{rest[authority.rindex('@') + 1 :]}"
    end = min((rest.find(mark) for mark in "?#" if mark in rest), default=len(rest))
    path = _SECRET_IN_PATH.sub(rf"\1{MASK}", rest[:end])
    return f"{scheme}://{path}{_PARAMETER.sub(_mask_parameter, rest[end:])}"


def mask_values(value: object) -> object:
    """Applies ``mask_url`` to all texts in nested dicts, lists and tuples, for writing them to YAML or JSON.

    Tuples become lists.

    Example:
        >>> mask_values({"sources": ["http://a:b@host/x", 3]})
        {'sources': ['http://***@host/x', 3]}
    """
    if isinstance(value, str):
        return mask_url(value)
    if isinstance(value, dict):
        return {key: mask_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [mask_values(item) for item in value]
    return value


def _mask_parameter(match: re.Match) -> str:
    mark, name, value = match.groups()
    return f"{mark}{name}={value if name.lower() in PUBLIC_PARAMETERS else MASK}"
