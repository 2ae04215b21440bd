import contextlib
import json
import resource
import signal

import pytest

from danet.utils.errors import UserError
from danet.utils.growing_file import GrowingFile


@contextlib.contextmanager
def full_disk(size):
    """Limits the size of all files that the process writes, which then fail as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:  # inside of the test: pytest may write its own output to a file
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_growing_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "a.json"
    with GrowingFile(path, "[0") as file:
        for number in range(1, 4):
            file.append(f", {number}")
        file.undo()
        file.tail = "]"
        assert not path.exists()
    assert json.loads(path.read_text()) == [0, 1, 2]
    assert list(tmp_path.iterdir()) == [path]


def test_growing_file_is_whole_on_a_full_disk(tmp_path):
    path = tmp_path / "a.json"
    with full_disk(1000), GrowingFile(path, "[0") as file:
        file.tail = f", {'9' * 40}]"
        with pytest.raises(UserError, match=r"a\.json: cannot be written \(File too large\)"):
            for number in range(1, 1000):
                file.append(f", {number}")
    numbers = json.loads(path.read_text())
    assert 200 < len(numbers) < 300 and numbers[:-1] == list(range(len(numbers) - 1))
    assert path.stat().st_size <= 1000


def test_growing_file_keeps_records_after_an_error_but_no_empty_file(tmp_path):
    for records, expected in ((1, ["a.txt"]), (0, [])):
        with pytest.raises(KeyError), GrowingFile(tmp_path / "a.txt", "head ") as file:
            for _ in range(records):
                file.append("record")
            raise KeyError
        assert [path.name for path in tmp_path.iterdir()] == expected
        (tmp_path / "a.txt").unlink(missing_ok=True)


def test_growing_file_that_cannot_hold_its_head_is_an_error(tmp_path):
    with full_disk(10), pytest.raises(UserError, match="cannot be written"), GrowingFile(tmp_path / "a.txt", "x" * 20):
        pass
    assert list(tmp_path.iterdir()) == []


def test_growing_file_writes_invalid_characters_as_escapes(tmp_path):
    with GrowingFile(tmp_path / "a.txt", "") as file:
        file.append("a\udcffb")
    assert (tmp_path / "a.txt").read_text() == "a\\udcffb"


def test_visible_file_grows_under_its_own_name(tmp_path):
    path = tmp_path / "new" / "lines.txt"
    with GrowingFile(path, "a\n", visible=True) as file:
        assert path.read_text() == "a\n"
        file.append("b\n")
        assert path.read_text() == "a\nb\n"
    assert path.read_text() == "a\nb\n"
    with pytest.raises(UserError, match="cannot be written"), GrowingFile(tmp_path, "", visible=True):
        pass
