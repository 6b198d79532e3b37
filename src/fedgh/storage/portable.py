"""What may be shared: paths without the user's home and the folder of the command, which name people and machines."""

from __future__ import annotations

import re
from pathlib import Path


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
    """Return a text with the current folder as ``.`` and the user's home as ``~``, wherever they begin a path in it."""
    names = {home(): "~", str(Path.cwd()): "."}
    for folder, name in sorted(names.items(), key=lambda item: -len(item[0])):  # one may lie in the other
        if folder not in ("", "/"):
            text = re.sub(rf"(?<![\w/.-]){re.escape(folder)}(?![\w.-])", name, text)
    return text
