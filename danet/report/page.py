"""The content of a page as plain data; its markup is in ``templates``, its styles are in ``style.css``."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from danet.evaluation import tables
from danet.evaluation.plots import to_svg


@dataclass
class Block:
    """A part of a section; its macro in ``templates/blocks.html.j2`` has the name of the class in lower case."""


@dataclass
class Paragraph(Block):
    text: str


@dataclass
class Code(Block):
    text: str
    label: str


@dataclass
class Facts(Block):
    pairs: list[tuple[str, object]]


@dataclass
class Chart(Block):
    """A figure as an ``<svg>`` element; a ``wide`` one scrolls on a phone."""

    title: str
    svg: str
    note: str = ""
    wide: bool = False

    @classmethod
    def of(cls, title: str, figure: Figure, note: str = "", wide: bool = False) -> "Chart":
        return cls(title, to_svg(figure, title), note, wide)


@dataclass
class Picture(Block):
    """A picture as a data URL, with its width and height in pixels."""

    source: str
    caption: str
    width: int
    height: int


@dataclass
class Sheet(Picture):
    """A wide picture, which scrolls on a narrow screen."""


@dataclass
class Pictures(Block):
    pictures: list[Picture]


@dataclass
class Table(Block):
    """A table that scrolls on a narrow screen; the first column and ``text_columns`` are text, the others numbers."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    text_columns: Sequence[int] = ()

    @classmethod
    def of(cls, table: tables.Table, text_columns: Sequence[int] = ()) -> "Table":
        """From a table of ``danet.evaluation``. Every row names its operating point: a phone shows the first column."""
        rows = [(f"{row.label}, {row.point}" if row.point else row.label, *row.cells) for row in table.rows]
        return cls(table.title[:1].upper() + table.title[1:], table.head, rows, table.note, text_columns)


@dataclass
class Bars(Block):
    """Labels with a value, its text and a bar; the longest bar fills the width."""

    title: str
    rows: Sequence[tuple[str, float, str]]
    note: str = ""


@dataclass
class Fold(Block):
    """Blocks that are hidden until the reader opens them."""

    title: str
    blocks: list[Block]


@dataclass
class Grid(Block):
    blocks: list[Block]


@dataclass
class Section:
    """A part of a page with an entry in the navigation; one without blocks is left out."""

    title: str
    blocks: list[Block] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


@dataclass
class Page:
    """A whole page: its subject, main metrics (name, value, explanation) and sections."""

    kind: str
    title: str
    lead: str
    tiles: list[tuple[str, str, str]]
    sections: list[Section]

    environment: ClassVar[Environment] = Environment(
        loader=PackageLoader("danet.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def html(self, footer: str) -> str:
        """The page as HTML that needs no other file."""
        sections = [section for section in self.sections if section.blocks]
        style = files(__package__).joinpath("style.css").read_text(encoding="utf-8")
        template = self.environment.get_template("page.html.j2")
        return template.render(page=self, sections=sections, style=style, footer=footer)
