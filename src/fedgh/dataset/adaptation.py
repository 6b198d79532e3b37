"""Unsupervised domain adaptation: labelled examples of one domain, unlabelled ones of another, which is tested."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from fedgh.core.errors import ConfigurationError
from fedgh.dataset.base import Dataset, ImageDataset
from fedgh.task.adaptation import SOURCE, TARGET, Adaptation
from fedgh.task.base import PADDING
from fedgh.task.classification import Classification


def load(of: Dataset, source: int, target: int, balance: bool) -> Dataset:
    """Return two domains of a data set as a problem of adaptation; ``partition=natural partition.by=domain`` splits it.

    The train split has both domains, the target's without labels; the test split is the target's, with labels.

    Args:
        of: A classification that knows the domain of each example: images, or features of them (``dataset=encoded``).
        source: Number of the labelled domain, from 0.
        target: Number of the other one.
        balance: Repeat the examples of the smaller domain until there are as many as of the other, so that a batch has
            about as many of each. The authors of DANN, CDAN and MCD draw equally many.

    Raises:
        ConfigurationError: If there are no such domains, or no classes.
    """
    if of.domains is None or of.test_domains is None:
        raise ConfigurationError(
            f"dataset=adaptation needs a data set with domains, which {of.name} has not; name the column that holds "
            "them (dataset.of.domain_column=...), or choose another: dataset@dataset.of=..."
        )
    if not isinstance(of.task, Classification):
        raise ConfigurationError(f"dataset=adaptation needs one label per example, and {of.name} has others.")
    known = sorted(set(of.domains.tolist()))
    if source not in known or target not in known or source == target:
        raise ConfigurationError(
            f"dataset.source and dataset.target must be two different domains out of {known}, got {source} and {target}"
        )
    rows = [torch.nonzero(of.domains == domain)[:, 0] for domain in (source, target)]
    longest = max(len(own) for own in rows)
    if balance:
        rows = [own.repeat(-(-longest // len(own)))[:longest] for own in rows]
    labels = torch.cat([of.train_targets[rows[0]], torch.full((len(rows[1]),), PADDING)])
    domains = torch.cat([torch.full((len(own),), domain) for own, domain in zip(rows, (SOURCE, TARGET), strict=True)])
    tests = torch.nonzero(of.test_domains == target)[:, 0]
    task = Adaptation(of.task.class_names)
    taken = of.take_train(torch.cat(rows)).take_test(tests)
    train_targets = torch.stack([labels, domains], dim=1)
    test_targets = torch.stack([taken.test_targets, torch.full((len(tests),), TARGET)], dim=1)
    own: dict[str, Any] = {"train_targets": train_targets, "test_targets": test_targets}
    if isinstance(taken, ImageDataset):
        own = {"train_labels": train_targets, "test_labels": test_targets, "class_names": task.strata_names}
    return replace(
        taken,
        name=f"{of.name}, domain {source} to {target}",
        task=task,
        domains=domains,
        test_domains=torch.full((len(tests),), TARGET),
        **own,
    )
