"""What may be shared: paths without the user's home and the folder of the command, which name people and machines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from fedgh.core.configs import CONFIG_DIR


def home() -> str:
    """Return the user's home, or an empty text if there is none worth a name."""
    try:
        folder = str(Path.home())
    except RuntimeError:  # neither HOME nor an entry for this user
        return ""
    return "" if folder == "/" else folder


def to_home(path: str) -> str:
    """Return a path below the user's home as ``~/...``; any other text as it is."""
    folder = home()
    return "~" + path.removeprefix(folder) if folder and f"{path}/".startswith(f"{folder}/") else path


def from_home(path: str) -> str:
    """Return ``~/...`` as a path below the home of whoever asks."""
    return home() + path[1:] if home() and f"{path}/".startswith("~/") else path


def anonymous(text: str) -> str:
    """Return a text with the current folder as ``.`` and the user's home as ``~``, wherever they begin a path in it.

    Where this package is installed is nobody's business either: its configs are ``configs``.
    """
    return _renamed(text, {home(): "~", str(Path.cwd()): ".", str(CONFIG_DIR): "configs"})


def make_shareable(path: Path) -> None:
    """Rewrite a file of text as :func:`anonymous` has it; one that is not ours to write stays."""
    with suppress(OSError):
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        if (shared := anonymous(text)) != text:
            path.write_text(shared, encoding="utf-8", errors="surrogateescape")


def homeless(text: str) -> str:
    """Return a text with the user's home as ``~``, wherever it begins a path in it; commands in it can be pasted."""
    return _renamed(text, {home(): "~"})


def _renamed(text: str, names: Mapping[str, str]) -> str:
    for folder, name in sorted(names.items(), key=lambda item: -len(item[0])):  # one may lie in the other
        if folder not in ("", "/"):
            text = re.sub(rf"(?<![\w/.-]){re.escape(folder)}(?![\w.-])", name, text)
    return text


def shareable(setting: str) -> str:
    """Return ``key=value`` with the user's home as ``~`` where the value begins with it, in quotation marks or not."""
    return _VALUE.sub(lambda match: match[1] + to_home(match[2]) + match[3], setting)


def restored(setting: str) -> str:
    """Return what :func:`shareable` was given, for whoever asks."""
    return _VALUE.sub(lambda match: match[1] + from_home(match[2]) + match[3], setting)


_VALUE = re.compile(r"\A([^=]*=[\"']?)(.+?)([\"']?)\Z", re.DOTALL)
