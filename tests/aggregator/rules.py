"""Rules built from their yaml files, as a run builds them, and matrices to feed them."""

from functools import cache
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fedgh.core.types import Cohort
from fedgh.core.updates import Block, UpdateMatrix

CONFIGS = Path(__file__).parents[2] / "configs"
RULES = sorted(path.stem for path in (CONFIGS / "aggregator").glob("*.yaml"))


@cache
def config_of(name, *overrides):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return OmegaConf.to_container(compose(overrides=[f"+aggregator={name}", *overrides]).aggregator)


def build(name, *overrides, **settings):
    """Return the rule of ``configs/aggregator/{name}.yaml``; ``settings`` replace keys that it has."""
    config = config_of(name, *overrides)
    assert settings.keys() <= config.keys()
    return instantiate({**config, **settings}, _convert_="all")


def unscaled(name, **settings):
    """Return the rule as its paper has it, without any rescaling."""
    return build(name, **settings, **({"rescale": "none"} if "rescale" in config_of(name) else {}))


def matrix(rows):
    """Return an update matrix of three layers, the first one of two blocks; needs at least seven columns."""
    spans = {"a.weight": (0, 2), "a.bias": (2, 3), "b.weight": (3, 6), "c.weight": (6, rows.shape[1])}
    shapes = {"b.weight": [1, 3]}
    return UpdateMatrix(rows, tuple(Block(n, a, b, torch.Size(shapes.get(n, [b - a]))) for n, (a, b) in spans.items()))


def cohort_of(num_clients, seed=0, ids=None, round_index=0, weights=None):
    generator = torch.Generator().manual_seed(seed + 1000)
    if weights is None:
        weights = torch.rand(num_clients, generator=generator, dtype=torch.float64) + 0.1
        weights = weights / weights.sum()
    losses = torch.rand(num_clients, generator=generator, dtype=torch.float64)
    # more than any matrix here has columns: a rule may look at those it has
    params = torch.randn(10000, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return Cohort(tuple(ids or range(num_clients)), weights, losses, seed, round_index, params)


def run(rule, rows, cohort, state=None):
    """Call a rule with the exact Gram matrix of float64 rows, and with the production one of others."""
    updates = matrix(rows)
    gram = rows @ rows.T if rows.dtype == torch.float64 else updates.gram()
    return rule(updates, gram, cohort, state or {})


def random_rows(seed, num_clients, dim=12, common=0.0):
    """Return float64 rows; the larger ``common``, the more they agree."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_clients, dim, generator=generator, dtype=torch.float64)
    shared = torch.randn(dim, generator=generator, dtype=torch.float64)
    spread = 10 ** torch.rand(num_clients, 1, generator=generator, dtype=torch.float64)
    return (rows + common * shared) * spread


def relative_error(actual, expected, rows):
    """Return the distance, relative to the expected update or, where that is tiny, to rounding of the rows."""
    actual, expected = actual.to(torch.float64), expected.to(torch.float64)
    return float((actual - expected).norm() / max(float(expected.norm()), 1e-3 * float(rows.norm(dim=1).max()), 1e-300))
