"""Import paths of 0.1, kept for a release, so that stored configs, notebooks and ``python -m fedgh.train`` still work.

A new place is a line in ``MOVED``. The old name gives the very module of the new one, not a copy.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import CodeType, ModuleType

MOVED = {
    "fedgh.executor.cohort": "fedgh.executor.vectorized",
    "fedgh.train": "fedgh.cli.train",
    "fedgh.evaluate": "fedgh.cli.evaluate",
    "fedgh.summarize": "fedgh.cli.report",
    "fedgh.replay": "fedgh.cli.replay",
    "fedgh.reproduce": "fedgh.cli.paper",
    "fedgh.dashboard": "fedgh.cli.dashboard",
    "fedgh.entry": "fedgh.config.entry",
    "fedgh.rules": "fedgh.config.rules",
    "fedgh.sweep_job": "fedgh.sweep.job",
    "fedgh.search": "fedgh.sweep.search",
    "fedgh.jobs": "fedgh.sweep.processes",
    "fedgh.federation.checkpoint": "fedgh.storage.checkpoint",
    "fedgh.federation.claim": "fedgh.storage.claim",
    "fedgh.federation.csv_table": "fedgh.storage.csv_table",
    "fedgh.federation.tables": "fedgh.storage.tables",
    "fedgh.federation.provenance": "fedgh.storage.provenance",
    "fedgh.federation.recorder": "fedgh.tracking.recorder",
    "fedgh.federation.offline": "fedgh.tracking.offline",
    "fedgh.federation.recording": "fedgh.recording.updates",
    "fedgh.federation.family": "fedgh.recording.family",
    "fedgh.federation.picture": "fedgh.plot.picture",
    "fedgh.federation.family_picture": "fedgh.plot.family",
    "fedgh.report.run": "fedgh.storage.run",
    "fedgh.report.wandb_files": "fedgh.tracking.wandb_files",
    "fedgh.report.figures": "fedgh.plot.curves",
}


class _Moved(MetaPathFinder, InspectLoader):
    """Finds a module under its old name."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:  # noqa: ARG002
        return ModuleSpec(name, self) if name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(MOVED[spec.name])
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import machinery has just written the old name's over it

    def get_source(self, fullname: str) -> str | None:
        return self._real(fullname).get_source(MOVED[fullname])

    def get_code(self, fullname: str) -> CodeType | None:  # for ``python -m``
        return self._real(fullname).get_code(MOVED[fullname])

    @staticmethod
    def _real(fullname: str) -> InspectLoader:
        spec = find_spec(MOVED[fullname])
        if spec is None or not isinstance(spec.loader, InspectLoader):
            raise ImportError(f"{MOVED[fullname]} cannot be found", name=fullname)
        return spec.loader


def install() -> None:
    """Let the old names be imported; called once, by the package itself."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
