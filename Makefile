# Everything a person does with this checkout. `make test` and `make demo` bring what they need.
#
#   PYTHON=python3.12 make setup    another interpreter (3.11 or newer) to build .venv with
#   UV=/path/of/uv make setup       another uv than the one that is found or fetched

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
DEFAULT := not slow and not cluster and not browser and not frameworks
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup

.PHONY: help setup demo test test-all check format bench docs frameworks-setup lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' Makefile

setup: ## bring .venv up to date
	@.ci/setup

demo: setup ## train on two workers, live, and say what came of it
	@$(BIN)/python examples/demo.py

test: check ## check, then the tests that take minutes at most
	@$(PYTEST) -m "$(DEFAULT)"

test-all: check frameworks-setup ## check, then every test that this machine can run
	@$(PYTEST)

check: setup ## lint, format, types, who imports whom, budgets, generated docs
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m pytest -q -n 0 tests/architecture tests/docs/test_reference.py

format: setup ## mend what can be mended by itself
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

bench: setup ## every figure of bench/README.md, as one table
	@$(BIN)/python -m bench

docs: setup ## write docs/reference and the drawings again
	@$(BIN)/python docs/generate.py

frameworks-setup: setup ## torch, TensorFlow, Open MPI ... for the tests marked frameworks (4 GB)
	@.ci/frameworks-setup

lock: setup ## newer packages: writes requirements.lock
	@$$(.ci/setup --print-uv) pip compile --quiet --universal --python-version 3.11 --upgrade \
		--all-extras --group dev --generate-hashes --no-annotate \
		--custom-compile-command "make lock" --output-file requirements.lock pyproject.toml

clean: ## remove what `make` made here, the demo's home too
	@[ ! -x $(BIN)/wherry ] || WHERRY_HOME=.cache/demo-home $(BIN)/wherry down
	@rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist
