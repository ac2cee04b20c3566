"""One self-contained HTML page of texts, tables and figures: no script, nothing loaded from anywhere.

``render`` makes the page of a title and sections. Every word of it is escaped. It needs jinja2, and ``charts.py``
matplotlib: ``pip install "lightning_kd[report]"``.
"""

import importlib.util
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

Value: TypeAlias = str | float | int | None
"""What a cell of a table shows: words, a number, or a dash for ``None`` and NaN."""

_NUMBER = re.compile(r"[-+<>~(\[]?\s?\d[-+\d.,\s()\[\]%xeE\u00b1\u2212\u00d7]*[A-Za-z\u00b5/]{0,4}")
"""A number with its interval or its unit."""
_PACKAGES = ("jinja2", "matplotlib")
_NONE = "\N{EN DASH}"


class MissingExtraError(ModuleNotFoundError):
    """Raised where a page is asked for without the packages that make it."""


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph; of kind ``"note"`` it is small, of kind ``"warning"`` it stands out."""

    text: str
    kind: str = ""
    part: ClassVar[str] = "text"


@dataclass(frozen=True, slots=True)
class Code:
    """Lines as they are, such as a command or a configuration."""

    text: str
    part: ClassVar[str] = "code"


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell that stands out: kind ``"good"``, ``"bad"``, ``"doubt"`` or ``"strong"``."""

    value: Value
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table. Numbers stand to the right; a table that is too wide scrolls within itself."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Value | Cell]]
    caption: str = ""
    part: ClassVar[str] = "table"

    @property
    def styles(self) -> list[str]:
        """The style of each column: numbers stand to the right."""
        numeric = (all(_is_number(row[at]) for row in self.rows) for at in range(len(self.columns)))
        return ["right" if self.rows and right else "" for right in numeric]

    @property
    def heads(self) -> list[tuple[str, str]]:
        """The columns with their styles."""
        return list(zip(self.columns, self.styles, strict=True))

    @property
    def cells(self) -> list[list[tuple[str, str]]]:
        """Rows of texts with their styles."""
        styles = self.styles
        return [
            [(shown(one), f"{_kind(one)} {style}".strip()) for one, style in zip(row, styles, strict=True)]
            for row in self.rows
        ]


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as a data URI, with words for those who do not see it.

    Args:
        uri: The image, ``data:image/svg+xml;base64,...`` or ``data:image/png;base64,...``.
        alt: What it shows, with its main numbers.
        caption: What stands below it.
        width: Its width in pixels, at which its letters have the size of the page's.
    """

    uri: str
    alt: str
    caption: str = ""
    width: int = 0
    part: ClassVar[str] = "pictures"

    @property
    def pictures(self) -> list["Picture"]:
        """Itself, as a row of one."""
        return [self]

    @property
    def pixels(self) -> bool:
        """Whether it is so small that its pixels are to be seen."""
        return 0 < self.width < 64

    small: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures beside each other where there is room; ``small`` ones are thumbnails."""

    pictures: Sequence[Picture]
    small: bool = False
    part: ClassVar[str] = "pictures"


@dataclass(frozen=True, slots=True)
class Tile:
    """One number in large letters."""

    label: str
    value: Value
    note: str = ""


@dataclass(frozen=True, slots=True)
class Tiles:
    """The numbers that a reader looks for first."""

    tiles: Sequence[Tile]
    part: ClassVar[str] = "tiles"

    @property
    def shown(self) -> list[tuple[str, str, str]]:
        """Label, text and note of each tile."""
        return [(tile.label, shown(tile.value), tile.note) for tile in self.tiles]


@dataclass(frozen=True, slots=True)
class Row:
    """Parts beside each other where there is room, such as a chart and its numbers."""

    parts: Sequence["Part"]
    part: ClassVar[str] = "row"


Part: TypeAlias = Text | Code | Table | Picture | Pictures | Tiles | Row


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with what stands below it; without a title it stands at the top of the page."""

    title: str
    parts: Sequence[Part] = field(default_factory=tuple)

    @property
    def anchor(self) -> str:
        """The name that links to this section use."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-") or "top"


def render(title: str, sections: Sequence[Section], *, subtitle: str = "") -> str:
    """Return a page as HTML.

    Args:
        title: The title.
        sections: What is on the page, from top to bottom.
        subtitle: A line below the title.

    Raises:
        MissingExtraError: If jinja2 is not installed; names the extra.

    Example:
        >>> page = render("A & B", [Section("Numbers", [Table(["name", "value"], [["<b>", 0.5]])])])
        >>> "A &amp; B" in page, "&lt;b&gt;" in page, "<script" in page
        (True, True, False)
    """
    check_extra("jinja2")
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("lightning_kd.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(title=title, subtitle=subtitle, sections=sections)


def check_extra(*packages: str) -> None:
    """Refuse to go on without packages of the extra ``report``.

    Args:
        packages: The packages, all of the extra by default.

    Raises:
        MissingExtraError: If one is not installed.
    """
    for package in packages or _PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(f'A report page takes {package}: pip install "lightning_kd[report]"', name=package)


def has_extra() -> bool:
    """Whether the packages of the extra ``report`` are installed."""
    return all(importlib.util.find_spec(package) is not None for package in _PACKAGES)


def shown(value: "Value | Cell") -> str:
    """Return a value as a page shows it: large whole numbers with commas, others with four digits.

    Example:
        >>> [shown(value) for value in ("a", 1234567, 0.123456, 1234.5)]
        ['a', '1,234,567', '0.1235', '1,234']
    """
    if isinstance(value, Cell):
        return shown(value.value)
    if isinstance(value, str):
        return value
    if value is None or not math.isfinite(value):
        return _NONE
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _is_number(cell: "Value | Cell") -> bool:
    value = cell.value if isinstance(cell, Cell) else cell
    return not isinstance(value, str) or value in ("", _NONE) or _NUMBER.fullmatch(value) is not None


def _kind(cell: "Value | Cell") -> str:
    return cell.kind if isinstance(cell, Cell) else ""
