"""How good the models are that clients would use themselves, each on data like its client's own, at three moments.

``personal/``: of all clients, what they keep (``Algorithm.personal``) with the current shared part, before they train.
``trained/``: of a round's participants, the same after local training, before aggregation; else their local models.
``fine_tuned/``: of all, made from the first, or from the global model, by training on the client's own examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedgh.algorithm.base import Algorithm, Predictor
from fedgh.algorithm.fine_tuning import fine_tuning
from fedgh.core.seeding import numpy_generator
from fedgh.core.types import GlobalModel, ServerState
from fedgh.executor.base import Executor
from fedgh.federation.evaluation import Cells
from fedgh.metric.summary import spread

if TYPE_CHECKING:
    from fedgh.federation.round import Federation, Round

TUNED_TOGETHER = 20
"""Clients whose fine-tuned models are held at a time."""

Models = Iterable[tuple[int, GlobalModel | Predictor, int | None]]
"""Client, what it uses, and the index of that among the global models if it is one of them."""


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

    def models() -> Models:
        for client in executor.views(evaluated_clients(federation.num_clients, federation.seed, max_clients), server):
            model = algorithm.personal(client) or client.models[0]
            yield client.client_id, model, next((j for j, one in enumerate(client.models) if one is model), None)

    return _summary(federation, models(), cells, batch_size, f"personal/test/{score}")


def trained_metrics(
    federation: Federation,
    before: ServerState,
    outcome: Round,
    cells: Cells,
    batch_size: int,
    max_clients: int | None,
    score: str,
) -> dict[str, float]:
    """Return the same of the participants of a round, after local training and before aggregation.

    A client's local model is what it was sent plus its update, as ``report`` left that (compressed, say).

    Args:
        federation: The parts; nothing where there is a clock, as then clients start from different versions.
        before: The state before the round.
        outcome: What the round made.
        cells: Which test examples speak for which clients.
        batch_size: Examples per forward pass.
        max_clients: See :func:`personal_metrics`; the first of the participants.
        score: Name of the task's main score.

    Returns:
        ``trained/test/<score>_mean`` and so on.
    """
    algorithm, executor, result = federation.algorithm, federation.executor, outcome.result
    if federation.clock is not None or not isinstance(executor, Executor) or not result.client_ids:
        return {}
    groups, instead = algorithm.group(result), algorithm.broadcast(before, result.client_ids).params

    def models() -> Models:
        for row, client in enumerate(executor.views(result.client_ids[:max_clients], outcome.server)):
            sent = before.models[0 if groups is None else int(groups[row])].params if instead is None else instead
            params = sent + result.updates.rows[row].to(sent)
            local = GlobalModel(params, result.buffers[row], result.counters[row])
            model = algorithm.personal(replace(client, received=local, models=(local,)))
            yield client.client_id, model or local, None

    return _summary(federation, models(), cells, batch_size, f"trained/test/{score}")


def fine_tuned_metrics(
    federation: Federation,
    server: ServerState,
    cells: Cells,
    batch_size: int,
    max_clients: int | None,
    score: str,
    epochs: int | None,
) -> dict[str, float]:
    """Return the same of models that clients make from the current ones by training on their own examples.

    Nothing of it is kept or sent, and its batches are not those of the rounds.

    Args:
        federation: The parts; nothing where its clients are elsewhere.
        server: The state after a round.
        cells: Which test examples speak for which clients.
        batch_size: Examples per forward pass.
        max_clients: See :func:`personal_metrics`.
        score: Name of the task's main score.
        epochs: Passes over a client's examples; None for what the algorithm is published with, if anything.

    Returns:
        ``fine_tuned/test/<score>_mean`` and so on.
    """
    tuning = tuning_of(federation.algorithm, epochs)
    if tuning is None or not isinstance(federation.executor, Executor):
        return {}
    ids = evaluated_clients(federation.num_clients, federation.seed, max_clients)
    models = fine_tuned_models(federation.executor.playing(tuning, "fine_tune/"), server, ids)
    return _summary(
        federation, ((k, model, None) for k, model in models), cells, batch_size, f"fine_tuned/test/{score}"
    )


def tuning_of(algorithm: Algorithm, epochs: int | None) -> Algorithm | None:
    """Return how clients fine-tune: as the algorithm says, or plainly for so many epochs; None: not at all."""
    if epochs == 0:
        return None
    return algorithm.fine_tuning(epochs) or (None if epochs is None else fine_tuning(algorithm, epochs=epochs))


def fine_tuned_models(
    executor: Executor, server: ServerState, client_ids: Sequence[int]
) -> Iterator[tuple[int, GlobalModel]]:
    """Yield client by client what fine-tuning makes, a few of them in memory at a time.

    Args:
        executor: Plays a fine-tuning, whose updates are the models themselves.
        server: The state after a round.
        client_ids: Ascending.
    """
    for first in range(0, len(client_ids), TUNED_TOGETHER):
        result = executor(client_ids[first : first + TUNED_TOGETHER], server)
        for row, k in enumerate(result.client_ids):
            yield k, GlobalModel(result.updates.rows[row], result.buffers[row], result.counters[row])
        del result  # so that the next ones may use its memory


def evaluated_clients(num_clients: int, seed: int, max_clients: int | None) -> list[int]:
    """Return the clients whose personal models are evaluated, ascending: all, or a fixed draw of so many."""
    if max_clients is None or num_clients <= max_clients:
        return list(range(num_clients))
    drawn = numpy_generator(seed, "personal_evaluation").permutation(num_clients)[:max_clients]
    return sorted(drawn.tolist())


def _summary(federation: Federation, models: Models, cells: Cells, batch_size: int, name: str) -> dict[str, float]:
    """Return the spread over clients of the main score, each under its model on data like its own."""
    of_global_model: dict[int, Tensor] = {}  # what several clients use runs once
    ids, values = [], []
    for client_id, model, index in models:
        if index is not None and index in of_global_model:
            scores = of_global_model[index]
        else:
            predict = _forward(federation, model) if isinstance(model, GlobalModel) else model
            scores = _main_scores(federation, predict, batch_size, cells.rows_of(client_id) if index is None else None)
            if index is not None:
                of_global_model[index] = scores
        ids.append(client_id)
        values.append(cells.client_score(scores, client_id))
    return spread(torch.tensor(values, dtype=torch.float64), name, cells.num_examples[ids])


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
