"""What holds for every method of ``configs/algorithm``; a new yaml is found by itself.

Two things nobody can guess, ``NEUTRAL`` and ``EXTRA_BYTES``: their tests are skipped, with what to add, until they are
said here.
"""

import copy
import sys
from dataclasses import dataclass, is_dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from fedgh.algorithm.fedavg import FedAvg
from fedgh.core.errors import ConfigurationError
from fedgh.core.types import GlobalModel, Report, Start
from fedgh.dataset.base import ImageDataset
from fedgh.executor import ray_cluster
from fedgh.executor.ray import RayExecutor
from fedgh.executor.sequential import SequentialExecutor
from fedgh.executor.vectorized import VectorizedExecutor
from fedgh.federation.loop import Schedule, describe
from fedgh.federation.personal import fine_tuned_models, tuning_of
from fedgh.federation.round import first_state, run_round
from fedgh.model.adapted import Adapted
from fedgh.model.mlp import MLP
from fedgh.storage import checkpoint as checkpoints
from fedgh.task.adaptation import Adaptation
from fedgh.task.base import PADDING

NAMES = sorted(path.stem for path in (Path(__file__).parents[2] / "configs" / "algorithm").glob("*.yaml"))
CONTRACTS = ("fedgh", "mean", "median")  # C; coefficients; coordinates

SGD = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.01, "momentum": 0.9, "weight_decay": 0.0}
"""FedAvg's optimizer, for those whose own has another rate."""
MOMENTUM = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.01, "momentum": 0.9, "weight_decay": 0.0}
"""FedAvg's own optimizer, for methods that have another."""

NEUTRAL = {
    "afl": {"gamma": 0.0},
    "apfl": {},  # the personal model never touches the global one
    "ccvr": {},  # its phase comes after training
    "cdan": {"trade_off": 0.0},
    "cfl": {"eps1": 0.0},
    "dann": {"trade_off": 0.0},
    "ditto": {},  # the personal model never touches the global one
    "ecgr": {"beta": 1.0},
    "fa_ld": {"temperature": 0.0, "optimizer": MOMENTUM},
    "fal": {"epsilon": 0.0},
    "fedacg": {"lam": 0.0, "beta": 0.0},
    "fedala": {"eta": 0.0},
    "fedasam": {"rho": 0.0},
    "fedavg": {},
    "fedbabu": {"fixed_parameters": []},
    "fedbn": {"norm": "any"},  # on a network without normalization
    "fedcm": {"alpha": 1.0},
    "feddc": "as alpha goes to 0 the pull vanishes and the drift does not",
    "feddecorr": {"beta": 0.0},
    "fedce": {"strength": 0.0},
    "feddisco": {"a": 0.0, "b": 0.0},
    "feddyn": "as alpha goes to 0 the pull vanishes and h does not",
    "fedetf": "another loss of features at length one, whatever its settings",
    "fedgradnorm": {"own_parameters": [], "body_epochs": 2, "weight_lr": 0.0, "weights": "uniform"},
    "fedlag": {"num_private": 0},
    "fedlc": {"tau": 0.0},
    "fedlesam": {"rho": 0.0},
    "fedmoswa": "has no strength of its correction; its first round is FedSWA's, see test_fedmoswa",
    "fednova": {"batch_size": 16},  # equally many steps for everybody
    "fedntd": {"beta": 0.0},
    "fedpac": "heads are always the clients' own",
    "fedper": {"own_parameters": []},
    "fedproto": {"lam": 0.0, "share_model": True},
    "fedprox": {"mu": 0.0},
    "fedrep": {"own_parameters": [], "body_epochs": 2},
    "fedrod": {"gamma": 0.0},
    "fedspeed": "as alpha goes to 0 the pull vanishes and h does not; with rho = 0 it is FedDyn, see test_fedspeed",
    "fedswa": {"final_rate": 1.0, "optimizer": SGD},
    "gradnorm": {},  # where there is one task
    "ifca": {"num_models": 1},
    "knn_per": {},  # neighbours come in when it is evaluated
    "lg_fedavg": {"shared_parameters": ["*"]},  # on a network without running statistics
    "local": "nothing is exchanged",
    "mcd": "trains a second head on the same features, whatever its trade_off",
    "moon": {"mu": 0.0},
    "per_fedavg": {"alpha": 0.0, "batch_size": 2},  # a batch too small to be cut
    "pfedme": "with one inner step from w it is SGD at another rate, which rounds",
    "qfedavg": {"q": 0.0},
    "sam": {"rho": 0.0},
    "scaffold": "has no strength; its first round is FedAvg's, see test_scaffold",
}
"""Settings that make a method FedAvg to the bit, or why there are none. FedAvg is given ``OF_FEDAVG`` among them."""

OF_FEDAVG = ("batch_size", "weights")
"""Settings that FedAvg has, too, and that change what it does."""

ALONE = {
    "fedper": {"own_parameters": ["*"]},
    "fedproto": {"lam": 0.0, "predict": "head"},
    "fedrep": {"own_parameters": ["*"], "body_epochs": 0},
    "lg_fedavg": {"shared_parameters": []},
    "local": {},
}
"""Settings with which every client trains alone."""

SILENT = {"fedproto", "local"}
"""Methods that exchange no model: updates are zero and the global one stays."""

EXTRA_BYTES = {
    "afl": lambda p, b: (0, 4),  # the loss
    "apfl": lambda p, b: (4 * (p + b) + 4, 0),  # the initial model and share, to those who have none of their own
    "cfl": lambda p, b: (8, 0),  # which cluster
    "ditto": lambda p, b: (4 * (p + b), 0),  # the initial model, to those who have none of their own
    "ecgr": lambda p, b: (8, 0),  # the most steps of any client
    "fa_ld": lambda p, b: (24, 0),  # seeds and size of the noise
    "fedala": lambda p, b: (4 * (p + 21) + 8, 0),  # initial model and weights of the head, and that nothing was learnt
    "fedcm": lambda p, b: (4 * p, 4),
    "feddc": lambda p, b: (4 * p, 4 * p),
    "fedce": lambda p, b: (8, 4),  # its weight; an error
    "feddisco": lambda p, b: (0, 8 * 3),
    "fedlag": lambda p, b: (3, 0),  # which of the three layers are private
    "fedmoswa": lambda p, b: (4 * p, 4 * p),
    "fedgradnorm": lambda p, b: (0, 12),
    "gradnorm": lambda p, b: (0, 4),
    "fedpac": lambda p, b: (4 * (18 + 3 + 21), 4 * (21 + 18 + 1 + 18 + 3)),  # features, heads, statistics
    "fedproto": lambda p, b: (4 * 18 + 3, 4 * 18 + 4 * 3),  # three classes, six features
    "fedrod": lambda p, b: (4 * 21, 0),  # the initial head, to those who have none of their own
    "ifca": lambda p, b: (4 * (p + b) + 8, 8),  # a second model, with its counter
    "qfedavg": lambda p, b: (0, 8),  # loss and squared length
    "scaffold": lambda p, b: (4 * p, 4 * p),
}
"""Bytes that a client of the first round gets and sends beside the model, of so many parameters and buffers."""


OF_DIGITS = {"fedbabu": {"optimizer": {**SGD, "lr": 0.05}}, "fedbn": {"norm": "any"}}
"""Settings to learn digits with: under a head at rest the body needs larger steps."""


HERE = "is not in {0} of tests/algorithm/test_contract.py; add a line for it, such as {0}[{1!r}] = {2}"


def neutral(name):
    """Return the settings that make a method FedAvg; skip, with the remedy, a new one that does not say."""
    if name not in NEUTRAL:
        pytest.skip(f"{name} " + HERE.format("NEUTRAL", name, "{'mu': 0.0}, or a sentence why there are none"))
    return NEUTRAL[name]


class Normed(nn.Module):
    """Dense layer, BatchNorm and a dropout that can be vectorized."""

    def __init__(self, normed):
        super().__init__()
        self.body, self.head = normed.body, normed.head

    def features(self, x):
        return self.body(x)

    def forward(self, x):
        return self.head(self.features(x))


class DoubleImages(ImageDataset):
    """Normalizes to float64."""

    def normalize(self, images):
        return super().normalize(images).double()


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


ALIGNING = {"dann": {}, "cdan": {"reads": "products"}, "mcd": {"discriminator": None, "second_head": True}}
"""Methods of domain adaptation, which need two domains, with what else their model is."""


def adaptation_of(dataset):
    """Return the data set with every other example unlabelled, as another domain."""
    parts = {}
    for split, labels in (("train", dataset.train_labels), ("test", dataset.test_labels)):
        domains = torch.arange(len(labels)) % 2
        labels = torch.where(domains.bool() & (split == "train"), PADDING, labels)
        parts[f"{split}_labels"] = torch.stack([labels, domains], dim=1)
    task = Adaptation(tuple(dataset.class_names))
    return replace(dataset, task=task, class_names=task.strata_names, **parts)


def adapted(name, shape, network):
    """Return the network with what a method of domain adaptation needs."""
    settings = {"discriminator": [4], "reads": "features", "second_head": False, **ALIGNING[name]}
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return Adapted(shape, 3, body=lambda **_: network, **settings)


def federation_of(make, name, model="normed", aggregator="fedgh", like=None, **settings):
    """Return six unequal clients, three of whom take part in a round, with the data and network that ``like`` needs."""
    like = like or name
    dataset = settings.pop("dataset", None) or make.dataset(num_train=37)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = Normed(make.normed()) if model == "normed" else MLP(dataset.image_shape, 3, hidden=[5])
    if like in ALIGNING:
        dataset, module = adaptation_of(dataset), adapted(like, dataset.image_shape, module)
    if model == "mlp" and name == "fedbn":
        settings = {"norm": "any", **settings}
    if name == "fedetf":
        settings = {"cycles": 1, **settings}  # of its personal phase, whose 20 take a minute
    executor = settings.pop("executor", SequentialExecutor)
    algorithm = settings.pop("algorithm", None)
    if algorithm is None:
        algorithm = make.choice("algorithm", name, **{"local_epochs": 2, "batch_size": 4, **settings})
    owners = torch.repeat_interleave(torch.arange(6), torch.tensor([3, 4, 6, 7, 8, 9])).numpy()
    return make.federation(
        owners=owners,
        num_clients=6,
        dataset=dataset,
        module=module.to(torch.get_default_dtype()),
        algorithm=algorithm,
        aggregator=make.rule(aggregator),
        executor=executor,
        fraction=0.5,
    )


def play(federation, rounds, server=None):
    """Return what came of rounds, each with rows of its own: the engine uses them again."""
    server, outcomes = server or first_state(federation), []
    for _ in range(rounds):
        outcome = run_round(federation, server)
        outcomes.append(replace(outcome, result=outcome.result.select(torch.ones(len(outcome.weights)).bool())))
        server = outcome.server
    return outcomes


def three_rounds(make, name, model="normed"):
    """Return a federation, its first state, and three rounds; played once for all tests, nobody may change them."""
    if (name, model) not in _PLAYED:
        federation = federation_of(make, name, model)
        start = first_state(federation)  # before its model has played any client
        _PLAYED[name, model] = federation, start, play(federation, 3, start)
    return _PLAYED[name, model]


_PLAYED = {}


def tensors(value, path=""):
    """Yield every tensor within a value, with where it is."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif is_dataclass(value):
        yield from tensors(vars(value), path)
    elif hasattr(value, "items"):
        for key in sorted(value, key=str):
            yield from tensors(value[key], f"{path}/{key}")
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from tensors(item, f"{path}/{index}")


def different(one, other):
    """Return where two server states differ, in any bit."""
    first, second = dict(tensors(one)), dict(tensors(other))
    return sorted(
        first.keys() ^ second.keys() | {k for k in first.keys() & second.keys() if not torch.equal(first[k], second[k])}
    )


def fine_tuned(federation, server):
    """Return what two clients make of their models by fine-tuning."""
    executor = federation.executor.playing(
        tuning_of(federation.algorithm, None) or tuning_of(federation.algorithm, 1), "fine_tune/"
    )
    return [replace(model, params=model.params.clone()) for _, model in fine_tuned_models(executor, server, [1, 4])]


def shapes(state):
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}


def test_what_is_said_is_said_of_methods_that_exist():
    assert set(NEUTRAL) | set(EXTRA_BYTES) | set(ALONE) <= set(NAMES)


@pytest.mark.parametrize("aggregator", CONTRACTS)
@pytest.mark.parametrize("name", NAMES)
def test_rounds_with_every_kind_of_aggregator(make, name, aggregator):
    federation = federation_of(make, name, aggregator=aggregator)
    start = first_state(federation)
    outcomes = play(federation, 2, start)
    end = outcomes[-1].server
    assert end.round_index == 2
    for outcome in outcomes:
        assert outcome.dropped == ()
        assert outcome.aggregate is not None
    assert all(tensor.isfinite().all() for _, tensor in tensors(end) if tensor.is_floating_point())
    assert bool(different(start.models, end.models)) == (name not in SILENT)
    assert end.params.dtype == torch.float32


@pytest.mark.parametrize("model", ["normed", "mlp"])
@pytest.mark.parametrize("name", NAMES)
def test_states_have_one_shape(make, name, model):
    """Of all clients, from the first round on: what they keep, what their steps read, what they send."""
    federation, start, outcomes = three_rounds(make, name, model)
    servers = [start, *(outcome.server for outcome in outcomes)]
    kept = [shapes(state) for server in servers for state in server.clients.values()]
    starts = [
        federation.algorithm.prepare(view) for server in servers for view in federation.executor.views(range(6), server)
    ]
    assert all(shape == kept[0] for shape in kept)
    assert all(shapes(start.state) == shapes(starts[0].state) for start in starts)
    sent = [{n: tuple(t.shape[1:]) for n, t in outcome.result.messages.items()} for outcome in outcomes]
    assert all(names == sent[0] for names in sent)
    assert all(shapes(server.memory) == shapes(servers[0].memory) for server in servers)


@pytest.mark.parametrize("name", NAMES)
def test_what_stays_with_the_client(make, name):
    """It is zero in every update, so it enters no cosine; the global model keeps its initial values there."""
    federation, start, outcomes = three_rounds(make, name)
    shared = federation.executor.shared
    for outcome in outcomes:
        updates = outcome.result.updates
        assert bool((updates.rows != 0).any(1).all()) == (name not in SILENT)
        if shared is not None:
            assert (updates.rows[:, ~shared] == 0).all()
            assert torch.equal(outcome.server.params[~shared], start.params[~shared])
            own = updates.rows[:, shared].double()
            torch.testing.assert_close(outcome.gram, own @ own.T, rtol=1e-5, atol=1e-12)
        kept = [torch.equal(o.buffers, n.buffers) for o, n in zip(start.models, outcome.server.models, strict=True)]
        assert federation.algorithm.own_buffers == all(kept)


@pytest.mark.parametrize("name", NAMES)
def test_bytes(make, name):
    federation, _, outcomes = three_rounds(make, name)
    shared, buffers = federation.executor.shared, 0 if federation.algorithm.own_buffers else 12
    params = federation.model.params.numel()
    model = 4 * (params if shared is None else int(shared.sum())) + 4 * buffers + 8 * bool(buffers)
    if name not in NEUTRAL | EXTRA_BYTES and outcomes[0].result.bytes_up + outcomes[0].result.bytes_down != 6 * model:
        hint = HERE.format("EXTRA_BYTES", name, "lambda p, b: (4 * p, 0)")
        pytest.skip(f"{name} sends more than its model and {hint}")
    down, up = EXTRA_BYTES.get(name, lambda *_: (0, 0))(params, buffers)
    assert outcomes[0].result.bytes_down == 3 * (model + down)
    assert outcomes[0].result.bytes_up == 3 * (model + up)


@pytest.mark.parametrize("name", NAMES)
def test_resumes_to_the_same_bits(make, name, tmp_path):
    """From a file, in a federation of its own."""
    *_, outcomes = three_rounds(make, name)
    path = checkpoints.save(checkpoints.Checkpoint(outcomes[0].server, "", "", {}, "", ""), tmp_path)
    again = play(federation_of(make, name), 2, checkpoints.load(path).server)
    assert different(outcomes[-1].server, again[-1].server) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_clients_changes_no_bit(make, name):
    *_, outcomes = three_rounds(make, name)
    federation = federation_of(make, name)
    federation.executor.order = lambda clients: list(reversed(range(len(clients))))
    assert different(outcomes[-1].server, play(federation, 3)[-1].server) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_round_changes_nothing_that_it_was_given(make, name):
    federation = federation_of(make, name)
    server = play(federation, 2)[-1].server
    before = copy.deepcopy({key: value for key, value in vars(server).items() if key != "clients"})
    clients = {k: {n: t.clone() for n, t in state.items()} for k, state in server.clients.items()}
    run_round(federation, server)
    assert different(before, {key: value for key, value in vars(server).items() if key != "clients"}) == []
    assert different(clients, dict(server.clients)) == []


@pytest.mark.parametrize("model", ["normed", "mlp"])
@pytest.mark.parametrize("name", NAMES)
def test_many_clients_at_once(make, name, model, double):
    """The vectorized executor gives the sequential one's numbers: what is kept, remembered, and fine-tuned."""
    dataset = DoubleImages(**vars(make.dataset(num_train=37)))
    ends = []
    for executor in (SequentialExecutor, partial(VectorizedExecutor, width=2)):
        federation = federation_of(make, name, model, dataset=dataset, executor=executor)
        server = play(federation, 2)[-1].server
        ends.append((server, fine_tuned(federation, server)))
    first, second = (dict(tensors(end)) for end in ends)
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        torch.testing.assert_close(
            second[key], tensor, rtol=1e-6, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("name", [name for name in NAMES if not isinstance(NEUTRAL.get(name), str)])
def test_neutral_settings_are_fedavg_to_the_bit(make, name):
    model = "mlp" if name in ("fedbn", "lg_fedavg") else "normed"
    settings = neutral(name)
    of_fedavg = {key: settings[key] for key in OF_FEDAVG if key in settings}
    if of_fedavg or name in ALIGNING:
        plain = play(federation_of(make, "fedavg", model, like=name, **of_fedavg), 3)
    else:
        *_, plain = three_rounds(make, "fedavg", model)
    ours = play(federation_of(make, name, model, **settings), 3)
    for wanted, found in zip(plain, ours, strict=True):
        assert different(wanted.server.models, found.server.models) == []
        assert torch.equal(wanted.gram, found.gram)


@dataclass(frozen=True, kw_only=True)
class Alone(FedAvg):
    """Every client goes on from where it was."""

    def prepare(self, client):
        return Start(client.state.get("params", client.received.params), client.received.buffers)

    def report(self, client, trained):
        trained.update.zero_()
        return Report({"params": trained.params.clone()})


@pytest.mark.parametrize("name", ALONE)
def test_with_everything_personal_clients_train_alone(make, name):
    settings = {"lr": 0.01, "momentum": 0.9, "local_epochs": 2, "batch_size": 4}
    alone = play(federation_of(make, name, "mlp", algorithm=make.algorithm(Alone, **settings)), 3)[-1].server
    federation = federation_of(make, name, "mlp", **ALONE[name])
    start = first_state(federation)
    outcomes = play(federation, 3, start)
    end = outcomes[-1].server
    assert torch.equal(end.params, start.params)
    assert all((outcome.result.updates.rows == 0).all() for outcome in outcomes)
    for view in federation.executor.views(range(6), end):
        wanted = alone.clients.get(view.client_id, {"params": start.params})["params"]
        assert torch.equal(federation.algorithm.personal(view).params, wanted)
    assert 0 < len(alone.clients) <= 6


@pytest.fixture(scope="module")
def ray(make):
    """One cluster for all methods; what the tests define goes to its workers by value."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'fedgh[ray]'")
    started = ray_cluster.start(None, "executor.address", num_cpus=2)
    for example in (Normed, type(make.normed())):
        ray.cloudpickle.register_pickle_by_value(sys.modules[example.__module__])
    yield ray
    if started:
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_workers_of_ray_give_the_same_bits(make, ray, name):
    small = {"cpus_per_worker": 0.5, "gpus_per_worker": None, "threads_per_worker": 1, "object_store_mib": None}
    workers = partial(RayExecutor, address=None, num_workers=2, max_attempts=2, **small, row_dtype="float32")
    federation = federation_of(make, name, executor=workers)
    try:
        end = play(federation, 3)[-1].server
        tuned = fine_tuned(federation, end)
    finally:
        federation.executor.close()
    ours, _, outcomes = three_rounds(make, name)
    assert different(outcomes[-1].server, end) == []
    assert different(fine_tuned(ours, end), tuned) == []


def predicted(view, model, inputs):
    """Return what a model or a predictor of a client says of inputs."""
    return view.run(model.params, inputs, model.buffers)[0] if isinstance(model, GlobalModel) else model(inputs)


def of_client(make, name, server, k):
    """Return a client's view and personal model; and what that says of the test inputs, with where it would start."""
    federation, *_ = three_rounds(make, name)
    view, inputs = next(federation.executor.views([k], server)), federation.dataset.normalized_test_inputs
    model = federation.algorithm.personal(view)
    says = None if model is None else predicted(view, model, inputs)
    start = federation.algorithm.prepare(view)
    return view, model, {"says": says, "params": start.params, "buffers": start.buffers, "state": start.state}


@pytest.mark.parametrize("name", NAMES)
def test_who_was_never_sampled(make, name):
    """It has the initial personal part with the current shared one: nothing of what others keep."""
    federation, start, outcomes = three_rounds(make, name)
    server = outcomes[0].server
    (k, *_) = sorted(set(range(6)) - set(outcomes[0].result.client_ids))
    view, model, found = of_client(make, name, server, k)
    assert view.state == {}
    *_, alone = of_client(make, name, replace(server, clients={}), k)
    assert different(found, alone) == []
    shared = federation.executor.shared
    if shared is not None and isinstance(model, GlobalModel):
        assert torch.equal(model.params, torch.where(shared, server.params, start.params))
    if federation.algorithm.own_buffers and isinstance(model, GlobalModel):
        assert torch.equal(model.buffers, start.buffers)


@pytest.mark.parametrize("name", NAMES)
def test_who_is_absent_keeps_what_it_has(make, name):
    *_, outcomes = three_rounds(make, name)
    for before, outcome in pairwise(outcomes):
        kept, now = before.server.clients, outcome.server.clients
        assert kept.keys() <= now.keys() <= kept.keys() | set(outcome.result.client_ids)
        absent = kept.keys() - set(outcome.result.client_ids)
        assert all(different(kept[k], now[k]) == [] for k in absent)


@pytest.mark.parametrize("name", NAMES)
def test_what_mean_is_reported(make, name):
    """Over all six clients, each on its own classes, one client one vote or one example one vote; at every moment."""
    federation, start, outcomes = three_rounds(make, name)
    server, dataset, counts = outcomes[0].server, federation.dataset, federation.partition.class_counts
    schedule = Schedule(1, 1, 7, 1, fine_tune_epochs=None)
    row = describe(federation, outcomes[0], schedule, start).metrics
    algorithm, executor = federation.algorithm, federation.executor
    found = {}
    if algorithm.overrides("personal"):
        found["personal"] = [(view, algorithm.personal(view)) for view in executor.views(range(6), server)]
    if tuning_of(algorithm, None) is not None:
        tuned = executor.playing(tuning_of(algorithm, None), "fine_tune/")
        models = [
            replace(model, params=model.params.clone()) for _, model in fine_tuned_models(tuned, server, range(6))
        ]
        found["fine_tuned"] = list(zip(executor.views(range(6), server), models, strict=True))
    assert {key.split("/")[0] for key in row} & {"personal", "fine_tuned"} == set(found)
    for moment, models in found.items():
        scores = []
        for view, model in models:
            right = predicted(view, model, dataset.normalized_test_inputs).argmax(1) == dataset.test_targets
            classes = [float(right[dataset.test_targets == c].double().mean()) for c in range(3)]
            scores.append(float(counts[view.client_id] @ classes / counts[view.client_id].sum()))
        sizes = counts.sum(1)
        assert row[f"{moment}/test/acc_mean"] == pytest.approx(sum(scores) / 6)
        assert row[f"{moment}/test/acc_mean_examples"] == pytest.approx(sizes @ scores / sizes.sum())
        assert row[f"{moment}/test/acc_worst"] == pytest.approx(min(scores))


def accuracy_of(federation, server):
    """Return the mean accuracy of the models that clients would use, on the test split."""
    dataset, algorithm, right = federation.dataset, federation.algorithm, []
    for view in federation.executor.views(range(federation.num_clients), server):
        outputs = predicted(view, algorithm.personal(view) or view.received, dataset.normalized_test_inputs)
        right.append(float((outputs.argmax(1) == dataset.test_targets).float().mean()))
    return sum(right) / len(right)


@pytest.fixture(scope="module")
def digits(make):
    return make.choice("dataset", "digits")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ALIGNING])
def test_learns_digits(make, digits, name):
    """Six rounds beat the first one."""
    dataset = digits
    torch.manual_seed(0)
    algorithm = make.choice("algorithm", name, local_epochs=2, batch_size=32, **OF_DIGITS.get(name, {}))
    owners = torch.arange(len(dataset.train_targets)).numpy() % 8
    module = MLP(dataset.image_shape, 10, hidden=[16])
    parts = {"dataset": dataset, "module": module, "owners": owners, "num_clients": 8, "fraction": 0.5}
    federation = make.federation(algorithm=algorithm, aggregator=make.rule("fedgh"), **parts)
    outcomes = play(federation, 6)
    if algorithm.overrides("complete"):
        ask = partial(federation.executor.ask, outcomes[-1].server)
        end = algorithm.complete(outcomes[-1].server, federation.model.blocks, ask, federation.seed)
    else:
        end = outcomes[-1].server
    assert accuracy_of(federation, end) > accuracy_of(federation, outcomes[0].server) + 0.1


def test_what_batch_normalization_is_needed_for_is_refused_without_it(make):
    with pytest.raises(ConfigurationError, match=r"algorithm=fedbn keeps batch normalization .* this model has none"):
        federation_of(make, "fedbn", "mlp", norm="batch")
