import pickle

import pytest

from danet.utils.errors import MAX_MESSAGE_CHARACTERS, UserError, check_values, one_line


def test_one_line_shortens_the_middle_of_a_long_message():
    text = one_line(f"a.json: width must be a number, got {'9' * 1_000_000}; correct the file")
    assert len(text) <= MAX_MESSAGE_CHARACTERS
    assert text.startswith("a.json: width must be a number, got 999") and text.endswith("999; correct the file")
    assert "characters) ..." in text


def test_one_line_removes_line_breaks_and_control_characters():
    assert one_line("a.yaml: bad\n  in line 3\r\n") == "a.yaml: bad in line 3"
    assert one_line("name '\x1b[31mred\x07\ud800'") == "name '\\x1b[31mred\\x07\\ud800'"
    assert one_line("Größe 3 µm: ✓") == "Größe 3 µm: ✓"


def test_user_error_masks_passwords_and_survives_pickling():
    error = pickle.loads(pickle.dumps(UserError("rtsp://user:s3cret@h/x: lost\nafter 3 s")))
    assert str(error) == "rtsp://***@h/x: lost after 3 s"


def test_check_values_names_the_option_and_shortens_its_value():
    options = type("Options", (), {"size": "x" * 10_000})()
    with pytest.raises(UserError, match=r"^--size must be short, got x") as caught:
        check_values(options, ["size"], "be short", lambda value: False, prefix="--")
    assert len(str(caught.value)) <= MAX_MESSAGE_CHARACTERS
