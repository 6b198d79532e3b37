"""What there is to choose from, one line each: yamls and docstrings read as text, so that nothing heavy is loaded."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import entry_points
from pathlib import Path

from fedgh.core.configs import CONFIG_DIR
from fedgh.core.errors import ConfigurationError, did_you_mean

ENTRY_POINT = "fedgh.configs"
"""The group of entry points by which installed packages bring yamls."""

PURPOSES = (
    "the plain baseline",
    "client drift",
    "flat minima",
    "fairness",
    "personal models",
    "clusters of clients",
    "attacks and uncertainty",
    "several tasks",
    "domain adaptation",
    "gradient conflict",
    "several objectives",
    "client weights",
    "on top of any rule",
)
"""What methods and rules are for, in the order in which they are listed; a yaml names one as ``# purpose: ...``."""

OTHER = "others"
HIDDEN = ("paths", "hydra", "hydra/callbacks", "hydra/sweeper/pruner", "hydra/sweeper/sampler", "sweep")
NESTED = {"hydra/launcher": "where the runs of a sweep (-m) run", "hydra/sweeper": "a search instead of a grid (-m)"}


@dataclass(frozen=True)
class Choice:
    """One yaml of a group.

    Attributes:
        group: Its folder, such as ``algorithm``.
        name: What one types: its path in that folder, without the ending.
        summary: One line on what it is; empty if neither the yaml nor a docstring says it.
        purpose: One of ``PURPOSES``, or whatever else its yaml says; empty if it says nothing.
    """

    group: str
    name: str
    summary: str
    purpose: str


@cache
def folders() -> tuple[Path, ...]:
    """Return the folders that hold configs: ours, then those of installed packages in the order of their names."""
    entries = sorted(entry_points(group=ENTRY_POINT), key=lambda entry: entry.name)
    found = [_located(entry.value.split(".")) for entry in entries]
    return (CONFIG_DIR, *(path for path in found if path is not None))


def groups() -> dict[str, str]:
    """Return every group one chooses from, with what it decides: the comment in the defaults list of train.yaml."""
    text = (CONFIG_DIR / "train.yaml").read_text(encoding="utf-8")
    said = {"lr_schedule": "how a learning rate changes over the rounds"}
    said |= dict(re.findall(r"^  - (\w+): \w+ *# (.*)$", text, re.MULTILINE))
    names = {path.parent.relative_to(root).as_posix() for root in folders() for path in root.rglob("*.yaml")}
    names = {name if name.startswith("hydra/") else name.partition("/")[0] for name in names}
    return {name: said.get(name, NESTED.get(name, "")) for name in sorted(names - {".", "", *HIDDEN})}


def choices(group: str) -> list[Choice]:
    """Return the choices of a group by name, those of installed packages among them.

    Raises:
        ConfigurationError: If there is no such group.
    """
    names = groups()
    if group not in names:
        raise ConfigurationError(f"there is no group {group}{did_you_mean(group, names)}; groups: {', '.join(names)}")
    paths = {
        path.relative_to(root / group).with_suffix("").as_posix(): path  # experiment=leaderboard/sampled is one, too
        for root in reversed(folders())
        for path in (root / group).glob("*.yaml" if group.startswith("hydra/") else "**/*.yaml")
    }
    return [_read(group, name, paths[name]) for name in sorted(paths)]


def by_purpose(found: Iterable[Choice]) -> dict[str, list[Choice]]:
    """Sort choices by what they are for, the purposes in our order; those that name none come last."""
    sorted_out: dict[str, list[Choice]] = {purpose: [] for purpose in PURPOSES}
    rest: list[Choice] = []
    for choice in found:
        (sorted_out.setdefault(choice.purpose, []) if choice.purpose else rest).append(choice)
    return {purpose: some for purpose, some in {**sorted_out, OTHER: rest}.items() if some}


def listing(group: str) -> str:
    """Return the choices of a group as text, a line each, by purpose where they have some."""
    found = by_purpose(choices(group))
    width = max(len(choice.name) for some in found.values() for choice in some) + 2
    parts = []
    for purpose, some in found.items():
        rows = [f"  {choice.name:<{width}}{choice.summary}".rstrip() for choice in some]
        parts.append("\n".join(rows if list(found) == [OTHER] else [f"{purpose}:", *rows]))
    return "\n\n".join(parts) + "\n"


def overview() -> str:
    """Return all groups as text, a line each."""
    names = groups()
    width = max(map(len, names)) + 2
    return "".join(f"  {name:<{width}}{said}".rstrip() + "\n" for name, said in names.items())


def help_text() -> str:
    """Return what ``fedgh-train --help`` prints."""
    parts = [
        "fedgh-train [group=choice] [key=value] ...      train one federation\n"
        "fedgh-train -m key=value,value ...              one run for every combination\n"
        "fedgh-train resume=<run directory>              go on where a run stopped\n"
        "fedgh-train --cfg job [group=choice] ...        print every key with its value, and train nothing\n"
        "fedgh-list <group>                              a group with installed packages, as below\n"
    ]
    for group, said in groups().items():
        parts.append(f"{group}={' ' if said else ''}{said and f'({said})'}\n{_indented(listing(group))}")
    return "\n".join(parts)


def _indented(text: str) -> str:
    return "".join(f"  {line}" if line.strip() else line for line in text.splitlines(keepends=True))


def _read(group: str, name: str, path: Path) -> Choice:
    text = path.read_text(encoding="utf-8")
    purpose = re.search(r"^# purpose: (.+)$", text, re.MULTILINE)
    target = re.search(r"^_target_: (\S+)", text, re.MULTILINE)
    parts = target[1].split(".")[:-1] if target else []
    summary = _first_docstring(parts) if parts and parts[-1] == path.stem else ""  # a module of the same name
    return Choice(group, name, summary or _first_comment(text), purpose[1].strip() if purpose else "")


def _first_comment(text: str) -> str:
    """Return the first comment that stands by itself and says something."""
    lines = re.findall(r"^# (?!@|purpose:)(.+)$", text, re.MULTILINE)
    return str(lines[0]).strip() if lines else ""


def _first_docstring(parts: Sequence[str]) -> str:
    """Return the first line of a module's docstring, without importing it."""
    place = _located(parts[:-1])
    path = place / f"{parts[-1]}.py" if place else None
    if path is None or not path.is_file():
        return ""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]


def _located(parts: Sequence[str]) -> Path | None:
    """Return the folder of a package, without importing it."""
    if not parts:
        return None
    spec = PathFinder.find_spec(parts[0])
    for root in (spec.submodule_search_locations or ()) if spec else ():
        if (folder := Path(root, *parts[1:])).is_dir():
            return folder
    return None
