"""What a user types wrongly: one line before training, with what to type instead, never a traceback."""

import io
import os
import shlex
import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from fedgh.config import entry
from fedgh.config.typed import check_typed, choices_with, explain, no_such_key, one_line, quoted
from fedgh.core.errors import ConfigurationError

READ_BUT_WRONG = {
    "aggregator = mean": "aggregator = mean is no setting; type aggregator=mean, without spaces",
    "aggregator =mean": "type aggregator=mean, without spaces",
    "aggregator mean": "type aggregator=mean, without spaces",
    "aggregator": "'aggregator' is no setting; type aggregator=<value>",
    "aggregator:mean": "'aggregator:mean' is no setting; type aggregator=mean",
    "aggregator==mean": "aggregator==mean cannot be read; type aggregator=mean",
    "--aggregator mean": "there is no option --aggregator; settings have no dashes, type aggregator=mean",
    "--num_rounds=3": "type num_rounds=3",
    "partition.alpha=0,1": "is more than one value; type partition.alpha=0.1 for a decimal number, "
    "partition.alpha=[0,1] for a list, or add -m for a sweep",
    "num_rounds=1,2,3": "type num_rounds=[1,2,3] for a list, or add -m",
    "resume=": "resume= has no value (an unset shell variable?); type resume=<value>",
    "paths.log_dir=null": "paths.log_dir=null names no folder; type paths.log_dir=<folder>",
    "hydra.run.dir=???": "hydra.run.dir=??? stands for no value; type hydra.run.dir=<value> or leave it out; a folder",
    "resume='???'": "leave it out; a folder of that name is 'resume=./???'",
    "num_rounds=???": "num_rounds=??? stands for no value; type num_rounds=<value> or leave it out",
    "hydra.run.dir=${": "Hydra makes no folder of such a name; choose another name, without ${",
    'hydra.run.dir="\\${"': "Hydra makes no folder of such a name; choose another name, without ${",
    "hydra.sweep.dir='a${b'": "Hydra makes no folder of such a name; choose another name, without ${",
    "paths.log_dir=2024": "paths.log_dir=2024 names no folder; type paths.log_dir=./2024",
    "algorithm=null": "algorithm=null is no choice of algorithm; leave it out, or type algorithm=<choice>; there",
    "algorithm=[fedavg]": "is no choice of algorithm",
    "algorithm={mu:1}": "is no choice of algorithm",
    "logger=null": "type logger=csv for none",
    "lr_schedule=cosine": "whose learning rate? type lr_schedule@client_lr_schedule=cosine, or lr_schedule@",
    "experiment=null": "experiment=null is no choice of experiment; leave it out",
    "tags=[a, b]": "the shell has cut tags=[a, b] at its spaces; type 'tags=[a, b]'",
    "ü=3": "ü=3 cannot be read as key=value",
}


@pytest.mark.parametrize("line", READ_BUT_WRONG)
def test_what_is_no_setting(line):
    with pytest.raises(ConfigurationError) as caught:
        check_typed(line.split(" "))
    assert READ_BUT_WRONG[line] in str(caught.value)
    assert "\n" not in str(caught.value)


UNREADABLE = [
    ("paths.log_dir", "/x/my logs é"),
    ("paths.log_dir", "it's here"),
    ("name", "a#b"),
    ("name", "x(y"),
    ("name", "a=b"),
    ("name", "[1,2"),
    ("name", 'mu $\\mu_{0$ "quoted"'),
    ("name", "ends with \\ü\\"),
    ("tags", "ümlaut"),
]


@pytest.mark.parametrize(("key", "value"), UNREADABLE)
def test_what_hydra_cannot_read_comes_back_quoted_so_that_it_can(key, value):
    with pytest.raises(ConfigurationError) as caught:
        check_typed([f"{key}={value}"])
    told = str(caught.value).rpartition("; type ")[2]
    (argument,) = shlex.split(told)  # as the shell would read what is pasted
    parsed = OverridesParser.create().parse_override(argument)
    assert (parsed.key_or_group, parsed.value()) == (key, value)
    check_typed([argument])


def test_items_of_a_list_are_quoted_one_by_one():
    with pytest.raises(ConfigurationError, match=r"type 'tags=\[\"ümlaut\",\"a b\",c\]'"):
        check_typed(["tags=[ümlaut,a b,c]"])


@pytest.mark.parametrize("value", ["plain", "it's", 'a "b"', "\\", "a\\'b", "é ü", "tail\\"])
def test_quoting(value):
    assert OverridesParser.create().parse_override(f"a={quoted(value)}").value() == value


@pytest.mark.parametrize(
    "arguments",
    [
        ["num_rounds=3", "aggregator=mean"],
        ["-m", "partition.alpha=0,1"],
        ["hydra.mode=MULTIRUN", "seed=1,2"],
        ["--multirun", "aggregator=mean,fedgh"],
        ["--help"],
        ["--cfg", "job", "num_rounds=3"],
        ["~callback", "+callback.x={_target_: a.b}"],
        ["callback=[shadow,record_updates]", "partition.alpha=.inf", "name='a b'"],
    ],
)
def test_what_is_right_passes(arguments):
    check_typed(arguments)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["aggregator=fedg"], "there is no aggregator=fedg (did you mean fedgh?)"),
        (["aggregator=FedGH"], "there is no aggregator=FedGH (did you mean fedgh?)"),
        (["trainer=xyzzy"], "there is no trainer=xyzzy; there are: auto, cpu, gpu"),
        (["callback=[shadow,recrd_updates]"], "there is no callback=recrd_updates (did you mean record_updates?)"),
        (
            ["algorithm=fedavg", "algorithm.mu=0.1"],
            "the chosen algorithm has no algorithm.mu, which belongs to",
        ),
        (["sampler.clients_per_round=3"], "which belongs to sampler=round_robin"),
        (["partition=iid", "partition.alpha=1"], "belongs to partition=dirichlet, dirichlet_guarded"),
        (["lr=0.1"], "there is no key lr (did you mean algorithm.optimizer.lr or server_optimizer.lr?)"),
        (["epochs=3"], "there is no key epochs (did you mean algorithm.local_epochs?)"),
        (["clients_per_round=3"], "(did you mean sampler.clients_per_round, with sampler=round_robin?)"),
        (["algoritm.batch_size=3"], "there is no key algoritm.batch_size (did you mean algorithm.batch_size?)"),
        (["+num_rounds=3"], "there is a key num_rounds already; type num_rounds=<value> without the +"),
        (["~foo"], "~foo: there is no key foo"),
        (["name=a${b}"], "Interpolation key 'b' not found (in name); ${...} stands for another key, the letters"),
        (["hydra.run.dir=x${b}"], "themselves are typed as \\${ between quotation marks: 'name=\"a\\${b}\"'"),
        (["-m", "hydra.sweep.dir=x${b}", "seed=1,2"], "Interpolation key 'b' not found"),
        (["resume=a${b"], "${b opens a reference that nothing closes, in a setting or a folder's name; choose another"),
        (["name='a${b'"], "${b opens a reference that nothing closes"),
        (["name=${oc.env:NO_SUCH}"], "Environment variable 'NO_SUCH' not found"),
        (["tags={a:1}"], "tags must be a list of texts of 1 to 64 letters"),
        (["trainer.max_epochs=5"], "trainer.max_epochs=5 is not read here, leave it out"),
        (["algorithm.optimizer.lr=1e-2x"], "algorithm.optimizer.lr must be a number, got '1e-2x'"),
        (["num_rounds=abc"], "num_rounds must be a positive integer, got 'abc'"),
    ],
)
def test_the_command_says_it_in_one_line_and_leaves_no_results(cli, arguments, text):
    answer = cli("debug=default", "logger=csv", *arguments)
    assert answer.code == 2
    (line,) = answer.err.strip().splitlines()
    assert line.startswith("error: ")
    assert text in line
    assert not list(answer.log_dir.rglob("metrics.csv"))


def test_keys_of_other_choices():
    assert "fedprox" in choices_with("algorithm.mu")
    assert "fedavg" not in choices_with("algorithm.mu")
    assert choices_with("server_optimizer.beta1") == ["adagrad", "adam", "lamb", "yogi"]
    assert choices_with("num_rounds") == choices_with("nowhere.key") == []
    assert "logs" not in no_such_key("xyzzyx", "train")


def test_messages_of_hydra_in_one_line():
    text = "Error merging override a=b\nInvalid value 'b'\n    full_key: a\n    object_type=dict\nSee https://hydra.cc"
    assert one_line(text) == "Error merging override a=b: Invalid value 'b'"
    error = ValueError("outer")
    error.__cause__ = ValueError("inner")
    assert explain(error, "train") == "outer: inner"


def test_an_ascii_terminal_gets_escapes(monkeypatch):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    entry.speak_plainly()
    stream.write("données…")
    stream.flush()
    assert raw.getvalue() == b"donn\\xe9es\\u2026"


@pytest.mark.parametrize("home", [None, ""])
def test_a_process_without_home_gets_one(monkeypatch, home):
    if home is None:
        monkeypatch.delenv("HOME", raising=False)
    else:
        monkeypatch.setenv("HOME", home)
    entry.quieten()
    assert os.path.isabs(os.environ["HOME"])
    monkeypatch.setenv("HOME", "kept")
    entry.quieten()
    assert os.environ["HOME"] == "kept"


def test_only_what_cannot_be_written_speaks_of_the_log_directory():
    assert entry.disk_trouble(OSError(28, "No space left on device", "x")).endswith("paths.log_dir=<folder>")
    assert entry.disk_trouble(FileNotFoundError(2, "No such file or directory", "x")) == "No such file or directory (x)"
