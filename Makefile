# make demo   set up and make a small real model forget a topic; with ARGS=--fictional, a smaller one invented people
# make test   set up and run the tests
# make lint   set up and run the linter, the formatter's check and the type checker
#
# PYTHON   interpreter that the environment is made from, 3.10 to 3.13   (make demo PYTHON=python3.12)
# WORKERS  number of test processes
# ARGS     more arguments for the demo or for pytest                     (make test ARGS="-k registry")

PYTHON ?= python3
WORKERS ?= 2
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt
INPUTS := pyproject.toml constraints.txt Makefile

.PHONY: demo test lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/.ready-to-run
	@$(BIN)/grun demo $(ARGS)

# One thread per process: the tests' models are tiny, and processes that fight for cores are slower.
test: $(VENV)/.ready-to-test
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

lint: $(VENV)/.ready-to-lint
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

clean:
	@rm -rf $(VENV)

# torch comes first and alone, so that the build that is chosen for it is the one that everything else is installed with.
$(VENV)/.ready-to-run: $(INPUTS)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; ok = (3, 10) <= v <= (3, 13); \
	  ok or sys.exit("grun needs Python 3.10 to 3.13, but $(PYTHON) is %d.%d: make $(MAKECMDGOALS) PYTHON=python3.12" % v)'
	@test -x $(BIN)/python || { echo "Creating the environment $(VENV) ..."; $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python -c 'import torch' 2>/dev/null \
	  || { echo "Installing torch (once; the largest download by far) ..."; $(INSTALL) torch; }
	@echo "Installing grun and what it needs ..."
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.ready-to-test: $(VENV)/.ready-to-run
	@echo "Installing what the tests need ..."
	@$(INSTALL) --editable '.[test]'
	@touch $@

$(VENV)/.ready-to-lint: $(VENV)/.ready-to-test
	@echo "Installing the linter and the type checker ..."
	@$(INSTALL) --editable '.[dev]'
	@touch $@
