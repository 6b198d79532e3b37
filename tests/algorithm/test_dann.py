"""Domain adaptation: every sign of DANN, CDAN and MCD worked out by hand, what is harmonized, and that it helps."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy, logsigmoid

from fedgh.algorithm.cdan import Cdan
from fedgh.algorithm.dann import Dann, reverse
from fedgh.algorithm.fedavg import FedAvg
from fedgh.algorithm.mcd import Mcd
from fedgh.core.errors import ConfigurationError
from fedgh.core.flat import FlatModel
from fedgh.core.forward import SingleForward
from fedgh.dataset.adaptation import load
from fedgh.federation.evaluation import evaluate
from fedgh.federation.loop import Schedule, describe
from fedgh.federation.round import first_state, run_round
from fedgh.model.adapted import Adapted
from fedgh.model.mlp import MLP
from fedgh.task.adaptation import Adaptation
from fedgh.task.base import PADDING

NAMES = ("0", "1", "2")
C = 0.4
TARGETS = torch.tensor([[2, 0], [0, 0], [PADDING, 1], [PADDING, 1], [PADDING, 1]])


def network(method):
    torch.manual_seed(5)
    given = {Dann: {}, Cdan: {"reads": "products"}, Mcd: {"discriminator": None, "second_head": True}}[method]
    settings = {"discriminator": [], "reads": "features", "second_head": False, **given}
    return Adapted((4,), 3, body=lambda input_shape, num_outputs: MLP(input_shape, num_outputs, [5]), **settings)


def gradients(make, method, **settings):
    """Return the gradient of the aligning term by parameter, and what is needed to work it out again."""
    algorithm = make.algorithm(method, trade_off=1.0, reversal_rounds=10.0, **settings)
    model = FlatModel(network(method).double())
    inputs = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    forward = SingleForward(model, Adaptation(NAMES))
    state = {"reversal": torch.tensor(C, dtype=torch.float64)}
    params = model.params.detach().clone().requires_grad_()  # not the module's own, whose gradients arrive elsewhere
    loss, added = algorithm.terms((inputs, TARGETS), forward, params, params, state)
    (flat,) = torch.autograd.grad(added, params)
    found = {b.name: flat[b.start : b.stop].view(b.shape) for b in model.blocks}
    return found, loss.item(), added.item(), network(method).double(), inputs


def by_hand(module, inputs, discriminated):
    """Return the gradients of a loss as the discriminator sees it, unreversed, by parameter."""
    value = discriminated(module, inputs)
    names = [name for name, _ in module.named_parameters()]
    rows = torch.autograd.grad(value, list(module.parameters()), allow_unused=True)
    return value.item(), {n: row for n, row in zip(names, rows, strict=True) if row is not None}


def bce(module, inputs):
    logits = module.discriminator(module.features(inputs))[:, 0]
    return -(logsigmoid(logits[:2]).sum() + logsigmoid(-logits[2:]).sum()) / 5  # the source is 1


def conditional_bce(module, inputs):
    features = module.features(inputs)
    p = module.head(features).softmax(1).detach()
    logits = module.discriminator((p[:, :, None] * features[:, None]).flatten(1))[:, 0]
    return -(logsigmoid(logits[:2]).sum() + logsigmoid(-logits[2:]).sum()) / 5


def minus_discrepancy(module, inputs):
    features = module.features(inputs)[2:]
    return -(module.head(features).softmax(1) - module.second_head(features).softmax(1)).abs().mean()


@pytest.mark.parametrize(
    ("method", "loss", "settings"),
    [(Dann, bce, {}), (Cdan, conditional_bce, {"entropy": False}), (Mcd, minus_discrepancy, {})],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_parts_minimize_what_the_features_maximize(make, method, loss, settings):
    found, _, value, module, inputs = gradients(make, method, **settings)
    expected, plain = by_hand(module, inputs, loss)
    assert value == pytest.approx(expected)
    for name, gradient in plain.items():
        sign = -C if name.startswith("body.") else 1.0
        torch.testing.assert_close(found[name], sign * gradient)
    for name, gradient in found.items():
        assert name in plain or not bool(gradient.any())


def test_certain_predictions_count_more(make):
    _, _, value, module, inputs = gradients(make, Cdan, entropy=True)
    features = module.features(inputs)
    p = module.head(features).softmax(1)
    logits = module.discriminator((p[:, :, None] * features[:, None]).flatten(1))[:, 0]
    weights = 1 + torch.exp((p * (p + 1e-5).log()).sum(1))
    source, target = -logsigmoid(logits[:2]), -logsigmoid(-logits[2:])
    expected = (weights[:2] @ source / weights[:2].sum() + weights[2:] @ target / weights[2:].sum()) / 2
    assert value == pytest.approx(expected.item())


def test_the_task_sees_labelled_rows_alone(make):
    for method, heads in ((Dann, 1), (Mcd, 2)):
        _, loss, _, module, inputs = gradients(make, method)
        features = module.features(inputs[:2])
        parts = [module.head, module.second_head][:heads] if heads == 2 else [module.head]
        expected = sum(cross_entropy(part(features), TARGETS[:2, 0]).item() for part in parts)
        assert loss == pytest.approx(expected)


def test_reversal():
    x = torch.tensor(3.0, requires_grad=True)
    y = reverse(x, 0.25)
    y.backward()
    assert (float(y.detach()), float(x.grad)) == (3.0, -0.25)


def test_harmonized_are_the_gradients_of_the_network_alone(make):
    """A discriminator's gradient, however long, moves no angle; the weight it gets is the whole term's."""
    algorithm = make.algorithm(Dann, trade_off=1.0, reversal_rounds=1.0, harmonize="gh")
    model = FlatModel(network(Dann).double())
    blocks = {b.name: b for b in model.blocks}
    mask = algorithm.compared(model.blocks)
    assert not mask[blocks["discriminator.0.weight"].start : blocks["discriminator.0.bias"].stop].any()
    assert int(mask.sum()) == sum(b.stop - b.start for b in model.blocks if not b.name.startswith("discriminator"))
    products = algorithm._products(torch.stack([model.params.detach(), 2 * model.params.detach()]), mask)
    square = float(model.params.detach()[mask].square().sum())
    assert products.tolist() == pytest.approx([4 * square, 2 * square, square])


@pytest.fixture(scope="module")
def two_domains(make):
    """Digits, and digits that lie a pixel lower."""
    digits = make.choice("dataset", "digits")
    rows, tests = torch.arange(len(digits.train_labels)) % 2, torch.arange(len(digits.test_labels)) % 2
    images = torch.where(rows[:, None, None, None].bool(), digits.train_images.roll(1, -2), digits.train_images)
    test_images = torch.where(tests[:, None, None, None].bool(), digits.test_images.roll(1, -2), digits.test_images)
    return replace(digits, train_images=images, test_images=test_images, domains=rows, test_domains=tests)


def test_the_data(two_domains):
    data = load(two_domains, source=1, target=0, balance=True)
    labels, domains = data.train_targets.unbind(1)
    assert torch.equal(labels == PADDING, domains == 1)
    assert int((domains == 0).sum()) == int((domains == 1).sum())
    assert (data.test_targets[:, 1] == 1).all()
    assert (data.test_targets[:, 0] >= 0).all()
    assert torch.equal(data.test_images, two_domains.test_images[two_domains.test_domains == 0])
    assert data.task.strata(data.train_targets).max() == 10
    with pytest.raises(ConfigurationError, match=r"two different domains out of \[0, 1\], got 0 and 2"):
        load(two_domains, source=0, target=2, balance=False)
    with pytest.raises(ConfigurationError, match="needs a data set with domains"):
        load(replace(two_domains, domains=None, test_domains=None), 0, 1, False)


def federation_of(make, data, algorithm, module, owners):
    return make.federation(dataset=data, algorithm=algorithm, module=module, owners=owners, num_clients=2)


@pytest.mark.parametrize("where", ["mixed", "one domain a client"])
def test_alignment_helps_where_the_source_alone_does_not(make, two_domains, where):
    data = load(two_domains, source=0, target=1, balance=True)
    mixed = torch.arange(len(data.train_targets)) % 2
    owners = (mixed if where == "mixed" else data.domains).numpy()
    accuracy = {}
    for trade_off in (0.0, 1.0):
        torch.manual_seed(0)
        module = Adapted(
            data.image_shape,
            10,
            body=lambda input_shape, num_outputs: MLP(input_shape, num_outputs, [64]),
            discriminator=[32],
            reads="features",
            second_head=False,
        )
        settings = {"trade_off": trade_off, "reversal_rounds": 8.0, "lr": 0.05, "momentum": 0.9, "batch_size": 64}
        algorithm = make.algorithm(Dann, **settings, local_epochs=3 if where == "mixed" else 1, harmonize="gh")
        federation = federation_of(make, data, algorithm, module, owners)
        server = first_state(federation)
        for _ in range(10):
            outcome = run_round(federation, server)
            server = outcome.server
        accuracy[trade_off] = evaluate(federation.model, server, data, 500).value
    metrics = describe(federation, outcome, Schedule(9, 9, 100, 9)).metrics
    assert metrics["algorithm/harmonize_conflict"] > 0
    if where == "mixed":
        assert accuracy[1.0] > accuracy[0.0] + 0.02
    assert accuracy[1.0] != accuracy[0.0]  # it reaches clients of one domain, too


def test_without_the_term_it_is_fedavg(make, two_domains):
    data = load(two_domains, source=0, target=1, balance=False)
    owners = (torch.arange(len(data.train_targets)) % 2).numpy()
    ends = []
    for method, settings in ((Dann, {"trade_off": 0.0, "reversal_rounds": 1.0}), (FedAvg, {})):
        torch.manual_seed(0)
        module = Adapted(data.image_shape, 10, lambda **given: MLP(**given, hidden=[8]), [4], "features", False)
        algorithm = make.algorithm(method, **settings, lr=0.05, local_epochs=1)
        federation = federation_of(make, data, algorithm, module, owners)
        ends.append(run_round(federation, first_state(federation)).server.params)
    assert torch.equal(*ends)


def test_the_reversal_grows_with_the_rounds(make):
    algorithm = make.algorithm(Dann, trade_off=1.0, reversal_rounds=20.0)
    received = type("Model", (), {"params": torch.zeros(2), "buffers": torch.zeros(0)})
    client = type("Client", (), {"received": received, "round_index": 0})
    found = []
    for client.round_index in (0, 10, 20):
        found.append(float(algorithm.prepare(client).state["reversal"]))
    assert found == pytest.approx([0, 2 / (1 + math.exp(-5)) - 1, 2 / (1 + math.exp(-10)) - 1])


@pytest.mark.parametrize(
    ("method", "settings", "module", "says"),
    [
        (Dann, {"trade_off": -1.0}, Dann, "algorithm.trade_off"),
        (Dann, {"reversal_rounds": 0.0}, Dann, "algorithm.reversal_rounds"),
        (Dann, {}, Mcd, "Dann needs a discriminator: model=adapted"),
        (Dann, {}, Cdan, "type model.reads=features"),
        (Cdan, {"entropy": True}, Dann, "type model.reads=products"),
        (Mcd, {}, Dann, "Mcd needs a second head"),
    ],
)
def test_mistakes(make, method, settings, module, says):
    data = make.dataset()
    task = Adaptation(("0", "1", "2"))
    targets = [torch.stack([labels, 0 * labels], 1) for labels in (data.train_labels, data.test_labels)]
    data = replace(data, task=task, class_names=task.strata_names, train_labels=targets[0], test_labels=targets[1])

    def begin():
        algorithm = make.algorithm(method, **{"trade_off": 1.0, "reversal_rounds": 1.0, **settings})
        first_state(make.federation(dataset=data, algorithm=algorithm, module=network(module)))

    with pytest.raises(ConfigurationError, match=says):
        begin()


def test_a_body_that_is_not_cut_is_refused():
    with pytest.raises(ConfigurationError, match=r"model\.body must be cut"):
        Adapted((4,), 3, lambda **_: torch.nn.Linear(4, 3), None, "features", False)
    with pytest.raises(ConfigurationError, match=r"model\.reads"):
        Adapted((4,), 3, lambda **given: MLP(**given, hidden=[]), [4], "pixels", False)
