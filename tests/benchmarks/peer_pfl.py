"""pfl-research (package pfl) on a workload; see ``peers.py``."""

from __future__ import annotations

import os
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

os.environ["PFL_PYTORCH_DEVICE"] = "cpu"  # read when pfl is imported

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.callback.central_evaluation import CentralEvaluationCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import nn
from torch.nn.functional import cross_entropy

if TYPE_CHECKING:
    from peers import Match

VERSION = version("pfl")


class Task(nn.Module):
    """A model as pfl wants it; counts what it is trained on."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.examples = self.steps = 0

    def loss(self, images, labels):
        self.model.train()
        self.examples += len(labels)
        self.steps += 1
        return cross_entropy(self.model(images), labels)

    @torch.no_grad()
    def metrics(self, images, labels):
        self.model.eval()
        logits, count = self.model(images), len(labels)
        return {
            "loss": Weighted(float(cross_entropy(logits, labels, reduction="sum")), count),
            "accuracy": Weighted(int((logits.argmax(1) == labels).sum()), count),
        }


class Report(TrainingProcessCallback):
    """Tells the match what happened in a round; stands after the evaluation."""

    def __init__(self, match, task):
        self.match, self.task = match, task

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        losses = [value for name, value in aggregate_metrics if str(name) == "Central val | loss"]
        self.match.evaluated(losses[0].overall_value)  # in the first round that of the untrained model
        examples, steps = self.task.examples, self.task.steps
        self.task.examples = self.task.steps = 0
        self.match.trained(examples, steps)
        return False, Metrics()


def play(match: Match) -> None:
    """Run the rounds: images as float tensors in memory, one process, PyTorch's own threads."""
    workload = match.workload
    dataset = workload.dataset()
    images, labels = dataset.normalize(dataset.train_images), dataset.train_labels
    torch.manual_seed(0)
    task = Task(workload.model(input_shape=dataset.image_shape, num_outputs=dataset.num_classes))

    def data_of(client: int) -> Dataset:
        """Return a client's examples in a new order: pfl itself does not shuffle."""
        rows = torch.randperm(workload.num_examples) + client * workload.num_examples
        return Dataset((images[rows], labels[rows]), user_id=str(client))

    clients = FederatedDataset(data_of, get_user_sampler("minimize_reuse", list(range(workload.num_clients))))
    test = Dataset((dataset.normalize(dataset.test_images), dataset.test_labels))
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=match.num_rounds,
            evaluation_frequency=match.num_rounds + 1,  # of clients before and after training: in the first round only
            train_cohort_size=workload.clients_per_round,
            val_cohort_size=0,
        ),
        SimulatedBackend(clients, clients),
        PyTorchModel(
            task,
            local_optimizer_create=partial(torch.optim.SGD, momentum=0.9),
            central_optimizer=torch.optim.SGD(task.parameters(), lr=1.0),
        ),
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=0.01, local_batch_size=workload.batch_size),
        NNEvalHyperParams(local_batch_size=None),
        callbacks=[CentralEvaluationCallback(test), Report(match, task)],
        send_metrics_to_platform=False,  # which would print them
    )
