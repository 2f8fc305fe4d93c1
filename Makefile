# `make demo` and `make test` work on a fresh machine: each sets up the environment first.
# With PYTHON=python3.12 a target uses that Python, in an environment of its own, .venv-python3.12.
SHELL := /bin/bash
ifeq ($(origin PYTHON),undefined)
PYTHON := python3
VENV := .venv
else
VENV := .venv-$(notdir $(PYTHON))
endif
BIN := $(VENV)/bin

# Real images, weights and the LPIPS example, for the tests that compare with them. See CONTRIBUTING.md.
ifneq ($(wildcard ../shared/imagenet-sample),)
export FASTDPS_TEST_DATA ?= $(abspath ../shared)
endif

.PHONY: venv demo test test-slow lint docs notebook bench faults attacks clean

venv: $(VENV)/ready

$(VENV)/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: venv
	$(BIN)/fastdps demo

# Tests run in WORKERS processes of one thread each. Fast tests are distributed by file, slow ones one by one.
# Without compiled files each process would compile all modules that it imports.
WORKERS ?= 2
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)
# Line coverage of the fast tests, of the test processes only: those they start are not measured. `make test COVERAGE=`
# runs without it. sys.monitoring costs the least, and exists from Python 3.12 on.
COVERAGE ?= --cov=fastdps --cov-report= --cov-fail-under=90
CORE = $(shell $(BIN)/python -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")')
test: venv
	COVERAGE_CORE=$(CORE) $(PYTEST) -m "not slow" --dist loadfile --no-loadscope-reorder $(COVERAGE)

test-slow: venv
	$(PYTEST) -m slow --dist worksteal

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The number of times that the campaign injects each fault; CI does each once.
ROUNDS ?= 5
faults: venv
	PYTHONPATH=tests:. FASTDPS_WEIGHTS=$${FASTDPS_WEIGHTS:-$${FASTDPS_TEST_DATA:+$$FASTDPS_TEST_DATA/weights}} \
	  $(BIN)/python tests/faults/training_faults.py --rounds $(ROUNDS)

# Mutated images, tables, metric files, shard sets and runs, and servers that misbehave, from fixed seeds, ATTACKS times
# as many as `make test` has, with their counts.
ATTACKS ?= 10
attacks: venv
	FASTDPS_ATTACKS=$(ATTACKS) $(BIN)/python -m pytest tests/attacks -s -q

# The site: the guides, and the API from the docstrings. NO_MKDOCS_2_WARNING turns off a notice of the theme's.
docs: venv
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Runs the notebook in a folder of its own, and writes its outputs into docs.
notebook: venv
	bin=$(abspath $(BIN)) && work=$$(mktemp -d) && cp docs/first_metric.ipynb $$work && \
	  PYTHONWARNINGS=ignore PATH=$$bin:$$PATH $$bin/jupyter-execute --inplace $$work/first_metric.ipynb && \
	  cp $$work/first_metric.ipynb docs && rm -r $$work

bench: venv
	$(BIN)/python -m bench

clean:
	rm -rf .venv .venv-* .coverage* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
