import pytest

from fedgh.aggregator.clipped import Clipped
from fedgh.aggregator.fedgh import FedGH
from fedgh.config.rules import aggregator_names, build_aggregators
from fedgh.core.errors import ConfigurationError


def test_every_choice_is_built_with_the_settings_of_its_yaml():
    rules = build_aggregators(aggregator_names())
    assert list(rules) == aggregator_names()
    assert isinstance(rules["fedgh"], FedGH)
    assert rules["fedgh"].order == "random"
    assert isinstance(rules["clipped"], Clipped)  # has a defaults list of its own


@pytest.mark.parametrize("names", [[], ["mean", "mean"]])
def test_a_list_names_each_rule_once(names):
    with pytest.raises(ConfigurationError, match="must name one or more, each once"):
        build_aggregators(names)


def test_one_name_is_a_list_of_one():
    assert list(build_aggregators("mean")) == ["mean"]


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigurationError, match=r"no aggregator 'pcgard' \(did you mean pcgrad\?\); known: "):
        build_aggregators(["pcgard"])
