"""Random damage to files, for tests that feed readers with hostile input."""

import json
import random
import re
import struct
import zlib
from typing import Any

import cv2
import numpy as np

# fmt: off
TEXT_PIECES = [
    b"null", b"true", b"-1", b"0", b"1e999", b"NaN", b"9" * 5000, b"0.1", b'""', b"[]", b"{}", b"[" * 3000,
    b'"\\ud800"', b"\x00", b"\xff", b"\x1b[2J", b"[/red]", b"\n", b"\r\n", b" ", b"\t", b",", b":", b";", b'"', b"'",
    b"<", b">", b"&", b"- ", b"*a", b"<<", b"!!int ", b"%", b"@", b"#", b"&lt;", b"<!--", b"\xef\xbb\xbf", b"\xff\xfe",
    b"../", b"../../escaped", b"/", b"\\", b"x" * 300,
]
"""Values of other types, long numbers, syntax, control characters, paths, and bytes that are not UTF-8."""

MATLAB_COMPRESSED = 15
"""Type of an element of a MATLAB file that zlib has compressed."""

BINARY_PIECES = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\xff"]
"""0, -1, and the largest and smallest 32-bit integers in big-endian order."""

WORDS = [
    b"0", b"1", b"-1", b"2", b"7", b"0.5", b"-0.5", b"1.0", b"1e30", b"1e999", b"nan", b"inf", b"-0", b"1" + b"0" * 400,
    b"null", b"true", b"~", b"[]", b"{}", b"''", b"", b"drone", "d\u00e9j\u00e0".encode(), b"../../escaped", b"/",
    b"a.png",
]
"""What mutate_words inserts."""

JSON_VALUES: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "0", "nan", [], {},
    [[]], [None], {"": {}}, "x" * 3000, "a\nb", "\x1b[31m", "\ud800", "[/b]", "../../escaped", "/", ".",
]
# fmt: on


def mutate_text(content: bytes, rng: random.Random) -> bytes:
    """Deletes, repeats, replaces or inserts a few pieces of a text file.

    Example:
        >>> mutate_text(b"0 0.5 0.5 0.1 0.1", random.Random(1)) != b"0 0.5 0.5 0.1 0.1"
        True
    """
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4])):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice([0, 1, 2, 8, 40]))
        change = rng.randrange(4)
        if change == 0:
            del data[start:end]
        elif change == 1:
            data[start:start] = data[start:end] * rng.choice([1, 2, 50])
        elif change == 2:
            data[start:end] = rng.choice(TEXT_PIECES)
        else:
            data[start:start] = rng.choice(TEXT_PIECES)
    return bytes(data)


def mutate_words(content: bytes, rng: random.Random) -> bytes:
    """Replaces one or two words or numbers of a text file by other values; the syntax mostly stays valid.

    Example:
        >>> mutate_words(b"lr: 0.1", random.Random(4)).partition(b":")[0]
        b'lr'
    """
    for _ in range(rng.choice([1, 1, 2])):
        words = list(re.finditer(rb"[\w.+-]+", content))
        if words:
            word = rng.choice(words)
            value = rng.choice([*WORDS, rng.choice(words).group()])
            content = content[: word.start()] + value + content[word.end() :]
    return content


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Changes, inserts and removes some bytes of a binary file, half of them in its first 200 bytes, and may cut it."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        end = len(data) if rng.random() < 0.5 else min(len(data), 200)
        place = rng.randrange(end)
        value = rng.choice(BINARY_PIECES) if rng.random() < 0.5 else rng.randbytes(rng.randrange(1, 8))
        change = rng.randrange(4)
        if change == 0:
            data[place : place + len(value)] = value
        elif change == 1:
            data[place:place] = value
        elif change == 2:
            del data[place : place + len(value)]
        elif rng.random() < 0.3:
            del data[place:]
        data = data or bytearray(b"\0")
    return bytes(data)


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """Replaces, removes or repeats values or renames keys anywhere in a JSON document.

    Python can still read the result, which may hold NaN and Infinity. Strings that hold a JSON document are changed
    inside, too.
    """
    document = json.loads(content)
    for _ in range(rng.choice([1, 1, 2, 3])):
        document = _change_one(document, rng)
    return json.dumps(document).encode()


def mutate_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Changes the JSON header of a safetensors file, one number of its tensors, or bytes anywhere.

    The length of the header, which the file states, is adapted to a changed header. At least half of the changes of the
    header are in its metadata, in which DANet stores its configuration as JSON.
    """
    length = struct.unpack("<Q", content[:8])[0]
    header, numbers = content[8 : 8 + length], content[8 + length :]
    change = rng.randrange(6)
    if change < 2:
        document = json.loads(header)
        document["__metadata__"] = _change_one(document["__metadata__"], rng)
        header = json.dumps(document).encode()
    elif change < 4:
        header = mutate_json(header, rng)
    elif change == 4:
        place = rng.randrange(len(numbers) // 4) * 4
        numbers = (
            numbers[:place] + struct.pack("<f", rng.choice([float("nan"), float("inf"), 1e38])) + numbers[place + 4 :]
        )
    else:
        return mutate_bytes(content, rng)
    return struct.pack("<Q", len(header)) + header + numbers


def mutate_matlab(content: bytes, rng: random.Random) -> bytes:
    """Changes the uncompressed content of an element of a MATLAB file (version 5), or bytes of the compressed file."""
    elements, place = [], 128
    while place + 8 <= len(content):
        kind, length = struct.unpack("<II", content[place : place + 8])
        elements.append((kind, content[place + 8 : place + 8 + length]))
        place += 8 + length
    compressed = [index for index, (kind, _) in enumerate(elements) if kind == MATLAB_COMPRESSED]
    if not compressed or rng.random() < 0.2:
        return mutate_bytes(content, rng)
    chosen = rng.choice(compressed)
    inner = zlib.compress(mutate_bytes(zlib.decompress(elements[chosen][1]), rng))
    elements[chosen] = (MATLAB_COMPRESSED, inner)
    return content[:128] + b"".join(struct.pack("<II", kind, len(data)) + data for kind, data in elements)


def mutate_image(content: bytes, rng: random.Random) -> bytes:
    """A whole PNG of another size, data type, number of channels or content."""
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    grey = image if image.ndim == 2 else image[..., 0]
    size = rng.choice([(1, 1), (1, 500), (500, 1), (2, 3), grey.shape, (33, 129)])
    grey = np.resize(grey, size).astype(np.uint8)
    changes = [
        grey,
        255 - grey,
        np.zeros_like(grey),
        grey // 2,
        grey.astype(np.uint16) * 257,
        cv2.merge([grey] * 3),
        cv2.merge([grey] * 4),
        np.random.default_rng(rng.randrange(1000)).integers(0, 256, size, np.uint8),
    ]
    return cv2.imencode(".png", rng.choice(changes))[1].tobytes()


def mutate_onnx(content: bytes, rng: random.Random) -> bytes:
    """Changes the description that DANet stores in an ONNX file, or a few bytes of the file."""
    import onnx

    if rng.random() < 0.3:
        return mutate_bytes(content, rng)
    model = onnx.load_from_string(content)
    entry = rng.choice(model.metadata_props)
    entry.value = mutate_json(entry.value.encode(), rng).decode()
    return model.SerializeToString()


def _change_one(value: Any, rng: random.Random) -> Any:
    """Walks down at random to one value, and changes it or what holds it."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        change = rng.random()
        if change < 0.1:
            return {name: each for name, each in value.items() if name != key}
        if change < 0.15:
            return {(str(rng.choice(JSON_VALUES)) if name == key else name): each for name, each in value.items()}
        return {**value, key: _change_one(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        place = rng.randrange(len(value))
        change = rng.random()
        if change < 0.1:
            return value[:place] + value[place + 1 :]
        if change < 0.2:
            return value[:place] + [value[place]] * rng.choice([2, 3, 1000]) + value[place + 1 :]
        return [*value[:place], _change_one(value[place], rng), *value[place + 1 :]]
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.dumps(_change_one(json.loads(value), rng))
        except ValueError:
            pass
    return rng.choice(JSON_VALUES)
