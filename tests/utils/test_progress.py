import io

import pytest

from danet.utils.progress import count_items, track, working


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch, stream, *, quiet: bool) -> str:
    """Returns what a bar of each kind writes to stderr."""
    monkeypatch.setattr("sys.stderr", stream)
    with working("thinking", quiet=quiet):
        assert list(track([1, 2, 3], "counting", quiet=quiet)) == [1, 2, 3]
    with count_items("detecting", 3, "frames", quiet=quiet) as show_count:
        show_count(2)
    return stream.getvalue()


def test_bars_are_shown_in_a_terminal(monkeypatch):
    text = shown(monkeypatch, Terminal(), quiet=False)
    assert "thinking" in text and "counting" in text
    assert "detecting" in text and "frames/s" in text


@pytest.mark.parametrize(("stream", "quiet"), [(Terminal, True), (io.StringIO, False)])
def test_bars_are_hidden_if_quiet_or_not_in_a_terminal(monkeypatch, stream, quiet):
    assert shown(monkeypatch, stream(), quiet=quiet) == ""
