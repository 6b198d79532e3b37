"""FedETF: the loss by hand, what its scale does, and a personal phase against a literal second implementation."""

from math import log, sqrt

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from fedgh.algorithm.fedetf import FedETF
from fedgh.core.errors import ConfigurationError
from fedgh.core.updates import Block
from fedgh.federation.personal import fine_tuned_models
from fedgh.federation.round import first_state
from tests.algorithm.stand_in import StandIn, state_of

BLOCKS = (Block("head.weight", 0, 2, torch.Size([2, 1])), Block("head.bias", 2, 4, torch.Size([2])))


def fedetf(make, scale=1.0, cycles=2, **settings):
    return make.algorithm(FedETF, scale=scale, cycles=cycles, **settings)


@pytest.mark.parametrize(("counts", "wanted"), [((1, 1), log(1 + 2.718281828**-2)), ((1, 3), 0.340753)])
def test_the_loss_by_hand(make, counts, wanted):
    """Two classes, s = 1, f on prototype 0: z = (1, -1), log(1 + e^-2) = 0.1269; counts 1, 3: log(1 + 3 e^-2)."""
    algorithm, params = fedetf(make), torch.tensor([0.0, 0.0, 1 / sqrt(2), 1 / sqrt(2)])  # s = sum / sqrt(2) = 1
    forward = StandIn(lambda theta, inputs: (torch.tensor([[9.0, 5.0]]), None), blocks=BLOCKS)
    state = {"log_counts": torch.tensor(counts).float().log()}
    loss = algorithm.local_loss((torch.zeros(1), torch.tensor([0])), forward, params, params, state)
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


def test_the_scale_begins_as_it_is_set_and_moves_no_prediction(make):
    server = state_of([3.0, 4.0, 1.0, 2.0])
    after = fedetf(make, scale=10.0).initialize(server, BLOCKS, torch.ones(1), 0)
    assert float(after.params[2:].sum() / sqrt(2)) == pytest.approx(10.0)
    assert float(after.params[3] - after.params[2]) == pytest.approx(1.0)
    assert torch.equal(after.params[:2], server.params[:2])


def test_the_personal_phase_against_the_release_written_out(make):
    """Full batches, no momentum, a network without anything random: logits of the said model and of the two parts."""
    algorithm = fedetf(make, scale=2.0, cycles=2, batch_size=60, local_epochs=2, lr=0.1)
    federation = make.federation(algorithm=algorithm, num_clients=3)
    server, tuning = first_state(federation), algorithm.fine_tuning(None)
    executor = federation.executor.playing(tuning, "fine_tune/")
    found = dict(fine_tuned_models(executor, server, [0, 1, 2]))
    for view in federation.executor.views(range(3), server):
        ((inputs, targets),) = view.examples()
        x = inputs.flatten(1)
        weight, bias = server.params[:-3].view(3, -1).clone(), server.params[-3:].clone()
        counts = view.label_counts.clamp(min=1).float().log()
        frame, s = sqrt(3 / 2) * (torch.eye(3) - 1 / 3), None
        weight, bias, frame = (t.requires_grad_() for t in (weight, bias, frame))
        for epoch in range(2 + 2 * 6):
            part = "all" if epoch < 2 else ("frame" if (epoch - 2) % 6 < 3 else "head")
            scale = bias.sum() / sqrt(3) if part == "all" else s
            u = x @ weight.T + bias
            logits = scale * normalize(u - u.mean(1, keepdim=True), dim=1) @ frame
            loss = cross_entropy(logits + counts * (part == "all"), targets)
            gradients = torch.autograd.grad(loss, (weight, bias, frame))
            with torch.no_grad():
                if part == "all":
                    s = (bias.sum() / sqrt(3)).detach()  # of before the step; the last one's is used below
                for parameter, gradient in zip((weight, bias), gradients, strict=False):
                    parameter -= {"all": 0.1, "frame": 0.0, "head": 0.05}[part] * gradient
                frame -= 0.1 * (part == "frame") * gradients[2]
                s = (bias.sum() / sqrt(3)).detach() if part == "all" else s
        u = x @ weight.T + bias
        wanted = (u - u.mean(1, keepdim=True)) @ frame
        ours, _ = view.run(found[view.client_id].params, inputs)
        torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("settings", "key"), [({"scale": 0.0}, "scale"), ({"cycles": -1}, "cycles")])
def test_bad_settings_are_refused(make, settings, key):
    with pytest.raises(ConfigurationError, match=rf"algorithm.{key} must be "):
        fedetf(make, **settings)
