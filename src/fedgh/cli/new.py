"""A package of one's own, with a method and a rule to begin with: ``fedgh-new <name>``."""

from __future__ import annotations

import argparse
import keyword
import sys
from pathlib import Path
from string import Template

TEMPLATE = Path(__file__).parent / "new_package"


def main() -> None:
    """Entry point of ``fedgh-new``; ends with status 2 on a user's error."""
    parser = argparse.ArgumentParser(
        prog="fedgh-new",
        description="Make a package of your own with an algorithm, an aggregator, their configs and a test. Nothing of "
        "FedGH's is edited: once installed, its yamls are found by every command.",
    )
    parser.add_argument("name", help="of the package and of its folder, such as my_paper")
    name = parser.parse_args().name
    try:
        folder = create(name, Path.cwd())
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    sys.stdout.write(
        f"made {folder}\nnext: cd {name}; pip install -e '.[dev]'; pytest; fedgh-train algorithm=my_method "
        "aggregator=my_rule debug=default\n"
    )


def create(name: str, parent: Path) -> Path:
    """Write the package into a new folder of its name and return that.

    Args:
        name: A name that Python can import.
        parent: Where the folder is made.

    Raises:
        ValueError: If the name cannot be imported or is taken.
    """
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower():
        raise ValueError(f"{name!r} is no name of a package; take small letters, digits and _, such as my_paper")
    if name in sys.stdlib_module_names or name in ("fedgh", "torch", "hydra", "wandb", "tests"):
        raise ValueError(f"{name} is the name of another package; take another, such as my_{name}")
    folder = parent / name
    if folder.exists():
        raise ValueError(f"{folder} is there already; take another name, or another folder")
    for source in sorted(path for path in TEMPLATE.rglob("*") if path.suffix == ".template"):
        relative = source.relative_to(TEMPLATE).with_suffix("")
        target = folder / Path(*(name if part == "NAME" else part for part in relative.parts))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(Template(source.read_text(encoding="utf-8")).substitute(name=name), encoding="utf-8")
    return folder


if __name__ == "__main__":
    main()
