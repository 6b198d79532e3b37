"""Per-client accuracy and its summary, worked out by hand."""

import math

import pytest
import torch

from fedgh.metric.summary import client_accuracy, closing_numbers, final_score, spread

NAN = float("nan")


def test_client_accuracy_weighs_classes_by_the_clients_own_labels():
    class_accuracy = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    counts = torch.tensor([[10, 0, 0], [1, 1, 2], [0, 30, 10]])
    assert client_accuracy(class_accuracy, counts).tolist() == pytest.approx([1.0, 0.375, 0.375])


def test_classes_without_test_images_do_not_count():
    class_accuracy = torch.tensor([1.0, NAN, 0.0], dtype=torch.float64)
    accuracies = client_accuracy(class_accuracy, torch.tensor([[1, 8, 1], [0, 5, 0]])).tolist()
    assert accuracies[0] == 0.5
    assert math.isnan(accuracies[1])


def test_client_accuracy_equals_sampling_a_test_set_like_the_clients_own():
    """A client with 30 % of class 0 and 70 % of class 1 sees those classes in those shares."""
    correct = {0: 0.2, 1: 0.9}
    expected = 0.3 * correct[0] + 0.7 * correct[1]
    accuracy = client_accuracy(torch.tensor([0.2, 0.9], dtype=torch.float64), torch.tensor([[3, 7]]))
    assert accuracy.item() == pytest.approx(expected)


def test_spread_by_hand():
    values = torch.tensor([0.4, 0.2, 0.9, NAN], dtype=torch.float64)
    assert spread(values, "x") == pytest.approx(
        {"x_mean": 0.5, "x_std": math.sqrt((0.01 + 0.09 + 0.16) / 3), "x_worst10": 0.2, "x_worst": 0.2}
    )


def test_the_mean_over_examples_counts_clients_by_them():
    """(1 * 0.4 + 3 * 0.2) / 4; who has no value has no examples either."""
    values = torch.tensor([0.4, 0.2, NAN], dtype=torch.float64)
    found = spread(values, "x", torch.tensor([1, 3, 100]))
    assert found["x_mean_examples"] == pytest.approx(0.25)
    assert found["x_mean"] == pytest.approx(0.3)


@pytest.mark.parametrize(("count", "worst"), [(1, 0.0), (10, 0.0), (11, 0.5), (20, 0.5), (21, 1.0), (100, 4.5)])
def test_the_worst_tenth_is_rounded_up(count, worst):
    values = torch.arange(count - 1, -1, -1, dtype=torch.float64)  # worst ones last
    assert spread(values, "x")["x_worst10"] == worst


def test_a_single_value_has_no_spread():
    assert spread(torch.tensor([0.7], dtype=torch.float64), "x")["x_std"] == 0.0


def test_nothing_defined_gives_nothing():
    assert spread(torch.tensor([NAN, NAN]), "x") == {}


def test_what_a_run_is_summed_up_by():
    rows = [{"conflict/ratio": 0.2}, *({"global/test/acc": n / 20, "conflict/ratio": 0.5} for n in range(12))]
    numbers = closing_numbers(rows)
    assert numbers["final/acc"] == numbers["last10/acc_best"] == 11 / 20
    assert numbers["last10/acc_mean"] == pytest.approx(6.5 / 20)  # of 2 to 11; two earlier ones do not count
    assert numbers["final/conflict_ratio"] == 0.5
    assert numbers["mean/conflict_ratio"] == pytest.approx(6.2 / 13)
    assert closing_numbers([{"round": 1.0}]) == {}


def test_a_run_is_summed_up_by_its_tasks_main_score():
    rows = [{"global/test/r2": 0.1, "global/test/acc": 9.0}, {}, {"global/test/r2": 0.3}]
    numbers = closing_numbers(rows, "r2")
    assert numbers == pytest.approx({"final/r2": 0.3, "last10/r2_best": 0.3, "last10/r2_mean": 0.2})
    assert final_score(numbers) == pytest.approx(0.3)
    assert final_score({"final/conflict_ratio": 0.5, "final/personal_acc": 0.7, "final/fine_tuned_acc": 0.8}) is None
    own = closing_numbers(
        [{"personal/test/r2_mean": 0.1}, {"personal/test/r2_mean": 0.2, "fine_tuned/test/r2_mean": 0.3}], "r2"
    )
    assert own == {"final/personal_r2": 0.2, "final/fine_tuned_r2": 0.3}


def test_a_run_with_a_held_out_part_is_judged_by_it():
    rows = [{"round": t, "global/test/acc": 0.5, "global/val/acc": t / 20} for t in range(1, 13)]
    numbers = closing_numbers(rows)
    assert numbers["final/acc"] == 0.5
    assert numbers["final/val_acc"] == pytest.approx(0.6)
    assert numbers["last10/val_acc_mean"] == pytest.approx(7.5 / 20)  # rounds 3 to 12
    assert final_score(numbers) == numbers["final/val_acc"]
    assert final_score({"final/acc": 0.5, "final/personal_acc": 0.7}) == 0.5
