"""FedProx: the proximal term pulls towards a detached copy of the global model."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from fedgh.algorithm.fedavg import FedAvg
from fedgh.algorithm.fedprox import FedProx
from fedgh.core.errors import ConfigurationError
from fedgh.federation.round import initial_state, run_round
from tests.algorithm.stand_in import StandIn


def linear(params, images):
    return images @ params.view(2, 3), images


def test_gradient_against_a_finite_difference(make):
    algorithm = make.algorithm(FedProx, mu=0.7)
    generator = torch.Generator().manual_seed(0)
    params, reference = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    batch = torch.randn(5, 2, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])

    def loss(at):
        return algorithm.local_loss(batch, StandIn(linear), at, reference, {})

    at = params.clone().requires_grad_()
    loss(at).backward()
    step = 1e-6
    numeric = torch.stack([(loss(params + step * e) - loss(params - step * e)) / (2 * step) for e in torch.eye(6)])
    torch.testing.assert_close(at.grad, numeric, rtol=1e-7, atol=1e-8)

    plain = params.clone().requires_grad_()
    cross_entropy(linear(plain, batch[0])[0], batch[1]).backward()
    torch.testing.assert_close(at.grad - plain.grad, 0.7 * (params - reference))


def test_the_reference_is_no_alias_of_the_live_parameters(make):
    """The term is zero in the first step and must not be in the second: two steps by hand."""
    dataset = make.dataset(num_train=6)
    algorithm = make.algorithm(FedProx, mu=5.0, lr=0.1, local_epochs=2, batch_size=6)
    federation = make.federation(num_clients=1, dataset=dataset, algorithm=algorithm)
    server = initial_state(federation.model)
    images, labels = dataset.normalize(dataset.train_images).flatten(1), dataset.train_labels

    def gradient(at):
        at = at.clone().requires_grad_()
        weight, bias = at[:12].view(3, 4), at[12:]
        cross_entropy(images @ weight.T + bias, labels).backward()
        return at.grad

    start = server.params
    first = start - 0.1 * gradient(start)
    second = first - 0.1 * (gradient(first) + 5.0 * (first - start))
    after = run_round(federation, server).server.params
    torch.testing.assert_close(after, second, rtol=1e-5, atol=1e-6)
    without = first - 0.1 * gradient(first)
    assert float((second - without).abs().max()) > 1e-3


def final_params(make, algorithm, rounds=2):
    federation = make.federation(module=make.normed(), algorithm=algorithm, num_clients=4)
    server = initial_state(federation.model)
    for _ in range(rounds):
        server = run_round(federation, server).server
    return server.params


def test_mu_zero_is_fedavg_to_the_bit(make):
    settings = {"momentum": 0.9, "local_epochs": 2, "batch_size": 4}
    fedavg = final_params(make, make.algorithm(FedAvg, **settings))
    assert torch.equal(final_params(make, make.algorithm(FedProx, mu=0, **settings)), fedavg)
    assert torch.equal(final_params(make, make.algorithm(FedProx, mu=0.0, **settings)), fedavg)
    assert not torch.equal(final_params(make, make.algorithm(FedProx, mu=0.1, **settings)), fedavg)


def test_a_strong_pull_keeps_clients_near(make):
    def norms(algorithm):
        federation = make.federation(algorithm=algorithm)
        return run_round(federation, initial_state(federation.model)).result.updates.rows.norm(dim=1)

    settings = {"lr": 0.05, "local_epochs": 5}
    assert (norms(make.algorithm(FedProx, mu=10.0, **settings)) < 0.5 * norms(make.algorithm(**settings))).all()


@pytest.mark.parametrize("mu", [-0.1, float("nan")])
def test_mu_must_not_be_negative(make, mu):
    with pytest.raises(
        ConfigurationError, match=f"algorithm.mu must be 0 or more; 0.1 in the paper, 0 is FedAvg, got {mu}"
    ):
        make.algorithm(FedProx, mu=mu)
