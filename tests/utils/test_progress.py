import io

import pytest

from danet.utils.progress import track, working


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch, stream, *, quiet: bool) -> str:
    """What a bar of each kind writes to stderr."""
    monkeypatch.setattr("sys.stderr", stream)
    with working("thinking", quiet=quiet):
        assert list(track([1, 2, 3], "counting", quiet=quiet)) == [1, 2, 3]
    return stream.getvalue()


def test_a_terminal_shows_what_is_being_done(monkeypatch):
    text = shown(monkeypatch, Terminal(), quiet=False)
    assert "thinking" in text and "counting" in text


@pytest.mark.parametrize(("stream", "quiet"), [(Terminal, True), (io.StringIO, False)])
def test_nothing_is_shown_to_a_file_nor_where_quiet_is_wanted(monkeypatch, stream, quiet):
    assert shown(monkeypatch, stream(), quiet=quiet) == ""
