"""Writes what the pages say of choices from the yamls and docstrings, and brings pictures of results along."""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))  # the pages are of this checkout

from fedgh.core.choices import OTHER, Choice, by_purpose, choices  # noqa: E402

PAGES = {"methods.md": "algorithm", "rules.md": "aggregator"}
SHOWN = re.compile(r"\]\(\.\./(results/[^)]+\.(?:png|html))\)")
"""Links to pictures and pages of results, which become files of the site."""
FILES = re.compile(r"\[([^\]]+)\]\(\.\./[^)]+\)")
"""Links to other files of the repository, which the site does not have."""


def on_files(files: object, config: object, **_: object) -> object:
    """Add the pictures and pages below ``results`` that a page shows."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
    for name in sorted({name for text in texts for name in SHOWN.findall(text)}):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))  # type: ignore[attr-defined]
    return files


def on_page_markdown(markdown: str, page: object, **_: object) -> str:
    """Put lists of choices and a section per yaml where a page asks for it; links to other files become their text."""
    group = PAGES.get(page.file.src_uri)  # type: ignore[attr-defined]
    markdown = re.sub(r"<!-- choices (\S+) -->", lambda found: _table(found[1], group), markdown)
    if group:
        markdown = markdown.replace("<!-- sections -->", _sections(group))
    return FILES.sub(r"\1", SHOWN.sub(r"](\1)", markdown))


def _table(group: str, sectioned: str | None) -> str:
    """Return the choices of a group, by purpose where they have some; with links where a section of each follows."""
    parts = []
    for purpose, found in by_purpose(choices(group)).items():
        rows = [
            f"| {f'[`{choice.name}`](#{choice.name})' if group == sectioned else f'`{choice.name}`'} | {choice.summary} |"
            for choice in found
        ]
        heading = "" if purpose == OTHER else f"{purpose[0].upper()}{purpose[1:]}"
        parts.append("\n".join([f"| {heading or f'`{group}=`'} | |", "| --- | --- |", *rows]))
    return "\n\n".join(parts)


def _sections(group: str) -> str:
    return "\n\n".join(_section(choice) for choice in choices(group))


def _section(choice: Choice) -> str:
    path = posixpath.join("configs", choice.group, f"{choice.name}.yaml")
    text = (ROOT / path).read_text(encoding="utf-8").rstrip()
    target = re.search(r"^_target_: (\S+)", text, re.MULTILINE)
    if not target:
        raise ValueError(f"{path} names no class")
    options = ["heading_level: 3", "show_root_heading: false", "show_root_toc_entry: false", "members: []"]
    return (
        f'## {choice.name} {{ #{choice.name} }}\n\n```yaml title="{path}"\n{text}\n```\n\n'
        f"::: {target[1]}\n    options:\n" + "\n".join(f"      {o}" for o in options)
    )
