"""The diabetes study bundled with scikit-learn: 442 patients, ten measurements, one number to predict."""

from __future__ import annotations

import numpy as np

from fedgh.core.seeding import numpy_generator
from fedgh.dataset.base import TensorDataset, take_fraction
from fedgh.dataset.parquet_columns import standardized
from fedgh.task.regression import Regression

TEST_SIZE = 88


def load(num_strata: int, train_fraction: float) -> TensorDataset:
    """Load the table; a fixed random fifth of the patients, whatever the experiment's seed, is the test split.

    Measurements and target have mean 0 and standard deviation 1 over the training patients.

    Args:
        num_strata: Intervals of the target, about equally full, that label-skew partitions go by.
        train_fraction: Stratified share of the train split to keep; see :func:`fedgh.dataset.base.take_fraction`.

    Reference:
        Efron, Hastie, Johnstone and Tibshirani: "Least Angle Regression", Annals of Statistics 2004.
    """
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(scaled=False)
    order = numpy_generator(0, "diabetes_test_split").permutation(len(bunch.target))
    test, train = np.sort(order[:TEST_SIZE]), np.sort(order[TEST_SIZE:])
    inputs, test_inputs = standardized(bunch.data[train], bunch.data[test])
    targets, test_targets = standardized(bunch.target[train], bunch.target[test])
    task = Regression.of(targets, num_strata)
    whole = TensorDataset("diabetes", inputs, targets, test_inputs, test_targets, task)
    return take_fraction(whole, train_fraction)
