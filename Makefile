# make help    lists the targets. Nothing is installed outside .venv.

VENV := .venv
STAMP := $(VENV)/.installed
# The first Python from 3.11 to 3.13 that runs and can make a virtual environment.
FIND_PYTHON := for python in python3.11 python3.12 python3.13 python3; do \
	"$$python" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	2>/dev/null && { echo "$$python"; break; }; done
PYTHON ?= $(shell $(FIND_PYTHON))
ARGS ?=
# Three test files at a time: a test that has started workers often waits.
PYTEST = $(VENV)/bin/python -m pytest -n 3 --dist loadfile

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup fit test test-browser test-slow test-faults test-docker test-slurm test-keras-versions lint format clean

help:
	@echo 'make setup    a virtual environment in .venv with all that is needed'
	@echo 'make fit      train the default model on two local workers'
	@echo 'make test     run the tests; ARGS="-m \"not workers and not slow\"" leaves out worker processes'
	@echo 'make test-browser   TensorBoard and the report in headless Chromium or Chrome'
	@echo 'make test-slow   the suites that "make test" leaves out: they take minutes'
	@echo 'make test-faults   every fault at every moment on two and three workers: an hour or more'
	@echo 'make test-docker   docker compose up, with faults from outside: needs a running engine'
	@echo 'make test-slurm    srun on one node and on two, with requeue: needs a running Docker engine'
	@echo 'make test-keras-versions   the tests of fit with Keras 3.13, 3.14 and 3.15, each in a .venv of its own'
	@echo 'make lint     check style and types'
	@echo 'make format   put the code into shape'
	@echo 'make clean    remove .venv and caches; runs/ stays'
	@echo
	@echo 'PYTHON=python3.12 chooses the Python of .venv; ARGS="..." is passed on by fit and test.'

setup: $(STAMP)

# The stamp is written last and removed first: an environment without it was cut off half-way
# and is made anew; one with an older stamp is brought up to date.
$(STAMP): setup.py pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { \
		echo 'make: no Python from 3.11 to 3.13 with venv was found.' >&2; \
		echo 'Debian and Ubuntu: apt install python3-venv. Or name one: make PYTHON=/path/to/python3.12' >&2; \
		exit 1; }
	@test -f $@ || { echo "$(PYTHON) -m venv --clear $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	@rm -f $@
	$(VENV)/bin/python -m pip install --constraint constraints.txt --editable '.[dev]'
	@touch $@

fit: setup
	$(VENV)/bin/python -m tfscale.fit --strategy=multiworker --workers=2 $(ARGS)

test: setup
	$(PYTEST) $(ARGS)

# Each version of Keras that enable_keras_fit() supports, in an environment of its own.
KERAS_VERSIONS ?= 3.13 3.14 3.15
KERAS_TESTS := tests/training tests/test_launch.py tests/test_imports.py

test-keras-versions:
	@set -e; for version in $(KERAS_VERSIONS); do \
		venv=$(VENV)-keras-$$version; \
		echo "Keras $$version in $$venv"; \
		test -x $$venv/bin/python || $(PYTHON) -m venv $$venv; \
		grep -v '^keras==' constraints.txt > $$venv/constraints.txt; \
		$$venv/bin/python -m pip install --quiet --constraint $$venv/constraints.txt \
			--editable '.[dev]' "keras==$$version.*"; \
		$$venv/bin/python -m pytest -n 2 --dist loadfile $(KERAS_TESTS) $(ARGS); \
	done

test-browser: setup
	$(VENV)/bin/python -m pytest -m slow tests/monitor/test_in_a_browser.py $(ARGS)

test-slow: setup
	$(PYTEST) -m "slow and not faults and not docker and not slurm" $(ARGS)

test-faults: setup
	$(VENV)/bin/python -m pytest -m faults tests/faults $(ARGS)

test-docker: setup
	$(VENV)/bin/python -m pytest -s -m docker tests/deploy $(ARGS)

test-slurm: setup
	$(VENV)/bin/python -m pytest -s -m slurm tests/deploy $(ARGS)

lint: setup
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: setup
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

clean:
	rm -rf $(VENV) $(VENV)-keras-* build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find tfscale tests experiments -type d -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
