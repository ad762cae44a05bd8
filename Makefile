# make install | demo | test | ... ; `make` alone lists them.

# The first Python that runs, is in range and can make a virtual environment. Names are tried by running
# them: a version manager's shim may be there without its Python.
IN_RANGE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	"$$python" -c '$(IN_RANGE)' 2>/dev/null && { echo "$$python"; break; }; done)

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Where `make demo` writes, and further arguments for it: make demo OUT=/tmp/d ARGS='training.steps=200'
OUT ?= runs/digits
ARGS ?=
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format type unit stress bench clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

install: $(STAMP) ## make .venv with genkit and pinned dependencies (instant when nothing changed)

$(STAMP): pyproject.toml constraints.txt
	@if ! $(BIN)/python -c '$(IN_RANGE)' 2>/dev/null; then \
		if ! "$(PYTHON)" -c '$(IN_RANGE)' 2>/dev/null; then \
			echo "genkit needs Python 3.11, 3.12 or 3.13 with its venv module; '$(PYTHON)' is not that." >&2; \
			echo "Install one (Debian: apt install python3-venv), or name it:" >&2; \
			echo "    make install PYTHON=/path/to/python3.12" >&2; \
			exit 2; \
		fi; \
		echo "making $(VENV) with $(PYTHON)"; \
		"$(PYTHON)" -m venv --clear $(VENV); \
	fi
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: install ## train the five arms of the digits comparison and write the report
	$(BIN)/genkit compare recipes/compare/digits.yaml $(ARGS) --out $(OUT)

test: lint type unit ## lint, type check and the whole test suite

lint: install ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: install ## mypy
	$(BIN)/mypy

unit: install ## pytest; PYTEST_ARGS='-m "not slow"' for the quick part
	$(BIN)/python -m pytest $(PYTEST_ARGS)

stress: install ## kill a run a hundred times; it ends with the weights of one never killed (ARGS='--kills 20')
	$(BIN)/python -m tests.training.stress $(ARGS)

format: install ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## run the benchmarks; each prints a table and writes JSON
	@set -e; for script in steps couplings solver_overhead; do \
		echo "== $$script"; $(BIN)/python "benchmarks/$$script.py" $(ARGS); done

clean: ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find genkit tests -name __pycache__ -type d -prune -exec rm -rf {} +
