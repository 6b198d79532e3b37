"""FedDecorr: a penalty on correlated features, against dimensional collapse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedgh.algorithm.base import Batch
from fedgh.algorithm.two_losses import TwoLosses
from fedgh.core.errors import ConfigurationError
from fedgh.core.forward import Forward
from fedgh.core.types import ClientState


@dataclass(frozen=True, kw_only=True)
class FedDecorr(TwoLosses):
    """Minimize ``cross-entropy + beta L`` with L the decorrelation loss of the features fed to the classifier.

    Args:
        beta: Strength of the penalty, >= 0; 0.1 in both papers.
        normalize: False keeps the released normalization, whose value grows with the batch size (about 64 times the
            mean squared correlation at 64 examples); True divides it out, so that the strength does not depend on B.

    The penalty divides by the deviation of every feature, and a feature that hardly varies amplifies rounding: another
    executor, memory layout or number of threads acts like another seed (1e-7 grows to 1e-1 in five rounds).

    Reference:
        Shi et al.: "Towards Understanding and Mitigating Dimensional Collapse in Heterogeneous Federated Learning",
        ICLR 2023, and its released code for the normalization.
    """

    amplifies_rounding: ClassVar[bool] = True  # see fedgh.federation.rounding

    beta: float
    normalize: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta >= 0:
            raise ConfigurationError(f"algorithm.beta must be 0 or more, got {self.beta}; try 0.1 (the paper)")

    def terms(
        self,
        batch: Batch,
        forward: Forward,
        params: Tensor,
        global_params: Tensor,  # noqa: ARG002
        state: ClientState,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor | None]:
        """Return the loss of the task and the decorrelation penalty."""
        inputs, targets = batch
        outputs, features = forward(params, inputs)
        return forward.task.loss(outputs, targets), self.beta * decorrelation(features, self.normalize)


def decorrelation(features: Tensor, normalize: bool) -> Tensor:
    """Return the mean squared off-diagonal entry of ``Z^T Z`` of the standardized features, divided by N.

    Equals ``(N - 1)^2 / N`` times the mean squared correlation coefficient; without that factor if ``normalize``.

    Args:
        features: Z, ``(N, c)``.
        normalize: Divide ``(N - 1)^2 / N`` out.

    Returns:
        A scalar; 0 for a single example or feature, which have no correlation.
    """
    num_examples, width = features.shape
    if num_examples == 1 or width == 1:
        return features.new_zeros(())
    centered = features - features.mean(0)
    standardized = centered / (1e-8 + centered.square().sum(0) / (num_examples - 1)).sqrt()
    products = standardized.T @ standardized
    off_diagonal = products.square().sum() - products.diagonal().square().sum()
    penalty = off_diagonal / (width * (width - 1)) / num_examples
    return penalty * num_examples / (num_examples - 1) ** 2 if normalize else penalty
