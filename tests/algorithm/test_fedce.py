"""FedCE: cosines and weights by hand, the model without a client, what is remembered of the absent."""

from types import SimpleNamespace

import pytest
import torch

from fedgh.algorithm.fedce import FedCE, cosines_with_the_others
from fedgh.core.errors import ConfigurationError
from fedgh.federation.round import first_state, run_round
from tests.algorithm.drive import begin
from tests.algorithm.stand_in import client_of, cohort_of, state_of


def fedce(make, mode="plus", strength=1.0, **settings):
    return make.algorithm(FedCE, mode=mode, strength=strength, **settings)


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_cosines_against_the_rows_themselves():
    generator = torch.Generator().manual_seed(0)
    rows, weights = torch.randn(4, 6, generator=generator, dtype=torch.float64), vector(0.1, 0.2, 0.3, 0.4)
    others = [sum(weights[i] * rows[i] for i in range(4) if i != k) for k in range(4)]
    wanted = torch.stack([torch.cosine_similarity(rows[k], others[k], dim=0) for k in range(4)])
    torch.testing.assert_close(cosines_with_the_others(rows @ rows.T, weights), wanted)
    assert cosines_with_the_others(torch.zeros(2, 2, dtype=torch.float64), vector(0.5, 0.5)).tolist() == [0, 0]
    assert cosines_with_the_others(vector(4.0)[None], vector(1.0)).tolist() == [0]  # there are no others


ROWS = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])


def round_of(algorithm, server, rows, client_ids, errors, num_examples=(1.0, 1.0, 1.0)):
    """Return weights and the state after a round."""
    sizes = [num_examples[k] for k in client_ids]
    result = cohort_of(rows, client_ids, sizes, {"error": list(vector(*errors))})
    result = SimpleNamespace(**{**vars(result), "memory": server.memory})
    weights = algorithm.client_weights(result.num_examples / result.num_examples.sum(), result)
    return weights, algorithm.conclude(server, server, result)


@pytest.mark.parametrize(("mode", "joined"), [("plus", (0.5, 0.7, 1.2)), ("times", (0.06, 0.1, 0.3))])
def test_two_rounds_by_hand(make, mode, joined):
    """Rows (1,0), (1,0), (0,2) with equal weights: the others of 1 and 2 are (1,2)/3, of 3 (2,0)/3.

    Cosines 1/sqrt 5, 1/sqrt 5, 0; the round's error is 1 : 2 : 3. In the second round only clients 0 and 2 take part,
    with opposite rows: cosine -1, means (1/sqrt 5 - 1)/2 and -1/2.
    """
    del joined
    algorithm = fedce(make, mode)
    weights, server = round_of(algorithm, begin(algorithm, state_of([0.0, 0.0]), [1, 1, 1]), ROWS, (0, 1, 2), (1, 2, 3))
    apart = vector(1 - 5**-0.5, 1 - 5**-0.5, 1)
    apart, error = apart / apart.sum(), vector(1, 2, 3) / 6
    both = apart + error if mode == "plus" else apart * error
    torch.testing.assert_close(weights, both / both.sum())
    torch.testing.assert_close(server.memory["used"], weights)
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    second, server = round_of(algorithm, server, opposite, (0, 2), (1, 1))
    apart = vector(1 - (5**-0.5 - 1) / 2, 1.5)
    both = apart / apart.sum() + 0.5 if mode == "plus" else apart
    torch.testing.assert_close(second, both / both.sum())
    assert server.memory["rounds"].tolist() == [2, 1, 2]
    assert server.memory["used"].tolist() == [float(second[0]), 0, float(second[1])]  # client 1 was absent
    assert server.memory["weights"][1] == weights[1]


def test_nobody_counts_for_nothing(make):
    """Equal rows have cosine 1: no share in the first part but the floor's."""
    algorithm = fedce(make, "times")
    rows = torch.tensor([[1.0], [1.0], [-1e-3]])
    weights, _ = round_of(algorithm, begin(algorithm, state_of([0.0]), [1, 1, 1]), rows, (0, 1, 2), (1, 1, 1e-9))
    assert float(weights.min()) > 0.9e-3
    assert float(weights.sum()) == pytest.approx(1)


def test_the_model_without_a_client_by_hand(make):
    """It counted 1/4 last round and sent 5; now the model is 2: (2 - 5/4) / (3/4) = 1. Absent: the model itself."""
    algorithm, asked = fedce(make), []

    def prepared(weight, **state):
        server = state_of([2.0])
        loss = lambda params: asked.append(params.item()) or 7.0  # noqa: E731
        return algorithm.prepare(client_of(server, 0, message={"weight": vector(weight)[0]}, state=state, loss=loss))

    start = prepared(0.25, params=vector(5.0))
    prepared(0.0, params=vector(5.0))
    prepared(0.0)
    prepared(1.0, params=vector(5.0))
    assert asked == pytest.approx([1.0, 2.0, 2.0, 2.0])
    assert start.state["error"].item() == 7.0
    assert start.params.item() == 2.0


def test_the_model_without_a_client_is_the_mean_of_the_others(make):
    """In the engine, with the plain mean, of weights that add up to one without it."""
    algorithm = fedce(make)
    federation = make.federation(algorithm=algorithm)
    server = first_state(federation)
    outcome = run_round(federation, server)
    after, rows, w = outcome.server, outcome.result.updates.rows.clone(), outcome.weights.float()
    wanted = []
    for k, view in enumerate(federation.executor.views(range(3), after)):
        others = [i for i in range(3) if i != k]
        wanted.append(view.loss(server.params + w[others] @ rows[others] / w[others].sum()))
    errors = run_round(federation, after).result.messages["error"]
    assert errors.tolist() == pytest.approx(wanted, rel=1e-4)


def test_strength_mixes_with_the_examples(make):
    half, full = fedce(make, strength=0.5), fedce(make)
    results = [
        round_of(a, begin(a, state_of([0.0, 0.0]), [2, 1, 1]), ROWS, (0, 1, 2), (1, 2, 3), (2.0, 1.0, 1.0))[0]
        for a in (half, full)
    ]
    torch.testing.assert_close(results[0], (vector(0.5, 0.25, 0.25) + results[1]) / 2)


@pytest.mark.parametrize("settings", [{"mode": "sum"}, {"strength": 1.5}])
def test_bad_settings_are_refused(make, settings):
    with pytest.raises(ConfigurationError, match=rf"algorithm.{next(iter(settings))} must be "):
        fedce(make, **settings)
