"""HTML from Python: text is escaped where it enters, and every element is closed."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files

VOID = {"img", "meta"}
# Figures stand to the right; so do intervals, ratios and what stands for a missing one.
NUMBER = re.compile(r"[-+−]?[\d.,]+([ %×x±/()–-].*|)|-|not reached.*")


class Html(str):
    """Markup; any other string is text."""


def tag(name: str, /, *children: str, **attributes: str | bool | None) -> Html:
    """An element. ``class_`` stands for class, ``aria_label`` for aria-label; None and False leave an attribute out."""
    words = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            words.append(key)
        elif value is not None and value is not False:
            words.append(f'{key}="{escape(str(value))}"')
    opening = f"<{' '.join(words)}>"
    return Html(opening if name in VOID else f"{opening}{join(children)}</{name}>")


def join(parts: Iterable[str]) -> Html:
    """One after the other; text is escaped."""
    return Html("".join(part if isinstance(part, Html) else escape(str(part)) for part in parts))


@dataclass
class Section:
    """A part of a page, which the list of contents leads to."""

    title: str
    parts: list[Html] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")

    def html(self) -> Html:
        return tag("section", tag("h2", self.title), *self.parts, id=self.anchor)


@dataclass
class Report:
    """A whole page: what it is about, its main figures (name, value, explanation), and its sections."""

    kind: str
    title: str
    lead: str
    tiles: list[tuple[str, str, str]]
    sections: list[Section]

    def html(self, footer: str) -> Html:
        sections = [section for section in self.sections if section.parts]
        contents = [tag("li", tag("a", each.title, href=f"#{each.anchor}")) for each in sections]
        head = tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="color-scheme", content="light dark"),
            tag("title", f"{self.title} · {self.kind}"),
            tag("style", Html(files(__package__).joinpath("style.css").read_text(encoding="utf-8"))),
        )
        body = tag(
            "body",
            tag(
                "header",
                tag("p", self.kind, class_="kind"),
                tag("h1", self.title),
                tag("p", self.lead, class_="lead"),
                _tiles(self.tiles),
                tag("nav", tag("ul", *contents), aria_label="Contents"),
            ),
            tag("main", *(section.html() for section in sections)),
            tag("footer", tag("p", footer)),
        )
        return Html(f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n")


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> Html:
    """A table that scrolls in a box of its own where the screen is narrow; the first column heads the rows."""
    cells = [
        tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell, class_=_align(cell)) for cell in row[1:]))
        for row in rows
    ]
    right = [all(NUMBER.fullmatch(str(row[index])) for row in rows if row[index]) for index in range(len(head))]
    titles = [
        tag("th", title, scope="col", class_="number" if number and index else None)
        for index, (title, number) in enumerate(zip(head, right, strict=True))
    ]
    body = tag("table", tag("caption", caption), tag("thead", tag("tr", *titles)), tag("tbody", *cells))
    box = tag("div", body, class_="scroll", tabindex="0", role="region", aria_label=caption)
    return tag("div", box, *([tag("p", note, class_="note")] if note else []), class_="block")


def bars(caption: str, rows: Sequence[tuple[str, float, str]], note: str = "") -> Html:
    """A table whose figures (label, value, the value in words) have a bar each; the longest fills the width."""
    longest = max((value for _, value, _ in rows), default=1.0) or 1.0
    cells = [
        tag(
            "tr",
            tag("th", label, scope="row"),
            tag("td", tag("span", words), tag("i", style=f"width:{100 * value / longest:.1f}%"), class_="bar"),
        )
        for label, value, words in rows
    ]
    body = tag("table", tag("caption", caption), tag("tbody", *cells), class_="bars")
    return tag("div", body, *([tag("p", note, class_="note")] if note else []), class_="block")


def facts(pairs: Iterable[tuple[str, object]]) -> Html:
    """Names and values."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", str(value))) for name, value in pairs), class_="facts")


def code(text: str, label: str) -> Html:
    """Lines of a terminal or a file, as they are."""
    return tag("pre", tag("code", text), tabindex="0", role="region", aria_label=label, class_="scroll")


def fold(title: str, *parts: Html) -> Html:
    """What few readers want, behind a line that opens it."""
    return tag("details", tag("summary", title), *parts)


def paragraph(text: str) -> Html:
    return tag("p", text)


def grid(*parts: Html) -> Html:
    """Side by side where the screen is wide."""
    return tag("div", *parts, class_="grid")


def _tiles(tiles: Sequence[tuple[str, str, str]]) -> Html:
    cells = [
        tag("div", tag("dt", name), tag("dd", value), *([tag("dd", about, class_="about")] if about else []))
        for name, value, about in tiles
    ]
    return tag("dl", *cells, class_="tiles") if cells else Html("")


def _align(cell: str) -> str | None:
    return "number" if NUMBER.fullmatch(str(cell)) else None
