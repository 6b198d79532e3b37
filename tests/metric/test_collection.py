"""Metrics of torchmetrics against scikit-learn and by hand, as the group ``metric`` chooses them."""

import math

import pytest
import torch
from omegaconf import OmegaConf
from sklearn.metrics import f1_score, roc_auc_score

from fedgh import config
from fedgh.config.build import build_metrics
from fedgh.core.errors import ConfigurationError
from fedgh.federation.evaluation import evaluate
from fedgh.federation.round import initial_state
from fedgh.task.multi_task import MultiTask
from fedgh.task.regression import Regression

CHOICE = {"_target_": "torchmetrics.classification.MulticlassF1Score", "average": "macro"}


def metrics_of(dataset, node):
    outputs = torch.randn(
        min(8, len(dataset.test_targets)), dataset.task.num_outputs, generator=torch.Generator().manual_seed(1)
    )
    return build_metrics(OmegaConf.create(node), dataset, outputs)


@pytest.fixture
def classification(root_config):
    return OmegaConf.to_container(root_config("metric=classification").metric)


def test_what_metric_classification_computes(make, classification):
    dataset = make.dataset()
    outputs = torch.randn(30, 3, generator=torch.Generator().manual_seed(2))
    found = metrics_of(dataset, classification)(outputs, dataset.test_labels)
    probabilities, labels = outputs.softmax(1), dataset.test_labels
    assert found["macro_f1"] == pytest.approx(f1_score(labels, outputs.argmax(1), average="macro"))
    assert found["auroc"] == pytest.approx(roc_auc_score(labels, probabilities, multi_class="ovr"))
    confidence, right = probabilities.max(1).values, (outputs.argmax(1) == labels).float()
    bins = (confidence * 15).ceil().long()
    gaps = [abs(float((confidence - right)[bins == b].sum())) for b in bins.unique()]
    assert found["calibration_error"] == pytest.approx(sum(gaps) / 30, abs=1e-6)


def test_logits_between_0_and_1_are_not_taken_for_probabilities(make, classification):
    dataset = make.dataset()
    outputs = torch.rand(30, 3, generator=torch.Generator().manual_seed(2))
    metrics = metrics_of(dataset, classification)
    shifted = metrics(outputs + 7, dataset.test_labels)
    assert metrics(outputs, dataset.test_labels) == pytest.approx(shifted, abs=1e-5)


def test_nothing_is_kept_between_evaluations(make, classification):
    dataset = make.dataset()
    metrics = metrics_of(dataset, classification)
    outputs = torch.randn(2, 30, 3, generator=torch.Generator().manual_seed(3))
    first = metrics(outputs[0], dataset.test_labels)
    assert metrics(outputs[1], dataset.test_labels) != first
    assert metrics(outputs[0], dataset.test_labels) == first


def test_an_evaluation_records_them_by_name_and_leaves_the_rest_alone(make):
    federation = make.federation()
    server = initial_state(federation.model)
    one_line = {"recall": {"_target_": "torchmetrics.classification.MulticlassRecall", "average": None}}
    metrics = metrics_of(federation.dataset, one_line)
    plain = evaluate(federation.model, server, federation.dataset, 7)
    more = evaluate(federation.model, server, federation.dataset, 7, metrics)
    assert more.means == plain.means
    assert set(more.further) == {"recall/0", "recall/1", "recall/2"}
    right = plain.scores["acc"][federation.dataset.test_labels == 1]
    assert more.further["recall/1"] == pytest.approx(float(right.mean()))


def test_every_task_has_its_own():
    task = MultiTask({"digit": ("0", "1", "2"), "large": ("no", "yes")})
    labels = torch.tensor([[0, 0], [1, 1], [2, 1], [2, 0]])
    dataset = type("Two", (), {"task": task, "test_targets": labels, "name": "two"})()
    metrics = metrics_of(dataset, {"f1": CHOICE})
    outputs = torch.nn.functional.one_hot(labels[:, 0], 3).float()
    outputs = torch.cat([outputs, torch.tensor([[1.0, 0.0]] * 4)], dim=1)  # every digit right, nothing large
    assert metrics(outputs, labels) == pytest.approx({"f1/digit": 1.0, "f1/large": (2 / 3 + 0) / 2})


def test_regression(root_config):
    targets = torch.randn(40, generator=torch.Generator().manual_seed(4))
    dataset = type("Numbers", (), {"task": Regression.of(targets, 2), "test_targets": targets, "name": "numbers"})()
    metrics = metrics_of(dataset, OmegaConf.to_container(root_config("metric=regression").metric))
    found = metrics(targets[:, None] ** 3, targets)
    assert found["spearman"] == pytest.approx(1.0)
    assert found["pearson"] == pytest.approx(float(torch.corrcoef(torch.stack([targets**3, targets]))[0, 1]), abs=1e-5)


def test_a_model_that_is_not_finite_gets_no_metric_and_stops_nothing(make, classification):
    dataset = make.dataset()
    found = metrics_of(dataset, classification)(torch.full((30, 3), math.nan), dataset.test_labels)
    assert set(found) == {"macro_f1", "calibration_error", "auroc"}
    assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize(
    ("node", "text"),
    [
        ({"f1": {**CHOICE, "averge": 1}}, r"metric.f1: .*MulticlassF1Score cannot be built: .*averge"),
        ({"f1": {**CHOICE, "average": "mean"}}, r"metric.f1: .*cannot be built: .*average.*mean"),
        ({"r": {"_target_": "torchmetrics.PearsonCorrCoef"}}, r"metric: r cannot be computed on this data set's"),
        (
            {"c": {"_target_": "torchmetrics.classification.MulticlassConfusionMatrix"}},
            r"metric.c gives a table of shape \(3, 3\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_training(make, node, text):
    with pytest.raises(ConfigurationError, match=text):
        metrics_of(make.dataset(), node)


def test_the_default_and_null_compute_nothing_more(make, root_config):
    assert metrics_of(make.dataset(), root_config().metric) is None
    assert metrics_of(make.dataset(), {"f1": None}) is None
    assert config.resolve(root_config()).metric == {}
