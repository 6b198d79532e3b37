"""What is printed can be pasted: through a shell and through Hydra's grammar comes the text that was meant."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fedgh.core.command import command, quoted, setting

NASTY = [
    *("a b", "it's", 'say "so"', "a[1]", "(1) b", "{x}", "a,b", "a=b", "a#b", "$HOME", "${HOME}", "100%", "ümläut é"),
    *("0", "007", "1e3", "1_000", "null", "TRUE", "nan", "-x", "~", "~/x", "a\\", "a\\\\", 'a\\"b', "a\\${b}", "a;b"),
    *("a&b", "a|b", "a!b", "a`b`", "*", "?", " a ", "a\nb", "a\tb", ".", "..", "./x", ".5", "a:b", "<a>", "中文"),
]


def read(override):
    """The value that Hydra would put into a config."""
    value = OverridesParser.create().parse_override(override).value()
    return OmegaConf.create({"key": value}).key


@pytest.mark.parametrize("text", NASTY)
def test_hydra_reads_the_text_that_was_meant(text):
    assert read(setting("key", text)) == text


@given(st.text(st.sampled_from("ab0.'\"\\ ${}[](),=#%~:/-é\n"), min_size=1, max_size=12))
def test_hydra_reads_any_text(text):
    assert read(setting("key", text)) == text


@pytest.mark.parametrize("value", [8, 1.5, True, None, ["a b", 1]])
def test_values_that_are_not_text_keep_their_kind(value):
    assert read(setting("key", value)) == value


def test_a_plain_path_stays_readable():
    path = Path("/home/x/logs/train/runs/2026-11-25_10-00-00-123456")
    assert command("fedgh-train", setting("resume", path), setting("num_rounds", 8)) == (
        f"fedgh-train resume={path} num_rounds=8"
    )
    assert quoted("a b") == '"a b"'


def test_a_shell_hands_on_what_was_meant():
    words = [setting("resume", text) for text in NASTY]
    program = "import sys, json; print(json.dumps(sys.argv[1:]))"
    line = command(sys.executable, "-c", program, *words)
    answer = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    assert answer.stdout == json.dumps(words) + "\n"
    assert shlex.split(line)[3:] == words
