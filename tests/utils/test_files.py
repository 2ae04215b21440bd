import json
import os
import resource
import signal

import pytest

from danet.utils.errors import FaultError, UserError
from danet.utils.files import atomic_path, check_folder, read_json, write_json


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
