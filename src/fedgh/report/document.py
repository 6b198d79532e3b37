"""A report as it grows, given out as Markdown and as one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from fedgh.report.style import whole_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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

    def points(self, lines: Sequence[str], kind: str = "") -> None:
        """Add a list; ``kind="warning"`` draws the reader's eye."""
        self.markdown.append("\n".join(f"- {line}" for line in lines))
        items = "".join(f"<li>{_code(line)}</li>" for line in lines)
        self.html.append(f"<div class='{kind}'><ul>{items}</ul></div>")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[Cell]], kind: str = "report") -> None:
        """Add a table; the first column names the rows. ``kind`` is its style in the page."""
        self.markdown.append(
            "\n".join(
                [
                    "| " + " | ".join(map(_bar, head)) + " |",
                    "| --- |" + " ---: |" * (len(head) - 1),
                    *("| " + " | ".join("<br>".join(map(_bar, _lines(cell))) for cell in row) + " |" for row in rows),
                ]
            )
        )
        top = "".join(f"<th>{escape(name).replace(', ', ',<br>')}</th>" for name in head)
        body = "".join("<tr>" + "".join(map(_data, row)) + "</tr>" for row in rows)
        start = f"<thead><tr>{top}</tr></thead>" if head else ""
        self.html.append(f"<div class='wide'><table class='{kind}'>{start}<tbody>{body}</tbody></table></div>")

    def picture(self, name: str, caption: str, figure: Figure) -> None:
        """Save a figure as PNG beside the report, and put it into the page itself."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150, facecolor="white")
        (self.folder / f"{name}.png").write_bytes(buffer.getvalue())
        image, width = base64.b64encode(buffer.getvalue()).decode(), round(96 * figure.get_figwidth())
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


def _code(text: str) -> str:
    """Return HTML of a text in which backquotes mark what is typed."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _lines(cell: Cell) -> Sequence[str]:
    return [cell] if isinstance(cell, str) else cell


def _data(cell: Cell) -> str:
    first, *rest = _lines(cell) or [""]
    return f"<td>{escape(first)}" + "".join(f"<br><small>{escape(line)}</small>" for line in rest) + "</td>"


def _bar(text: str) -> str:
    """Keep what Markdown would read as a new column, or as markup."""
    return text.replace("|", "\\|").replace("<", "&lt;")
