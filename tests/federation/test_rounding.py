"""Where another executor acts like another seed, a run says so, once; where it does not, it says nothing."""

import pytest
import torch
from torch import nn

from fedgh.algorithm.fedavg import FedAvg
from fedgh.algorithm.feddecorr import FedDecorr
from fedgh.federation.rounding import rounding_note
from fedgh.model.mobilenet_v2 import MobileNetV2

COMMON = {"optimizer": lambda params: torch.optim.SGD(params, lr=0.1), "local_epochs": 1, "batch_size": 8}
FEDAVG = FedAvg(**COMMON)
FEDDECORR = FedDecorr(**COMMON, beta=0.1, normalize=False)
PLAIN, NORMALIZING = nn.Sequential(nn.Linear(4, 2)), nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))


@pytest.mark.parametrize(
    ("module", "algorithm", "said"),
    [
        (PLAIN, FEDAVG, ""),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4)), FEDAVG, ""),
        (nn.Sequential(nn.BatchNorm1d(2)).double(), FEDAVG, ""),
        (NORMALIZING, FEDAVG, "Sequential has batch normalization: another executor"),
        (PLAIN, FEDDECORR, "FedDecorr amplifies rounding: another executor"),
        (NORMALIZING, FEDDECORR, "Sequential has batch normalization and FedDecorr amplifies rounding: another"),
    ],
)
def test_what_amplifies_rounding_is_said_in_one_line(module, algorithm, said):
    note = rounding_note(module, algorithm)
    assert note.startswith(said)
    assert bool(note) == bool(said)
    assert "\n" not in note


def test_the_network_that_the_documents_name_amplifies_rounding():
    """One image in another memory layout: far beyond the 1e-7 it starts from, after three steps in float32."""

    def trained(memory_format):
        torch.manual_seed(0)
        module = MobileNetV2((3, 32, 32), num_outputs=10).to(memory_format=memory_format)
        start = [param.detach().clone() for param in module.parameters()]
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        rng = torch.Generator().manual_seed(1)
        for _ in range(3):
            images = torch.randn(8, 3, 32, 32, generator=rng).to(memory_format=memory_format)
            labels = torch.randint(10, (8,), generator=rng)
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(images), labels).backward()
            optimizer.step()
        end = [param.detach() for param in module.parameters()]
        return torch.cat([(b - a).flatten() for a, b in zip(start, end, strict=True)])

    one, other = trained(torch.contiguous_format), trained(torch.channels_last)
    assert (one - other).norm() / one.norm() > 1e-3


def test_fedgh_train_says_it_once(cli):
    tiny = ("num_rounds=2", "partition=iid", "partition.num_clients=2", "dataset.train_fraction=0.1", "logger=csv")
    answer = cli(*tiny, "algorithm=feddecorr")
    assert answer.code == 0, answer.err
    assert (answer.out + answer.err).count("acts like another seed") == 1
    assert "acts like another seed" not in (answer := cli(*tiny)).out + answer.err
