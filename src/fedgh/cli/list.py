"""What there is to choose from, a line each: ``fedgh-list``, ``fedgh-list algorithms``; loads nothing heavy."""

from __future__ import annotations

import argparse
import os
import sys

from fedgh.core.choices import groups, listing, overview
from fedgh.core.errors import ConfigurationError


def main() -> None:
    """Entry point of ``fedgh-list``; ends with status 2 on a user's error."""
    parser = argparse.ArgumentParser(
        prog="fedgh-list", description="List what can be chosen, those of installed packages among them."
    )
    parser.add_argument("group", nargs="?", help="such as algorithms, aggregators, datasets; left out: all groups")
    group = parser.parse_args().group
    try:
        text = overview() if group is None else listing(singular(group))
    except ConfigurationError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # fedgh-list algorithms | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def singular(word: str) -> str:
    """Return the group that a word means: ``algorithms`` is ``algorithm``, ``launchers`` is ``hydra/launcher``."""
    for name in (word, word.removesuffix("s"), word.removesuffix("es"), word.removesuffix("ies") + "y"):
        for group in groups():
            if name in (group, group.rpartition("/")[2]):
                return group
    return word


if __name__ == "__main__":
    main()
