"""Tasks of classes and of points side by side: losses and scores worked out by hand, what is missing, what is wrong."""

import math

import pytest
import torch

from fedgh.task.base import PADDING
from fedgh.task.multi_task import MultiTask

FACE = MultiTask({"smile": ("no", "yes")}, points={"landmarks": 2})
LACKING = [PADDING] * 4
TARGETS = torch.tensor([[1, 0.2, 0.6, 0.5, 0.5], [0, *LACKING], [1, 0.1, 0.1, 0.3, 0.8]])
"""Eyes at (.2, .5) and (.6, .5), 0.4 apart; none; at (.1, .3) and (.1, .8), 0.5 apart."""
OUTPUTS = torch.tensor([[0.0, 9, 0.2, 0.6, 0.5, 0.6], [0, 9, 7, 7, 7, 7], [9, 0, 0.1, 0.4, 0.34, 0.8]])


def test_losses_are_means_over_what_each_task_knows():
    log = math.log(1 + math.exp(-9))
    # squared errors: row 0 has .1 in one of four numbers; row 2 has .3 and .04
    squared = (0.01 / 4 + (0.09 + 0.0016) / 4) / 2
    losses = FACE.losses(OUTPUTS, TARGETS)
    assert losses.tolist() == pytest.approx([(log + (9 + log) * 2) / 3, squared], rel=1e-5)
    assert float(FACE.loss(OUTPUTS, TARGETS)) == pytest.approx(float(losses.mean()))
    alone = TARGETS.clone()
    alone[:, 1:] = PADDING
    assert float(FACE.loss(OUTPUTS, alone)) == pytest.approx(float(losses[0]))


def test_points_are_scored_by_the_distance_of_the_eyes():
    scores = FACE.scores(OUTPUTS, TARGETS)
    # row 0: the second point is off by .1 = .25 of .4
    # row 2: the first by .04 = .08 of .5, which is near, the second by .3 = .6
    assert scores["error/landmarks"].tolist() == pytest.approx([0.125, math.nan, 0.34], rel=1e-5, nan_ok=True)
    assert scores["acc/landmarks"].tolist() == pytest.approx([0.5, math.nan, 0.5], nan_ok=True)
    assert scores["acc/smile"].tolist() == [1, 0, 0]
    assert scores["acc"].tolist() == [0.75, 0, 0.25]
    assert next(iter(scores)) == "acc"


def test_the_gradient_of_a_missing_point_is_nothing():
    outputs = OUTPUTS.clone().requires_grad_()
    FACE.losses(outputs, TARGETS)[1].backward()
    assert outputs.grad[1].tolist() == [0] * 6
    assert outputs.grad[0].tolist() == pytest.approx([0, 0, 0, 0, 0, 0.1 / 4], abs=1e-7)  # 2 * .1 / 4 / 2 rows


def test_strata_of_tasks_apart_have_a_class_for_points():
    apart = MultiTask(FACE.class_names, apart=True, points=FACE.points)
    targets = torch.tensor([[1.0, *LACKING], [PADDING, 0.2, 0.6, 0.5, 0.5]])
    assert apart.strata_names == ("smile no", "smile yes", "landmarks")
    assert apart.strata(targets).tolist() == [1, 2]
    assert apart.fault(targets, 2) is None
    assert FACE.strata(TARGETS).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [((0, 3), math.inf, "row 0: a target is not finite"), ((2, 0), 0.5, "task smile, row 2: label 0.5 is no whole")],
)
def test_faults(place, value, message):
    assert FACE.fault(TARGETS, 3) is None
    wrong = TARGETS.clone()
    wrong[place] = value
    assert message in FACE.fault(wrong, 3)
    assert "labels must be float32 of shape (3, 5)" in FACE.fault(TARGETS[:, :4], 3)
