import csv
import math
from pathlib import Path

import pytest
import torch

from fedgh.aggregator.mean import Mean
from fedgh.aggregator.median import Median
from fedgh.config.rules import aggregator_names, build_aggregators
from fedgh.core.types import Cohort
from fedgh.core.updates import UpdateMatrix
from fedgh.plot.family import family_figure
from fedgh.plot.picture import save_png
from fedgh.recording.family import family_table, gram_from_csv, updates_of


def cohort_of(rows):
    return Cohort.of(torch.full((len(rows),), 1 / len(rows), dtype=torch.float64))


def test_two_opposed_updates_by_hand():
    rows = torch.tensor([[2.0, 0.0], [-1.0, 1.0]])  # a cosine of -1 / sqrt 2; the mean is (1/2, 1/2)
    mean, fedgh = family_table(UpdateMatrix.of(rows), cohort_of(rows), build_aggregators(["mean", "fedgh"]))
    assert mean == pytest.approx(
        {
            "rule": "mean",
            "angle": 0.0,
            "norm_ratio": 1.0,
            "cosine_min": 0.0,
            "cosine_mean": math.sqrt(1 / 2) / 2,
            "coefficient_sum": 1.0,
            "coefficient_max": 0.5,
        },
        abs=1e-5,
    )
    # h_0 = (1, 1), h_1 = (0, 1): together (1/2, 1); c = (1/2, 1/2) + (1/4, 1/2)
    assert fedgh["norm_ratio"] == pytest.approx(math.sqrt(5 / 2))
    assert fedgh["cosine_min"] == pytest.approx(0.5 / math.sqrt(1.25) / math.sqrt(2))
    assert fedgh["angle"] == pytest.approx(math.degrees(math.acos(3 / math.sqrt(10))))
    assert (fedgh["coefficient_sum"], fedgh["coefficient_max"]) == pytest.approx((1.75, 1.0))


def test_a_gram_matrix_stands_for_the_updates():
    rows = torch.randn(6, 50, generator=torch.Generator().manual_seed(1))
    names = [name for name, rule in build_aggregators(aggregator_names()).items() if rule.needs in ("gram", "layers")]
    names.remove("fedlag")  # one block is one layer, which must be shared
    rules, updates, cohort = build_aggregators(names), UpdateMatrix.of(rows), cohort_of(rows)
    gram = updates.gram()
    for whole, small in zip(
        family_table(updates, cohort, rules), family_table(updates_of(gram), cohort, rules, gram), strict=True
    ):
        assert small.pop("rule") == whole.pop("rule")
        assert small == pytest.approx(whole, rel=1e-6, abs=1e-4, nan_ok=True)


def test_rules_of_coordinates_read_the_rows():
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 9.0]])
    (row,) = family_table(UpdateMatrix.of(rows), cohort_of(rows), {"median": Median()})
    assert row["norm_ratio"] == pytest.approx(1 / math.sqrt((2 / 3) ** 2 + 9))
    assert (row["cosine_min"], row["cosine_mean"]) == pytest.approx((0.0, 2 / 3))
    assert math.isnan(row["coefficient_sum"])


def test_zero_updates_have_no_angle():
    rows = torch.zeros(3, 4)
    (row,) = family_table(UpdateMatrix.of(rows), cohort_of(rows), {"mean": Mean()})
    assert math.isnan(row["angle"])
    assert math.isnan(row["norm_ratio"])
    assert math.isnan(row["cosine_min"])


def test_a_rule_that_refuses_is_named_and_left_out(caplog):
    rows = torch.eye(3)
    table = family_table(UpdateMatrix.of(rows), cohort_of(rows), build_aggregators(["krum", "mean"]))
    assert [row["rule"] for row in table] == ["mean"]
    assert "krum is left out: " in caplog.text


def test_the_picture_sorts_by_the_most_opposed_client(tmp_path):
    nothing = dict.fromkeys(("coefficient_sum", "coefficient_max"), math.nan)
    low = {"rule": "low", "cosine_min": -0.5, "cosine_mean": 0.1, "norm_ratio": 40.0, **nothing}
    high = {"rule": "fedgh", "cosine_min": 0.1, "cosine_mean": 0.3, "norm_ratio": 1.0, **nothing}
    unknown = {"rule": "zero", "cosine_min": math.nan, "cosine_mean": math.nan, "norm_ratio": 0.0, **nothing}
    figure = family_figure([high, low, unknown])
    cosines, norms, coefficients = figure.axes
    assert [label.get_text() for label in cosines.get_yticklabels()] == ["zero", "low", "fedgh"]
    assert [label.get_fontweight() for label in cosines.get_yticklabels()] == ["normal", "normal", "bold"]
    assert [text.get_text() for text in norms.texts] == ["40"]  # beyond the axis, so written out
    assert coefficients.get_xlabel() == "Coefficients"
    save_png(figure, tmp_path / "family.png")


def test_coefficients_have_room_for_all_positive_values():
    row = {"rule": "fedgh", "cosine_min": 0.1, "cosine_mean": 0.3, "norm_ratio": 1.0}
    rows = [
        row | {"coefficient_sum": 70.0, "coefficient_max": 12.0},
        row | {"coefficient_sum": -1.0, "coefficient_max": 0.1},  # below zero: left out
    ]
    coefficients = family_figure(rows).axes[2]
    assert coefficients.get_xscale() == "log"
    shown = {dots.get_label(): [x for x, _ in dots.get_offsets().tolist()] for dots in coefficients.collections}
    assert shown["largest"] == [12.0, 0.1]
    assert shown["sum"] == [70.0, None]
    assert not list(coefficients.texts)


def test_the_published_family_follows_from_its_gram_matrix():
    """Whoever changes a rule or a default that shows there has to publish another table."""
    folder = Path(__file__).parents[2] / "results" / "family"
    gram, cohort = gram_from_csv(folder / "gram.csv")
    with (folder / "family.csv").open() as file:
        published = {line["rule"]: line for line in csv.DictReader(file)}
    assert {"mean", "fedgh", "pcgrad", "upgrad", "mgda", "median"} <= published.keys()
    rules = {name: rule for name, rule in build_aggregators(list(published)).items() if rule.needs == "gram"}
    assert len(rules) > 20
    for line in family_table(updates_of(gram), cohort, rules, gram):
        found = {key: float(published[line["rule"]][key]) for key in line if key != "rule"}
        assert found == pytest.approx({key: line[key] for key in found}, rel=1e-6, abs=1e-5), line["rule"]
