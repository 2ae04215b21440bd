from dataclasses import dataclass

import pytest

from danet.detect import DetectOptions
from danet.track import TrackOptions
from danet.utils.typed_options import list_options


@dataclass
class Base:
    first: int = 1
    """Text of the base."""

    second: int = 2
    """Text that is replaced."""


@dataclass
class Derived(Base):
    second: int = 3
    """Text of the derived class."""

    third: int = 4


def test_help_of_inherited_fields_is_that_of_the_base_class():
    assert [(option.name, option.help, option.default) for option in list_options(Derived)] == [
        ("first", "Text of the base.", 1),
        ("second", "Text of the derived class.", 3),
        ("third", "", 4),
    ]
    assert [option.help for option in list_options(Base)] == ["Text of the base.", "Text that is replaced."]


@pytest.mark.parametrize(("command", "options"), [("detect", DetectOptions), ("track", TrackOptions)])
def test_every_option_of_detect_and_track_has_a_help_text(command, options):
    helps = {option.name: option.help for option in list_options(options)}
    assert [name for name, text in helps.items() if not text] == []
    assert helps["weights"].startswith("Weights file") and f"runs/{command}-2" in helps["out"]
