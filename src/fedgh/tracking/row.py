"""What one round has to tell, for whoever records it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Row:
    """What one round has to tell.

    Attributes:
        round: Rounds finished, from 1; the axis of everything.
        metrics: Numbers by public name.
        histograms: Values whose distribution is of interest, by name.
        figures: What makes a matplotlib figure, by name; drawn only where a logger takes pictures.
        tables: Columns by table name, for W&B.
    """

    round: int
    metrics: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    figures: dict[str, Callable[[], Any]] = field(default_factory=dict)
    tables: dict[str, Mapping[str, Any]] = field(default_factory=dict)
