"""Writes the pages of methods and rules from the yamls and the docstrings of the classes they name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = {"methods.md": "algorithm", "rules.md": "aggregator"}
FILES = re.compile(r"\[([^\]]+)\]\(\.\./[^)]+\)")
"""Links to files of the repository, which the site does not have."""


def on_page_markdown(markdown: str, page: object, **_: object) -> str:
    """Put a row and a section per yaml where a page asks for it; links to files of the repository become their text."""
    group = PAGES.get(page.file.src_uri)  # type: ignore[attr-defined]
    if group:
        markdown = markdown.replace("<!-- table -->", _table(group)).replace("<!-- sections -->", _sections(group))
    return FILES.sub(r"\1", markdown)


def _yamls(group: str) -> list[Path]:
    return sorted((ROOT / "configs" / group).glob("*.yaml"))


def _target(path: Path) -> str:
    found = re.search(r"^_target_: (\S+)", path.read_text(), re.MULTILINE)
    if not found:
        raise ValueError(f"{path} names no class")
    return found[1]


def _first_line(target: str) -> str:
    """Return what the module of a class is said to be, without importing it."""
    module = target.rpartition(".")[0]
    source = (ROOT / "src" / Path(*module.split("."))).with_suffix(".py").read_text()
    return (ast.get_docstring(ast.parse(source)) or "").split("\n")[0]


def _table(group: str) -> str:
    rows = [f"| [`{path.stem}`](#{path.stem}) | {_first_line(_target(path))} |" for path in _yamls(group)]
    return "\n".join([f"| `{group}=` | |", "| --- | --- |", *rows])


def _sections(group: str) -> str:
    return "\n\n".join(_section(path) for path in _yamls(group))


def _section(path: Path) -> str:
    options = ["heading_level: 3", "show_root_heading: false", "show_root_toc_entry: false", "members: []"]
    return (
        f'## {path.stem} {{ #{path.stem} }}\n\n```yaml title="configs/{path.parent.name}/{path.name}"\n'
        f"{path.read_text().rstrip()}\n```\n\n::: {_target(path)}\n    options:\n"
        + "\n".join(f"      {o}" for o in options)
    )
