# Each target sets up what it needs in .venv the first time; nothing else has to be installed but Python >= 3.11.

VENV := .venv
NEWEST := .venv-newest
BIN := $(VENV)/bin

# The first of $(1) that is at least Python 3.$(2) and can make virtual environments.
first_python = $(shell for p in $(1); do \
	if "$$p" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, $(2)))' 2>/dev/null; then echo "$$p"; break; fi; done)
PYTHON ?= $(call first_python,python3.11 python3.12 python3.13 python3,11)
PYTHON_NEWEST ?= $(call first_python,python3.14 python3.13 python3.12 python3 \
	$(lastword $(sort $(wildcard $(HOME)/.pyenv/versions/3.1[2-9].*/bin/python))),12)

TORCH = $(shell grep '^torch==' constraints.txt)
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-newest lint docs tutorials bench tables dist clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.user ## cluster real counts; the results are in demo_output/
	$(BIN)/scdeepclust demo --out demo_output --overwrite

# Two processes, a file of tests each: a file trains its models once.
SIDE_BY_SIDE := -n 2 --dist loadfile

# The models of the tests are so small that more threads only wait for each other.
test test-slow test-newest: export OMP_NUM_THREADS = 1
test test-slow test-newest: export NUMBA_NUM_THREADS = 1

test: $(VENV)/.developer ## quick tests (minutes)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-slow: $(VENV)/.developer ## slow tests: two processes, real data
	$(BIN)/python -m pytest -m slow

test-newest: $(NEWEST)/.developer ## quick tests with the newest scvi-tools on Python >= 3.12 (downloads about 3 GB)
	$(NEWEST)/bin/python -m pytest $(SIDE_BY_SIDE)

lint: $(VENV)/.developer ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.developer ## HTML in docs/_build/html; a warning is an error
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

tutorials: $(VENV)/.developer ## run the notebooks in tutorials/ and write their outputs into them
	$(BIN)/python tutorials/execute.py

# gpu.py needs a GPU to measure, but not to write its page; overview.py reads the rows and pages of all others.
BENCHMARKS := quality scale maps speed facets gates integration mixture confidence one_population trust_examples \
	evidence published_size k_grid kill genes stress

bench: $(VENV)/.developer ## measure what is missing and rewrite docs/benchmarks (hours; resumable)
	set -e; for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py; done
	$(BIN)/python benchmarks/overview.py

tables: $(VENV)/.developer ## rewrite tables and charts of docs/benchmarks and the README from the rows (a minute)
	set -e; for name in $(BENCHMARKS) gpu; do $(BIN)/python benchmarks/$$name.py --table; done
	$(BIN)/python benchmarks/overview.py

dist: $(VENV)/.developer ## sdist and wheel in dist/, checked
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

clean: ## remove what the other targets made
	rm -rf $(VENV) $(NEWEST) demo_output dist docs/_build docs/generated docs/tutorials/*.ipynb docs/_static/tutorials

# torch goes first and alone: on a machine with a CPU-only build at hand nothing then pulls in another one.
$(VENV)/.user: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 with venv and pip found; name one: make PYTHON=/path/to/python"; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@echo "Installing into $(VENV), this takes a few minutes"
	$(BIN)/python $(PIP_INSTALL) $(TORCH)
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e .
	@touch $@

$(VENV)/.developer: $(VENV)/.user
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e '.[test,lint,docs,bench,time,dist]'
	@touch $@

# No constraints here: the point is to meet the newest releases.
$(NEWEST)/.developer: pyproject.toml constraints.txt
	@test -n "$(PYTHON_NEWEST)" || { echo "No Python >= 3.12 found; name one: make test-newest PYTHON_NEWEST=/path/to/python"; exit 1; }
	test -x $(NEWEST)/bin/python || "$(PYTHON_NEWEST)" -m venv $(NEWEST)
	$(NEWEST)/bin/python $(PIP_INSTALL) $(TORCH)
	$(NEWEST)/bin/python $(PIP_INSTALL) 'scvi-tools>=1.5' -e '.[test,time,zarr]'
	@touch $@
