"""Do the tests notice? One small change at a time, in a copy of the repository, and the tests that should tell.

    python tests/mutate.py src/fedgh/aggregator/qp.py tests/aggregator --number 20 --seed 0

A survivor is a change after which the tests still pass. Write the test that is missing, or see that nobody could tell
the difference (a tolerance, a faster way to the same number).
"""

import argparse
import ast
import importlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

SWAPS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div,
}  # fmt: skip
NAMES = {"min": "max", "argmin": "argmax", "amin": "amax", "clamp_min": "clamp_max", "any": "all", "sum": "mean"}
NAMES |= {other: name for name, other in NAMES.items()}
COPIES = ("clone", "detach", "copy", "contiguous")
LIBRARIES = ("torchvision", "torchmetrics", "pytorch_lightning", "hydra", "pandas", "matplotlib.pyplot", "wandb")
LIBRARIES += ("sklearn.datasets", "pyarrow.parquet", "scipy.optimize")
Change = tuple[int, ast.AST, str]  # line, what stands there, what is written instead


def changes(tree: ast.AST) -> Iterator[Change]:
    """Yield every small change to a module; texts, annotations and imports stay as they are."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list", "exc"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from ((child.lineno, child, new) for new in _instead(child))
                yield from changes(child)


def _instead(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Compare(left, [operator], rest) if type(operator) in SWAPS:
            yield ast.unparse(ast.Compare(left, [SWAPS[type(operator)]()], rest))
        case ast.BoolOp(operator, values):
            yield ast.unparse(ast.BoolOp(SWAPS[type(operator)](), values))
        case ast.BinOp(left, operator, right) if type(operator) in SWAPS:
            yield ast.unparse(ast.BinOp(left, SWAPS[type(operator)](), right))
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield ast.unparse(operand)
        case ast.Constant(bool() as value):
            yield str(not value)
        case ast.Constant(int() as value):
            yield str(value + 1)
        case ast.Call(ast.Attribute(value, attribute), [], []) if attribute in COPIES:
            yield ast.unparse(value)
        case ast.Call(ast.Attribute(value, attribute) as function, arguments, keywords) if attribute in NAMES:
            yield ast.unparse(ast.Call(ast.Attribute(value, NAMES[attribute], function.ctx), arguments, keywords))
        case ast.Call(ast.Name("min" | "max" | "any" | "all" as name), arguments, keywords):
            yield ast.unparse(ast.Call(ast.Name(NAMES[name]), arguments, keywords))
        case ast.Raise() | ast.Expr(ast.Call()):
            yield "pass"
        case ast.Continue():
            yield "break"


def apply(source: str, node: ast.AST, new: str) -> str:
    """Return the source with a node replaced."""
    lines = source.encode().splitlines(keepends=True)  # columns of a syntax tree count bytes
    start = sum(map(len, lines[: node.lineno - 1])) + node.col_offset
    stop = sum(map(len, lines[: node.end_lineno - 1])) + node.end_col_offset
    text = f"({new})" if isinstance(node, ast.expr) and not isinstance(node, ast.Constant) else new
    return (source.encode()[:start] + text.encode() + source.encode()[stop:]).decode()


def passes(root: Path, tests: list[str], limit: float, write: bool = False) -> bool:
    """Run tests in a copy, in a fork of this process, which has read the libraries; one that hangs has noticed.

    Args:
        root: Of the copy.
        tests: What pytest is given.
        limit: Seconds.
        write: Whether compiled modules are kept; not of changed ones, which only second and size tell from others.
    """
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(root)
        sys.dont_write_bytecode = not write
        sys.path[:1] = [str(root / "src"), str(root)]
        os.environ["PYTHONPATH"] = str(root / "src")
        said = os.open(root / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(said, stream)
        code = 1
        try:
            options = ("-W", "ignore::pytest.PytestAssertRewriteWarning")  # of plugins in libraries
            code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", *options, *tests])
        finally:
            sys.stdout.flush()
            os._exit(code)
    deadline, ended = time.monotonic() + limit, (0, 1)
    while time.monotonic() < deadline and ended[0] == 0:
        ended = os.waitpid(child, os.WNOHANG)
        time.sleep(0.05)
    with suppress(ProcessLookupError):  # what a test has left, too
        os.killpg(child, signal.SIGKILL)
    if ended[0] == 0:
        os.waitpid(child, 0)
    return ended[0] != 0 and ended[1] == 0


def main() -> None:
    """Change, test, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the module to change")
    parser.add_argument("tests", nargs="+", help="what should notice: files, folders or options of pytest")
    parser.add_argument("--number", type=int, default=20, help="how many changes, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lines", default="1-100000", help="only here: first-last")
    arguments, options = parser.parse_known_args()
    first, last = map(int, arguments.lines.split("-"))
    source = arguments.source.read_text()
    found = [change for change in changes(ast.parse(source)) if first <= change[0] <= last]
    drawn = random.Random(arguments.seed).sample(found, min(arguments.number, len(found)))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "copy"
        files = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], text=True).splitlines()
        for file in filter(os.path.isfile, files):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, root / file)
        for name in LIBRARIES:
            importlib.import_module(name)
        started = time.monotonic()
        if not passes(root, arguments.tests + options, 3600, write=True):
            sys.exit(f"{(root / 'said').read_text()}\nthe tests fail before anything is changed")
        for compiled in (root / arguments.source.parent / "__pycache__").glob(f"{arguments.source.stem}.*"):
            compiled.unlink()
        limit, survivors = 30 + 3 * (time.monotonic() - started), 0
        for line, node, new in sorted(drawn, key=lambda change: change[0]):
            (root / arguments.source).write_text(apply(source, node, new))
            if passes(root, arguments.tests + options, limit):
                survivors += 1
                was = " ".join((ast.get_source_segment(source, node) or "").split())
                sys.stdout.write(f"{arguments.source}:{line}: {was}  ->  {new}\n")
                sys.stdout.flush()
    sys.stdout.write(f"{len(drawn) - survivors} of {len(drawn)} changes noticed (of {len(found)} there are)\n")


if __name__ == "__main__":
    main()
