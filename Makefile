PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test test-all bench lint release-check onnx clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-13s %s\n", $$1, $$2}'

setup: .venv/installed ## make .venv and install the toolkit in it

demo: .venv/installed ## colour five photos with the model that comes with the toolkit
	@$(BIN)/python -m Project7 demo

serve: .venv/installed ## the page: drop a photo, see it in colour, say what is red
	@$(BIN)/python -m Project7 serve --open

test: .venv/installed-dev ## lint, types and tests (5 minutes on two cores)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow"

test-all: .venv/installed-dev ## the long tests too, and which share of the lines all of them run
	@$(BIN)/python -m pytest -q -n 2 --cov=Project7 --cov-report=term:skip-covered

bench: .venv/installed ## measure speed and quality on this machine, into outputs/benchmarks.md (an hour; BENCH=--quick)
	@$(BIN)/python benchmarks/bench.py $(BENCH)

lint: .venv/installed-dev ## mend what ruff can mend, and check the types
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/mypy

release-check: .venv/installed-dev ## build the wheel and the sdist, and check that they can be published
	@$(BIN)/python .ci/release_check.py

onnx: .venv/installed-dev ## build project7-onnx: `project7 colorize` without torch, with the shipped models
	@$(BIN)/python integrations/onnx/make_models.py
	@$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist integrations/onnx
	@ls -l dist/project7_onnx-*.whl

clean: ## remove what the targets made, but not the models
	rm -rf .venv outputs build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name one: make PYTHON=python3.11")'
	@$(PYTHON) -m venv .venv

.venv/installed: requirements.txt pyproject.toml | .venv/bin/python
	@echo "Installing torch, diffusers and the rest into .venv (5 GB, a few minutes, once) ..."
	@$(PIP) -r requirements.txt
	@$(PIP) --no-deps --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	@echo "Installing the test tools ..."
	@$(PIP) --editable '.[dev]'
	@touch $@
