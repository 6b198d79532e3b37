"""Where the config tree is."""

from __future__ import annotations

from pathlib import Path

_PACKAGED = Path(__file__).parents[1] / "configs"
CONFIG_DIR = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[3] / "configs"
"""Inside an installed package, else beside ``src`` in a checkout."""
