PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint lint-ruff lint-format lint-types lint-imports bench world clean

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

# `ready` is written last: after a failed installation the next call installs again.
$(READY): pyproject.toml
	rm -f $@
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --editable ".[dev]"
	$(BIN)/python -m pip install --no-deps "kronfluence>=1.0.1,<2"
	touch $@

demo: $(READY) ## forget one target in the bundled world and write the report
	$(BIN)/workbench demo

# One thread each: threads of small models only wait for each other. Whole files, since their tests share trained models.
test: $(READY) ## all tests that need no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu" --numprocesses auto --maxprocesses 4 --dist loadfile

lint: lint-ruff lint-format lint-types lint-imports ## style, format, types and the direction of imports

lint-ruff: $(READY)
	$(BIN)/ruff check

lint-format: $(READY)
	$(BIN)/ruff format --check

lint-types: $(READY)
	$(BIN)/basedpyright --pythonpath $(BIN)/python

lint-imports: $(READY)
	$(BIN)/lint-imports

# Without pytest's usual options: the shape checks of the test run would be timed along with the code.
bench: $(READY) ## time what this project does against its peers
	$(BIN)/python -m pytest tests/bench --no-header -q -s -o addopts= -p no:dash -o python_files='bench_*.py'

world: $(READY) ## train the bundled models and SAEs again
	$(BIN)/python -m workbench.experiments.world

clean: ## remove the environment, caches and builds; runs/ stays
	rm -rf .venv .pytest_cache .ruff_cache .import_linter_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
