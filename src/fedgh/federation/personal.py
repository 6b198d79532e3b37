"""How good the models are that clients would use themselves, each on data like its client's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedgh.core.seeding import numpy_generator
from fedgh.core.types import GlobalModel, ServerState
from fedgh.executor.base import Executor
from fedgh.federation.evaluation import Cells
from fedgh.metric.summary import spread

if TYPE_CHECKING:
    from fedgh.federation.round import Federation


def personal_metrics(
    federation: Federation, server: ServerState, cells: Cells, batch_size: int, max_clients: int | None, score: str
) -> dict[str, float]:
    """Return mean, standard deviation, worst tenth and worst client of the personal models' main score.

    A client that has never taken part is among them: with its initial personal part and the current shared one.

    Args:
        federation: The parts; nothing where its algorithm has no personal models, or its clients are elsewhere.
        server: The state after a round.
        cells: Which test examples speak for which clients.
        batch_size: Examples per forward pass.
        max_clients: Where there are more clients, this many of them, the same in every round; None for all.
        score: Name of the task's main score.

    Returns:
        ``personal/test/<score>_mean`` and so on, as :func:`~fedgh.metric.summary.spread` names them.
    """
    algorithm, executor = federation.algorithm, federation.executor
    if not algorithm.overrides("personal") or not isinstance(executor, Executor):
        return {}
    of_global_model: dict[int, Tensor] = {}  # what several clients use runs once
    values = []
    for client in executor.views(evaluated_clients(federation.num_clients, federation.seed, max_clients), server):
        model = algorithm.personal(client) or client.models[0]
        index = next((j for j, one in enumerate(client.models) if one is model), None)
        if index is not None and index in of_global_model:
            scores = of_global_model[index]
        else:
            predict = _forward(federation, model) if isinstance(model, GlobalModel) else model
            rows = cells.rows_of(client.client_id) if index is None else None
            scores = _main_scores(federation, predict, batch_size, rows)
            if index is not None:
                of_global_model[index] = scores
        values.append(cells.client_score(scores, client.client_id))
    return spread(torch.tensor(values, dtype=torch.float64), f"personal/test/{score}")


def evaluated_clients(num_clients: int, seed: int, max_clients: int | None) -> list[int]:
    """Return the clients whose personal models are evaluated, ascending: all, or a fixed draw of so many."""
    if max_clients is None or num_clients <= max_clients:
        return list(range(num_clients))
    drawn = numpy_generator(seed, "personal_evaluation").permutation(num_clients)[:max_clients]
    return sorted(drawn.tolist())


def _forward(federation: Federation, weights: GlobalModel) -> Callable[[Tensor], Tensor]:
    model = federation.model
    model.load(weights.params, weights.buffers, weights.counters)
    return lambda inputs: model.forward(model.params, inputs)[0]


@torch.no_grad()
def _main_scores(
    federation: Federation, predict: Callable[[Tensor], Tensor], batch_size: int, rows: Tensor | None
) -> Tensor:
    """Return the main score of each test example, ``(examples,)`` float64 on the CPU; 0 outside ``rows``."""
    dataset, module = federation.dataset, federation.model.module
    inputs, targets = dataset.normalized_test_inputs, dataset.test_targets
    if rows is not None:
        inputs, targets = inputs[rows.to(inputs.device)], targets[rows.to(targets.device)]
    training = module.training
    module.eval()
    found = [
        next(iter(dataset.task.scores(predict(some), wanted).values()))
        for some, wanted in zip(torch.split(inputs, batch_size), torch.split(targets, batch_size), strict=True)
    ]
    module.train(training)
    scores = torch.cat(found).double().cpu() if found else torch.zeros(0, dtype=torch.float64)
    if rows is None:
        return scores
    whole = torch.zeros(len(dataset.test_targets), dtype=torch.float64)
    whole[rows] = scores
    return whole
