"""The changes that ``tests/mutate.py`` makes: each is one, and is a program still."""

import ast
from pathlib import Path

from fedgh.aggregator import qp
from tests.mutate import apply, changes

SOURCE = '''"""Text with 1 < 2."""

def ümläut(values: list[int] = 3, flag: bool = True) -> int:
    """Return -1."""
    if not values or len(values) < 2:
        raise ValueError("at least 2")
    copied = values.clone()
    return min(copied) + 1 if flag and "ü" in copied else -copied.sum()
'''


def changed(source):
    return {apply(source, node, new) for _, node, new in changes(ast.parse(source))}


def test_every_kind_of_change_is_made_and_texts_stay():
    found = changed(SOURCE)
    last = '    return min(copied) + 1 if flag and "ü" in copied else -copied.sum()\n'
    for new in (
        SOURCE.replace("list[int] = 3", "list[int] = 4"),
        SOURCE.replace("bool = True", "bool = False"),
        SOURCE.replace("if not values or len", "if (values) or len"),
        SOURCE.replace("len(values) < 2:", "(len(values) <= 2):"),
        SOURCE.replace('raise ValueError("at least 2")', "pass"),
        SOURCE.replace("values.clone()", "(values)"),
        SOURCE.replace(last, last.replace("min(copied) + 1", "(min(copied) - 1)")),
        SOURCE.replace(last, last.replace("min(", "(max(").replace("copied) + 1", "copied)) + 1")),
        SOURCE.replace(last, last.replace('"ü" in copied', "('ü' not in copied)")),
    ):
        assert new in found
    assert all('"""Text with 1 < 2."""' in one and '"""Return -1."""' in one for one in found)


def test_every_change_is_a_program():
    source = Path(qp.__file__).read_text()
    found = changed(source)
    assert len(found) > 60
    assert source not in found
    for one in found:
        ast.parse(one)
