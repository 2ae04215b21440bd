import json
import os
import resource
import signal

import pytest

from danet.utils.errors import FaultError, UserError
from danet.utils.files import (
    atomic_path,
    check_folder,
    parse_yaml,
    read_json,
    read_text,
    read_xml,
    read_yaml,
    write_json,
    write_text,
)


def test_atomic_path_leaves_nothing_after_an_error(tmp_path):
    path = tmp_path / "folder" / "result.txt"
    with pytest.raises(RuntimeError, match="midway"), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("midway")
    assert list(path.parent.iterdir()) == []
    with atomic_path(path) as temporary:
        assert temporary.suffix == ".txt" and not path.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole" and len(list(path.parent.iterdir())) == 1


def test_write_json_keeps_the_older_file_after_an_error(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}


def test_write_json_applies_the_umask(tmp_path):
    previous = os.umask(0o027)
    try:
        write_json(tmp_path / "a.json", 1)
    finally:
        os.umask(previous)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o640


def test_write_json_names_a_folder_that_cannot_be_created(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"a\.json: cannot be written"):
        write_json(tmp_path / "file" / "a.json", 1)


def test_read_json_names_an_invalid_file(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match=r"a\.json: not valid JSON"):
        read_json(tmp_path / "a.json")
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"b\.json: not UTF-8 text"):
        read_json(tmp_path / "b.json")
    (tmp_path / "deep.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(UserError, match=r"deep\.json: not usable JSON"):
        read_json(tmp_path / "deep.json")
    with pytest.raises(UserError, match=r"c\.json: no such file"):
        read_json(tmp_path / "c.json")


def test_write_json_names_the_file_after_a_system_error(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(FaultError, match=r"a\.json: cannot be written \(File too large\)"):
            write_json(tmp_path / "a.json", "x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder: cannot be written") as error:
        write_json(tmp_path / "folder", 1)
    assert not isinstance(error.value, FaultError)  # a wrong path, not a fault of the machine
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_atomic_path_passes_on_errors_of_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="other"), atomic_path(tmp_path / "a.txt"):
        (tmp_path / "other").read_text()


def test_check_folder_rejects_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    check_folder(tmp_path / "new" / "folder")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match="file is a file"):
            check_folder(path)


def test_read_text_accepts_byte_order_marks_of_windows(tmp_path):
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "a.txt").write_bytes("dröne\r\nbird".encode(encoding))
        assert read_text(tmp_path / "a.txt") == "dröne\nbird"


@pytest.mark.parametrize("text", ["[" + "9" * 5000 + "]", '{"a": ' * 60_000])
def test_read_json_refuses_long_integers_and_deep_nesting(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json: not usable JSON \(") as caught:
        read_json(tmp_path / "a.json")
    assert len(str(caught.value)) < 200


def alias_bomb(step: str) -> str:
    levels = [f"a{i}: &a{i} {step.format(', '.join([f'*a{i - 1}'] * 9))}" for i in range(1, 12)]
    return "\n".join(["a0: &a0 {x: 1, y: 2}", *levels])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [drone", "not valid YAML"),
        ("a: 1\n--- \nb: 2", "not valid YAML"),
        ("names: " + "[" * 500, "nested deeper than 100"),
        ("names: " + "- " * 5000 + "x", "not valid YAML"),
        ("names:\n" + "\n".join(" " * i + "-" for i in range(300)), "nested deeper than 100"),
        (alias_bomb("[{}]"), "more than 1000000 values"),
        (alias_bomb("{{<<: [{}]}}"), "more than 1000000 values"),
        ("names: &a [*a]", "an alias refers to itself"),
        ("names: [*b]", "an alias refers to itself or to nothing"),
        ("nc: " + "9" * 5000, "not usable YAML"),
        ("date: 2020-99-99", "not usable YAML"),
        ('nc: !!int ""', "not usable YAML"),
        ("a: !!python/object:os.system {}", "not valid YAML"),
        ("{[1]: 2, {a: b}: 3}", "not valid YAML"),
        ("a: \x07", "not valid YAML"),
    ],
)
def test_parse_yaml_refuses_in_one_short_line(text, message):
    with pytest.raises(UserError, match=rf"^data\.yaml: .*{message}") as caught:
        parse_yaml(text, "data.yaml")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_parse_yaml_allows_aliases(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &a [1, 2]\nb: *a\nc: {<<: &d {x: 1}, y: *a}")
    assert read_yaml(tmp_path / "a.yaml") == {"a": [1, 2], "b": [1, 2], "c": {"x": 1, "y": [1, 2]}}


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [("utf-8", "utf-8"), ("UTF-8", "utf-8-sig"), ("gb2312", "gbk"), ("utf-16", "utf-16"), ("windows-1252", "cp1252")],
)
def test_read_xml_decodes_declared_encodings(tmp_path, declared, encoding):
    text = "é" if encoding == "cp1252" else "無人机"
    xml = f'<?xml version="1.0" encoding="{declared}"?>\n<annotation><name>{text}</name></annotation>'
    (tmp_path / "a.xml").write_bytes(xml.encode(encoding))
    assert read_xml(tmp_path / "a.xml").findtext("name") == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<a>", "not valid XML"),
        (b"", "not valid XML"),
        (b"<a>\x00</a>", "not valid XML"),
        (b"<a>\xff</a>", "not readable as utf-8-sig"),
        (b'<?xml version="1.0" encoding="klingon"?><a/>', "not readable as klingon"),
        (b'<?xml version="1.0" encoding="punycode"?><a/>', "not readable as punycode"),
        (b'<?xml version="1.0" encoding="zlib"?><a/>', "not readable as zlib"),
        (b'<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>', "declares entities"),
    ],
)
def test_read_xml_names_an_invalid_file(tmp_path, content, message):
    (tmp_path / "a.xml").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.xml: .*{message}"):
        read_xml(tmp_path / "a.xml")


def test_read_xml_survives_deep_nesting(tmp_path):
    (tmp_path / "a.xml").write_text("<a>" * 100_000 + "</a>" * 100_000)
    assert read_xml(tmp_path / "a.xml").tag == "a"


def test_write_text_escapes_what_utf8_cannot_represent(tmp_path):
    write_text(tmp_path / "a.txt", "name \ud800 é")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "name \\ud800 é"
