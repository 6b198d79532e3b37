"""FedGH: federated learning under gradient conflict (Gradient Harmonization, arXiv 2309.06692).

>>> import fedgh
>>> run = fedgh.run(["algorithm=fedprox", "aggregator=fedgh", "logger=csv"])  # as fedgh-train does
>>> run.metrics(), run.model()
>>> update = fedgh.aggregate(updates, weights, rule="fedgh")  # in a loop of one's own; loads PyTorch alone
>>> print(fedgh.conflicts(updates, weights))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fedgh import moved

if TYPE_CHECKING:
    from fedgh.api.rules import Conflicts, aggregate, conflicts, make_rule, rule_names
    from fedgh.api.runs import Run, load, run

__version__ = "0.1.0"
__all__ = ["Conflicts", "Run", "aggregate", "conflicts", "load", "make_rule", "rule_names", "run"]

_PLACES = {
    **dict.fromkeys(("Conflicts", "aggregate", "conflicts", "make_rule", "rule_names"), "fedgh.api.rules"),
    **dict.fromkeys(("Run", "load", "run"), "fedgh.api.runs"),
}

moved.install()


def __getattr__(name: str) -> Any:  # so that each name loads what it needs and no more
    if name not in _PLACES:
        raise AttributeError(f"module 'fedgh' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
