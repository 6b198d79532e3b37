"""Lets packages of other people bring configs: a package names the one that holds its yamls by an entry point.

In its ``pyproject.toml``, as ``fedgh-new`` writes it::

    [project.entry-points."fedgh.configs"]
    my_paper = "my_paper.configs"
"""

from __future__ import annotations

from importlib.metadata import entry_points

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from fedgh.core.choices import ENTRY_POINT


class InstalledConfigs(SearchPathPlugin):
    """Looks for configs in installed packages after our own, in the order of their names."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append a place per package."""
        for entry in sorted(entry_points(group=ENTRY_POINT), key=lambda entry: entry.name):
            search_path.append(provider=f"fedgh.configs of {entry.name}", path=f"pkg://{entry.value}")
