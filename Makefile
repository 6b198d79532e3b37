# Needs Python 3.11 or later and nothing else. PYTHON=python3.12 chooses another interpreter.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help train test test-all check docs docs-serve benchmark clean
help:
	@echo "make train      install if needed, then train the default federation (FedGH on handwritten digits)"
	@echo "make test       install if needed, then run the default tests in two processes"
	@echo "make test-all   the slow tests too"
	@echo "make benchmark  speed, as ratios against a bare PyTorch loop; wants a quiet machine"
	@echo "make docs       the documentation as a site, in build/site; make docs-serve shows it"
	@echo "make check      lint, types, import rules, spelling"

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] else "FedGH needs Python 3.11 or later, found %d.%d; try make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@

train: .venv/installed
	$(BIN)/fedgh-train

test: .venv/installed
	$(BIN)/pytest -n 2 --dist worksteal

test-all: .venv/installed
	$(BIN)/pytest -m "not gpu"

check: .venv/installed
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell src tests configs docs README.md CONTRIBUTING.md CHANGELOG.md

docs: .venv/installed
	$(BIN)/mkdocs build --quiet

docs-serve: .venv/installed
	$(BIN)/mkdocs serve

benchmark: .venv/installed
	$(BIN)/python tests/benchmarks/benchmark.py

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
