# What people type. `make` alone lists it.

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-stamp

# What the environment was made from, and where. By content, not by time: a checkout changes times.
INPUTS = cat requirements.lock pyproject.toml | cksum; pwd

.DEFAULT_GOAL := help
.PHONY: help setup demo test clients check fmt bench soak serve clean

help:  ## List these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=python3.12 make setup   takes another interpreter for a new $(VENV)"
	@echo "  ARGS='…' make demo|test|bench|serve   passes arguments on"

setup:  ## Create .venv with everything in it (again only if the lock or pyproject.toml changed)
	@if [ -x $(BIN)/upwell ] && [ "$$($(INPUTS))" = "$$(cat $(STAMP) 2>/dev/null)" ] \
	    && $(BIN)/python -c 'import upwell' 2>/dev/null; then exit 0; fi; \
	set -e; \
	if ! command -v $(PYTHON) >/dev/null 2>&1; then \
	    echo "Upwell needs Python 3.11 to 3.14; there is no '$(PYTHON)' here."; $(ADVICE); exit 1; fi; \
	if ! $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))'; then \
	    echo "Upwell needs Python 3.11 to 3.14; '$(PYTHON)' is $$($(PYTHON) -V 2>&1)."; $(ADVICE); exit 1; fi; \
	if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
	    echo "Python's venv module is missing ('$(PYTHON)' is $$($(PYTHON) -V 2>&1))."; $(ADVICE); exit 1; fi; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	    echo "Creating $(VENV)"; $(PYTHON) -m venv --clear $(VENV); fi; \
	echo "Installing what requirements.lock pins (about 150 MB, once)"; \
	export PIP_DISABLE_PIP_VERSION_CHECK=1; \
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock; \
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .; \
	{ $(INPUTS); } > $(STAMP); \
	echo "Ready: $(BIN)/upwell"

ADVICE = \
    echo "Install it, then run make again:"; \
    echo "  Debian, Ubuntu:  sudo apt install python3 python3-venv"; \
    echo "  Fedora:          sudo dnf install python3"; \
    echo "  macOS:           brew install python@3.13"; \
    echo "or name another interpreter:  make setup PYTHON=python3.12"; \
    echo "  (on Debian and Ubuntu that one needs its own module: sudo apt install python3.12-venv)"

demo: setup  ## Run the main job on a real server, real devices and real files
	@$(BIN)/upwell demo $(ARGS)

# Whatever the surroundings say: a hundred servers that tests start would each compile all modules.
test: setup  ## Run all tests
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

clients: setup  ## Run the published client of KalamDB for Rust, unmodified, against a real server (needs cargo)
	@$(BIN)/python tests/clients/run.py

check: setup  ## Check format, lint, types and imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m mypy
	$(BIN)/python $(BIN)/lint-imports --no-logo

fmt: setup  ## Format, and fix what lint can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## Measure a running server over HTTP
	@$(BIN)/python benchmarks/sql.py $(ARGS)

MINUTES ?= 10
SEED ?= 1
soak: setup  ## Load a server for MINUTES, kill it, compare every row and print what grows
	@$(BIN)/python benchmarks/soak.py --minutes $(MINUTES) --seed $(SEED)

serve: setup  ## Serve ./data on 127.0.0.1:8080
	@$(BIN)/upwell serve --data-dir data $(ARGS)

clean:  ## Remove caches and build results (not .venv, not ./data)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
