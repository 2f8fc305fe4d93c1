# `make demo` and `make test` do everything on a fresh machine: each sets .venv up by itself first.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin

# Real images, weights and the LPIPS example, for the tests that compare with them. See CONTRIBUTING.md.
ifneq ($(wildcard ../shared/imagenet-sample),)
export FASTDPS_TEST_DATA ?= $(abspath ../shared)
endif

.PHONY: venv demo test test-slow lint docs bench faults clean

venv: .venv/ready

.venv/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: venv
	$(BIN)/fastdps demo

# Tests run in so many processes with a thread each: file by file, and the slow ones, which CI runs too, one by one.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)
test: venv
	$(PYTEST) -m "not slow" --dist loadfile --no-loadscope-reorder

test-slow: venv
	$(PYTEST) -m slow --dist worksteal

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# How often each fault of the campaign is done; CI does each once.
ROUNDS ?= 5
faults: venv
	PYTHONPATH=tests:. FASTDPS_WEIGHTS=$${FASTDPS_WEIGHTS:-$${FASTDPS_TEST_DATA:+$$FASTDPS_TEST_DATA/weights}} \
	  $(BIN)/python tests/faults/training_faults.py --rounds $(ROUNDS)

# The site: the guides, and the API from the docstrings. NO_MKDOCS_2_WARNING turns off a notice of the theme's.
docs: venv
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: venv
	$(BIN)/python -m bench

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
