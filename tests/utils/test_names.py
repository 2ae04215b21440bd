import pytest

from danet.utils.errors import UserError
from danet.utils.names import MAX_NAME_CHARACTERS, check_name, join_name, quote


@pytest.mark.parametrize("name", ["drone", "无人机", "Möwe 2", "[red]x", "a\u200db", "\U0001f681"])
def test_check_name_accepts_any_script(name):
    assert check_name(name, "a.json: class 0") == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "must not be empty"),
        ("  ", "must not be empty"),
        (None, "must be a text, got None"),
        (["a"], r"must be a text, got \['a'\]"),
        ("\ud800", r"control characters, got '\\ud800'"),
        ("a\nb", "control characters"),
        ("a\x1b[31m", "control characters"),
        ("a\u2028b", "control characters"),
        ("a\0", "control characters"),
        ("x" * (MAX_NAME_CHARACTERS + 1), "at most 200 characters, got 201"),
    ],
)
def test_check_name_refuses_what_cannot_be_printed(name, message):
    with pytest.raises(UserError, match=message) as caught:
        check_name(name, "a.json: class 0")
    assert str(caught.value).startswith("a.json: class 0: ") and len(str(caught.value)) < 250
    str(caught.value).encode()


@pytest.mark.parametrize(
    "name", ["../a", "a/../../b", "/etc/passwd", "..", "..\\a", "C:/a", "", "a\0b", "a/" + "b" * 300, "\ud800.png"]
)
def test_join_name_refuses_a_path_outside(tmp_path, name):
    with pytest.raises(UserError, match=r"a name must|a file name must"):
        join_name(tmp_path, name, "a.json")


def test_join_name_for_reading_may_leave_the_folder(tmp_path):
    assert join_name(tmp_path, "a/b.png", "a.json") == tmp_path / "a/b.png"
    assert join_name(tmp_path, "../b.png", "a.json", inside=False) == tmp_path / "../b.png"
    with pytest.raises(UserError, match="control characters"):
        join_name(tmp_path, "../\x07", "a.json", inside=False)


def test_quote_is_short_and_linear():
    level: list = ["x"]
    for _ in range(60):
        level = [level, level]  # as nested aliases of YAML: 2 ** 60 elements
    for value in ("x" * 10**7, level, {"a": level}, list(range(10**6)), 10**4000, object()):
        assert len(quote(value)) <= 80
    assert quote([1, 2.5, None, "a"]) == "[1, 2.5, None, 'a']" and quote({"a": [1]}) == "{'a': [...]}"
