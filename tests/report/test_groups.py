import pytest

from fedgh.plot.style import COLOURS
from fedgh.report.groups import Groups, telling
from tests.report.made import cell, make_run

FEDAVG, FEDGH = cell("table1", "cifar10_a0.1_k20"), cell("table1", "cifar10_a0.1_k20", aggregator="fedgh")


def runs(tmp_path, *more, of=FEDAVG):
    return [make_run(tmp_path, of, seed=number, name=f"{number}", **settings) for number, settings in enumerate(more)]


def test_seeds_are_one_group_and_the_plain_mean_comes_first(tmp_path):
    both = [make_run(tmp_path, of, seed=seed) for of in (FEDGH, FEDAVG) for seed in (2, 1)]
    groups = Groups.of(both)
    assert groups.methods == ["Part", "Part + Part"]
    assert [[run.seed for run in group.finished] for group in groups.members] == [[1, 2], [1, 2]]
    assert [group.unfinished for group in groups.members] == [[], []]


def test_classes_of_one_name_are_two_methods(tmp_path):
    targets = [{"algorithm._target_": f"fedgh.algorithm.{name}.Part"} for name in ("one", "two")]
    assert Groups.of(runs(tmp_path, *targets)).methods == ["algorithm.one.Part", "algorithm.two.Part"]


def test_what_differs_names_method_or_federation(tmp_path):
    alphas = [
        {"partition.alpha": 1.0, "algorithm.local_epochs": 5},
        {"partition.alpha": 0.05, "server_optimizer.lr": 1.8},
    ]
    groups = Groups.of(runs(tmp_path, *alphas))
    assert groups.federations == ["α 0.05", "α 1"]  # by size, not by name
    assert groups.methods == ["Part, server lr 1", "Part, server lr 1.8"]
    epochs = Groups.of(runs(tmp_path, {"algorithm.local_epochs": 1}, {"algorithm.local_epochs": 5}))
    assert (epochs.methods, epochs.federations) == (["Part"], ["1 local epochs", "5 local epochs"])


def test_a_split_without_alpha_goes_by_its_name(tmp_path):
    iid = {"partition._target_": "fedgh.partition.iid.IID", "partition.alpha": None}
    assert Groups.of(runs(tmp_path, {}, iid)).federations == ["α 0.1", "IID"]


def test_runs_of_one_setting_go_by_their_data_set(tmp_path):
    groups = Groups.of(runs(tmp_path, {"dataset._target_": "fedgh.dataset.cifar10.load"}))
    assert (groups.federations, groups.datasets) == (["CIFAR-10"], ["CIFAR-10"])


def test_settings_that_follow_from_others_are_left_out(tmp_path):
    big = {"partition.num_clients": 100, "sampler.fraction": 0.2, "model.channels": [8, 8]}
    found = runs(tmp_path, {}, big)
    assert telling(found, ["sampler.fraction", "model.channels", "partition.num_clients"]) == ["sampler.fraction"]
    both = [*found, *runs(tmp_path, {"partition.num_clients": 100})]
    keys = ["sampler.fraction", "partition.num_clients"]
    assert telling(both, keys) == keys


@pytest.mark.parametrize("executor", ["executor._target_", "logger.mode", "trainer.accelerator"])
def test_how_it_was_run_does_not_set_runs_apart(tmp_path, executor):
    groups = Groups.of(runs(tmp_path, {executor: "fedgh.one.A"}, {executor: "fedgh.two.B"}))
    assert len(groups.members) == 1


def test_unfinished_runs_are_kept_apart(tmp_path):
    group = Groups.of(runs(tmp_path, {}, {"num_rounds": 20})).members[0]
    assert len(group.finished) == 2
    (open_,) = (make_run(tmp_path, FEDAVG, seed=9),)
    open_.summary["rounds"] = 3
    (group,) = Groups.of([*runs(tmp_path, {}), open_]).members
    assert ([run.seed for run in group.finished], [run.seed for run in group.unfinished]) == ([0], [9])


def test_each_method_has_a_look_of_its_own(tmp_path):
    def styles(algorithms, rules):
        of = [
            {"algorithm._target_": f"fedgh.algorithm.a{a}.A{a}", "aggregator._target_": f"fedgh.aggregator.r{r}.{r}"}
            for a in range(algorithms)
            for r in rules
        ]
        return Groups.of(runs(tmp_path, *of)).styles

    assert styles(1, ["Mean", "FedGH"]) == [(COLOURS[0], 0), (COLOURS[1], 0)]
    many = styles(4, ["FedGH", "Mean"])
    assert many[:2] == [(COLOURS[0], 1), (COLOURS[0], 0)]  # one algorithm, one colour; the mean is dashed
    assert len(set(many)) == 8
    rules = [f"R{number:02d}" for number in range(20)]
    assert len(set(styles(1, rules))) == 20
