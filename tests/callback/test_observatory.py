import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from fedgh.callback.observatory import Observatory
from fedgh.core.errors import ConfigurationError, DataError
from fedgh.metric.conflict import (
    harmonization_metrics,
    harmonized_gram,
    matching_gram,
    projections,
    removed_norms,
    tail_metrics,
)
from fedgh.metric.observatory import (
    label_distances,
    label_entropy,
    label_order,
    layer_conflict,
    layer_grams,
    rank_correlation,
)
from fedgh.plot.picture import pixels
from fedgh.storage.tables import count_projections, layer_history, read_rounds, read_rows, write_rows
from fedgh.tracking.recorder import Row
from tests.callback.observed import golden_round, replaced, run_rounds

# Three updates in the plane; client 0 opposes client 1, client 2 is orthogonal to 1. GH on the pair (0, 1):
# h_0 = (1, 0) + 1/2 (-1, 1) = (1/2, 1/2); h_1 = (-1, 1) + 1 (1, 0) = (0, 1); h_2 = (1, 1) as it is.
UPDATES = [[1.0, 0.0], [-1.0, 1.0], [1.0, 1.0]]
MIXING = [[1.0, 0.5, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
WEIGHTS = [0.5, 0.25, 0.25]
COUNTS = np.array([[4, 0], [0, 4], [2, 2]])
FEDERATION = SimpleNamespace(partition=SimpleNamespace(class_counts=COUNTS))


def observe(folder, outcome, round_index=1, every=100):
    row = Row(round_index)
    Observatory(str(folder), every)(FEDERATION, None, outcome, row)
    return row


def test_pairs_by_hand(tmp_path):
    observe(tmp_path, golden_round(UPDATES, MIXING, WEIGHTS))
    table = pd.read_parquet(tmp_path / "conflict" / "pairs")
    half = 1 / math.sqrt(2)
    assert table["round"].tolist() == [1, 1, 1]
    assert list(zip(table["first"], table["second"], strict=True)) == [(0, 1), (1, 2), (0, 2)]
    assert table["cosine"].tolist() == pytest.approx([-half, 0, half])
    assert table["cosine_after"].tolist() == pytest.approx([half, half, 1])
    assert table["label_distance"].tolist() == pytest.approx([1, 0.5, 0.5])
    assert table["bent_first"].tolist() == [1, 0, 0]
    assert table["bent_second"].tolist() == [1, 0, 0]


def test_clients_by_hand(tmp_path):
    observe(tmp_path, golden_round(UPDATES, MIXING, WEIGHTS))
    table = pd.read_parquet(tmp_path / "conflict" / "clients").set_index("client")
    half = 1 / math.sqrt(2)
    assert table["norm"].tolist() == pytest.approx([1, math.sqrt(2), math.sqrt(2)])
    assert table["removed_norm"].tolist() == pytest.approx([half, half, 0])
    assert table["angle"].tolist() == pytest.approx([45, 45, 0], abs=1e-5)
    assert table["conflicts"].tolist() == [1, 1, 0]
    assert table["cosine_mean"].tolist() == pytest.approx([0, -half / 2, half / 2])
    assert table["coefficient"].tolist() == pytest.approx([0.75, 0.5, 0.25])
    assert table["gain"].tolist() == pytest.approx([1.5, 2, 1])
    assert table["times_projected"].tolist() == [1, 1, 0]
    assert table["times_projecting"].tolist() == [1, 1, 0]
    update = np.array([0.75 - 0.5 + 0.25, 0.5 + 0.25])
    cosines = [np.dot(u, update) / np.linalg.norm(u) / np.linalg.norm(update) for u in UPDATES]
    assert table["cosine_to_update"].tolist() == pytest.approx(cosines)
    assert table["label_entropy"].tolist() == [0, 0, 1]


def test_metrics_and_histograms_by_hand(tmp_path):
    row = observe(tmp_path, golden_round(UPDATES, MIXING, WEIGHTS))
    half = 1 / math.sqrt(2)
    assert row.metrics["harmonization/conflict_ratio"] == 0
    assert row.metrics["harmonization/cosine_min"] == pytest.approx(half)
    assert row.metrics["harmonization/cosine_mean"] == pytest.approx((1 + 2 * half) / 3)
    assert row.metrics["conflict/cosine_q05"] == pytest.approx(-0.9 * half)
    # ranks of the cosines 0, 1, 2; of the distances 2, 0.5, 0.5
    assert row.metrics["conflict/label_distance_correlation"] == pytest.approx(-1.5 / math.sqrt(2 * 1.5))
    assert sorted(row.histograms["harmonization/cosine"]) == pytest.approx([half, half, 1])
    assert row.figures == {}


def test_layers_group_the_parameters_of_a_module(tmp_path):
    updates = [[1.0, 1.0, 1.0], [-1.0, 2.0, 1.0]]
    observe(tmp_path, golden_round(updates, [[1.0, 0.0], [0.0, 1.0]], [0.5, 0.5], blocks=3))
    table = pd.read_parquet(tmp_path / "conflict" / "layers")
    assert table["layer"].tolist() == ["body", "head"]
    assert table["cosine_mean"].tolist() == pytest.approx([1 / math.sqrt(10), 1])
    assert table["ratio"].tolist() == [0, 0]
    history = layer_history(tmp_path / "conflict" / "layers")
    assert history["rounds"] == [1]
    assert history["cosine_mean"].shape == (2, 1)


def test_without_block_grams_there_are_no_layers_and_without_mixing_nothing_after(tmp_path):
    outcome = golden_round([[1.0, 2.0, 3.0], [-1.0, 0.0, 1.0]], None, [0.5, 0.5], blocks=3)
    row = observe(tmp_path, replaced(outcome, block_grams=outcome.gram[None]))
    assert not (tmp_path / "conflict" / "layers").exists()
    assert "harmonization/cosine" not in row.histograms
    assert pd.read_parquet(tmp_path / "conflict" / "pairs")["cosine_after"].isna().all()
    assert "gain" not in pd.read_parquet(tmp_path / "conflict" / "clients")


def test_a_round_without_clients_and_one_with_a_single_client(tmp_path):
    observe(tmp_path, replaced(golden_round(UPDATES, MIXING, WEIGHTS), aggregate=None))
    assert not (tmp_path / "conflict").exists()
    row = observe(tmp_path, golden_round([[1.0, 2.0]], [[1.0]], [1.0]), every=1)
    assert len(pd.read_parquet(tmp_path / "conflict" / "pairs")) == 0
    assert "harmonization/conflict_ratio" not in row.metrics


def test_zero_updates_give_no_cosine(tmp_path):
    observe(tmp_path, golden_round([[0.0, 0.0], [-1.0, 1.0], [1.0, 1.0]], np.eye(3).tolist(), WEIGHTS), every=1)
    table = pd.read_parquet(tmp_path / "conflict" / "pairs")
    assert table["cosine"].isna().tolist() == [False, True, True]


def test_blocks_harmonized_by_themselves():
    grams = torch.stack([torch.tensor([[1.0, -1.0], [-1.0, 2.0]]), torch.tensor([[1.0, 1.0], [1.0, 4.0]])]).double()
    bent = torch.tensor([[[1.0, 0.5], [1.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    assert projections(bent).tolist() == [[0, 0.5], [0.5, 0]]
    # h_0 takes 1/2 g_1 in the first block: squared norm 2/4 of 1 + 1; h_1 takes g_0: 1 of 2 + 4
    assert removed_norms(grams, bent).tolist() == pytest.approx([0.5, math.sqrt(1 / 6)])
    same = bent[:1].expand(2, 2, 2)
    assert torch.allclose(harmonized_gram(grams, same), harmonized_gram(grams.sum(0), bent[0]))
    weights = torch.tensor([0.5, 0.5], dtype=torch.float64)
    one = harmonization_metrics(grams.sum(0), weights, weights @ bent[0], bent[0])
    each = harmonization_metrics(grams, weights, (weights @ bent[0]).expand(2, 2), same)
    assert each == pytest.approx(one)


def test_the_gram_that_goes_with_coefficients():
    gram, blocks = torch.eye(2), torch.zeros(2, 2, 2)
    assert matching_gram(gram, blocks, torch.ones(2)) is gram
    assert matching_gram(gram, blocks, torch.ones(2, 2)) is blocks
    assert matching_gram(gram, gram[None], torch.ones(2, 2)) is None


def test_a_harmonized_update_of_rounding_alone_counts_as_zero():
    gram = torch.tensor([[1.0, -1.0 + 1e-9], [-1.0 + 1e-9, 1.0]], dtype=torch.float64)
    assert harmonized_gram(gram, torch.ones(2, 2, dtype=torch.float64)).tolist() == [[0, 0], [0, 0]]


def test_label_measures_by_hand():
    counts = np.array([[5, 5], [0, 10], [10, 0], [1, 3]])
    assert label_order(counts) == [2, 0, 1, 3]
    assert label_distances(counts)[1].tolist() == [0.5, 0, 1, 0.25]
    assert label_entropy(counts)[:3].tolist() == [1, 0, 0]


def test_rank_correlation_with_ties_equals_scipy():
    from scipy.stats import spearmanr

    first, second = torch.tensor([3.0, 1, 1, 2, 5, torch.nan]), torch.tensor([1.0, 4, 4, 4, 0, 2])
    assert rank_correlation(first, second) == pytest.approx(spearmanr(first[:5], second[:5]).statistic)
    assert math.isnan(rank_correlation(first, torch.ones(6)))
    assert math.isnan(rank_correlation(first[:1], first[:1]))


def test_layers_that_nobody_moved_are_nan_and_tails_need_a_pair():
    layers, grams = layer_grams(torch.stack([torch.eye(2), torch.zeros(2, 2)]).double(), ["a.weight", "scale"])
    assert layers == ["a", "scale"]
    assert torch.isnan(layer_conflict(grams)["ratio"]).tolist() == [False, True]
    assert tail_metrics(torch.ones(1, 1)) == {}


def test_a_repeated_round_replaces_its_file_and_what_came_after(tmp_path):
    outcome = golden_round(UPDATES, MIXING, WEIGHTS)
    for round_index in (1, 2, 3, 4, 2):
        observe(tmp_path, outcome, round_index)
    for name in ("pairs", "clients", "layers"):
        assert read_rounds(tmp_path / "conflict" / name) == [1, 2]
    assert len(pd.read_parquet(tmp_path / "conflict" / "clients")) == 6
    ids, counts = count_projections(tmp_path / "conflict" / "pairs")
    assert (ids.tolist(), counts.tolist()) == ([0, 1, 2], [[0, 2, 0], [2, 0, 0], [0, 0, 0]])


def test_a_resumed_run_has_the_tables_of_a_run_straight_through(tmp_path):
    _, straight, _ = run_rounds(tmp_path / "straight", 3)
    _, server, _ = run_rounds(tmp_path / "resumed", 1)
    run_rounds(tmp_path / "resumed", 1, server=server)  # abandoned after round 2
    _, resumed, _ = run_rounds(tmp_path / "resumed", 2, server=server)
    assert torch.equal(straight.params, resumed.params)
    for name in ("pairs", "clients", "layers"):
        tables = [pd.read_parquet(tmp_path / run / "conflict" / name) for run in ("straight", "resumed")]
        pd.testing.assert_frame_equal(*tables)


def test_the_run_is_the_same_to_the_bit_without_it(tmp_path):
    _, watched, rows = run_rounds(tmp_path / "a", 2, "callback.observatory.every=2")
    _, alone, _ = run_rounds(tmp_path / "b", 2, "callback=none")
    assert torch.equal(watched.params, alone.params)
    drawn = {name: pixels(make()) for name, make in rows[1].figures.items()}
    assert {"conflict/sorted_cosines", "conflict/layers", "harmonization/projections"} <= drawn.keys()
    assert all(image.std() > 5 for image in drawn.values())  # something is on them
    assert not any(name.startswith("conflict/sorted") for name in rows[0].figures)


@pytest.mark.parametrize("aggregator", ["mean", "fedgh", "median"])
def test_every_kind_of_rule_can_be_watched(aggregator, tmp_path):
    _, _, rows = run_rounds(tmp_path, 1, f"aggregator={aggregator}", "callback.observatory.every=1")
    assert "conflict/cosine_q95" in rows[0].metrics
    drawn = {name for name, make in rows[0].figures.items() if pixels(make()).std() > 5}
    assert drawn == rows[0].figures.keys()
    assert ("harmonization/projections" in drawn) == (aggregator == "fedgh")
    assert ("harmonization/cosine" in rows[0].histograms) == (aggregator != "median")


def test_settings_and_damaged_files(tmp_path):
    with pytest.raises(ConfigurationError, match=r"callback\.observatory\.every must be 1 or more rounds, got 0"):
        Observatory(str(tmp_path), 0)
    write_rows(tmp_path / "table", 1, {"value": [1, 2]})
    (tmp_path / "table" / "round_000001.parquet").write_bytes(b"half")
    with pytest.raises(DataError, match=r"round_000001\.parquet cannot be read.*remove it"):
        read_rows(tmp_path / "table", 1)
