"""Commands that are printed for somebody to paste: quoted for the shell, and within that for Hydra's grammar."""

from __future__ import annotations

import re
import shlex
from pathlib import PurePath

_PLAIN = re.compile(r"(?:[A-Za-z_/]|\.{1,2}(?=/|$))[A-Za-z0-9_/.:+@%-]*", re.ASCII)
_WORDS = ("null", "true", "false", "nan", "inf")
"""What Hydra does not read as text, in any case."""


def command(*words: str) -> str:
    """Return what to type into a shell to call a program with these words."""
    return shlex.join(words)


def resume_command(run: object, *words: str) -> str:
    """Return what to type to go on with the run in a directory, with further settings."""
    return command("fedgh-train", setting("resume", str(run)), *words)


def setting(key: str, value: object) -> str:
    """Return ``key=value`` such that Hydra reads this value: text and paths as that very text, whatever is in them."""
    return f"{key}={quoted(str(value)) if isinstance(value, str | PurePath) else _plain(value)}"


def quoted(text: str) -> str:
    """Return a text as Hydra's grammar takes it: in quotation marks where it would be read as anything else.

    A backslash counts only before a quotation mark, before ``${`` (which would be an interpolation), and at the end.
    """
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    return '"' + re.sub(r'(\\*)("|\Z|\$\{)', _escaped, text) + '"'


def _escaped(match: re.Match[str]) -> str:
    before, what = match.groups()
    return before * 2 + ("\\" + what if what else "")


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return "[" + ",".join(quoted(item) if isinstance(item, str) else _plain(item) for item in value) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
