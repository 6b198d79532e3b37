"""A report as it grows, given out as Markdown and as one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from fedgh.plot.style import png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Tells the browser, too, that a page needs no other file."""

Cell = str | Sequence[str]
"""Of a table: one line, or several below each other."""


@dataclass
class Document:
    """Headings, paragraphs, tables and pictures.

    Attributes:
        folder: Where the pictures go.
        title: Of the whole.
        markdown: Parts, in order.
        html: The same.
    """

    folder: Path
    title: str
    markdown: list[str] = field(default_factory=list)
    html: list[str] = field(default_factory=list)

    def heading(self, text: str, level: int = 2) -> None:
        """Begin a section."""
        self.markdown.append(f"{'#' * level} {text}")
        self.html.append(f"<h{level}>{escape(text)}</h{level}>")

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self.markdown.append(text)
        self.html.append(f"<p>{_code(text)}</p>")

    def note(self, text: str) -> None:
        """Add what helps to read a section, in the page alone."""
        self.html.append(f"<p class='note'>{escape(text)}</p>")

    def points(self, lines: Sequence[str], kind: str = "") -> None:
        """Add a list; ``kind="warning"`` draws the reader's eye."""
        self.markdown.append("\n".join(f"- {line}" for line in lines))
        items = "".join(f"<li>{_code(line)}</li>" for line in lines)
        self.html.append(f"<div class='{kind}'><ul>{items}</ul></div>")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[Cell]], kind: str = "report") -> None:
        """Add a table; the first column names the rows. ``kind`` is its style in the page."""
        words = [index for index, cells in enumerate(zip(*rows, strict=True)) if index == 0 or any(map(_words, cells))]
        rules = ["---" if index in words else "---:" for index in range(len(head))]
        lines = [["<br>".join(map(_bar, _lines(cell))) for cell in row] for row in rows]
        self.markdown.append("\n".join(f"| {' | '.join(line)} |" for line in (map(_bar, head), rules, *lines)))
        kinds = [" class=words" if index in words else "" for index in range(max(map(len, [head, *rows])))]
        top = "".join(
            f"<th{of}>{escape(name).replace(', ', ',<br>')}</th>" for of, name in zip(kinds, head, strict=False)
        )
        body = "".join(f"<tr>{''.join(map(_data, row, kinds))}</tr>" for row in rows)
        start = f"<thead><tr>{top}</tr></thead>" if head else ""
        self.html.append(f"<div class='wide'><table class='{kind}'>{start}<tbody>{body}</tbody></table></div>")

    def picture(self, name: str, caption: str, figure: Figure) -> None:
        """Save a figure as PNG beside the report, and put it into the page itself."""
        content = png(figure)
        (self.folder / f"{name}.png").write_bytes(content)
        image, width = base64.b64encode(content).decode(), round(96 * figure.get_figwidth())
        self.markdown += [f"![{name.replace('_', ' ')}]({name}.png)", f"*{caption}*"]
        self.html.append(
            f"<figure><img alt='{escape(name.replace('_', ' '))}' width='{width}' src='data:image/png;base64,{image}'>"
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )

    def write(self, stem: str = "report") -> str:
        """Write both files.

        Returns:
            The Markdown text.
        """
        text = "\n\n".join([f"# {self.title}", *self.markdown]) + "\n"
        (self.folder / f"{stem}.md").write_text(text, encoding="utf-8")
        (self.folder / f"{stem}.html").write_text(whole_page(self.title, "\n".join(self.html)), encoding="utf-8")
        return text


def whole_page(title: str, body: str) -> str:
    """Return a page that needs no other file, under its title."""
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{beside('page.css')}</style></head>\n"
        f"<body><main>\n<h1>{escape(title)}</h1>\n{body}\n</main></body></html>\n"
    )


def beside(name: str) -> str:
    """Return the text of a file of this package."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _code(text: str) -> str:
    """Return HTML of a text in which backquotes mark what is typed."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _lines(cell: Cell) -> Sequence[str]:
    return [cell] if isinstance(cell, str) else cell


def _words(cell: Cell) -> bool:
    """Tell whether a cell holds words, which are read from the left and may be broken, and no number."""
    text = "".join(_lines(cell)[:1])
    return bool(text) and not re.match(r"[-+−–]?\d|[-–]$|missing|not known|one seed|no pair", text)


def _data(cell: Cell, kind: str = "") -> str:
    first, *rest = _lines(cell) or [""]
    return f"<td{kind}>{escape(first)}" + "".join(f"<br><small>{escape(line)}</small>" for line in rest) + "</td>"


def _bar(text: str) -> str:
    """Keep what Markdown would read as a new column, or as markup."""
    return text.replace("|", "\\|").replace("<", "&lt;")
