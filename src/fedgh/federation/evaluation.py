"""How good the global model is: on the official test set, and for each client on data like its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedgh.core.flat import FlatModel
from fedgh.core.types import ServerState
from fedgh.dataset.base import ImageDataset
from fedgh.metric.summary import client_accuracy, spread


@dataclass(frozen=True)
class Evaluation:
    """Results of one model on the official test split.

    Attributes:
        accuracy: Share of test images classified correctly.
        loss: Mean cross-entropy.
        class_accuracy: ``(classes,)`` float64; NaN for classes without test images.
    """

    accuracy: float
    loss: float
    class_accuracy: Tensor

    def metrics(self, class_counts: Tensor) -> dict[str, float]:
        """Return the global results and the clients' summary under their public names.

        Args:
            class_counts: Training examples per client and class, ``(clients, classes)``.
        """
        clients = client_accuracy(self.class_accuracy, class_counts)
        return {
            "global/test/acc": self.accuracy,
            "global/test/loss": self.loss,
            **spread(clients, "client/test/acc"),
        }


@torch.no_grad()
def evaluate(model: FlatModel, server: ServerState, dataset: ImageDataset, batch_size: int) -> Evaluation:
    """Evaluate the global model in evaluation mode, in large batches, on the device where everything lives.

    Args:
        model: Overwritten with the global model.
        server: Its state.
        dataset: Whose test split is used.
        batch_size: Images per forward pass; bounds the memory, does not change the result.
    """
    model.load(server.params, server.buffers, server.counters)
    right, losses = [], []
    training = model.module.training
    model.module.eval()
    split = (dataset.normalized_test_images, dataset.test_labels)
    for images, labels in zip(*(torch.split(t, batch_size) for t in split), strict=True):
        logits, _ = model.forward(model.params, images)
        losses.append(cross_entropy(logits, labels, reduction="none"))
        right.append(logits.argmax(1) == labels)
    model.module.train(training)
    labels, classes = dataset.test_labels, dataset.num_classes
    correct = torch.bincount(labels[torch.cat(right)], minlength=classes).double().cpu()
    support = torch.bincount(labels, minlength=classes).cpu()
    return Evaluation(
        accuracy=float(correct.sum() / support.sum()),
        loss=float(torch.cat(losses).double().mean()),
        class_accuracy=correct / support,
    )
