"""What is said by a process that ends without having asked."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs a shell")

PROGRAM = """
import os, signal, sys
from fedgh.federation.stopping import last_words
with last_words("it's over: go on with 'this'"):
    {action}
"""


def ended(action):
    answer = subprocess.run([sys.executable, "-c", PROGRAM.format(action=action)], capture_output=True, text=True)
    return answer.returncode, answer.stderr


@pytest.mark.parametrize("action", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(1)"])
def test_last_words_of_a_process_that_is_ended_on_the_spot(action):
    code, said = ended(action)
    assert code in (1, -9)
    assert said == "\nit's over: go on with 'this'\n"


@pytest.mark.parametrize(("action", "status"), [("pass", 0), ("sys.exit(3)", 3)])
def test_no_last_words_of_one_that_ends_by_itself(action, status):
    assert ended(action) == (status, "")
