# `make help` lists what there is.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup test browser kill fuzz celery matrix check format docs demo screenshots bench wheel constraints clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 14

setup: $(STAMP) ## make .venv with everything pinned by constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -c constraints.txt --group dev -e '.[postgres,mysql]'
	@touch $@

test: setup ## run the tests (ARGS=... goes to pytest)
	$(BIN)/python -m pytest $(ARGS)

browser: setup ## the tests in the browser alone (SIB_AIRFLOW_PYTHON=… names another Airflow's python)
	$(BIN)/python -m pytest -m browser $(ARGS)

kill: setup ## the long tests: a sender killed 200 times in mid-sending (KILLS=…), Airflow killed in its campaign
	SIB_KILLS=$(or $(KILLS),200) $(BIN)/python -m pytest -s -m slow --ignore tests/celery $(ARGS)

celery: setup ## a campaign on Celery, whose worker, triggerer and ledger fail; PostgreSQL and Redis must run here
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt --group celery
	$(BIN)/python -m pytest -q -s -m slow tests/celery $(ARGS)

fuzz: setup ## the state machines with 20,000 other examples each, drawn anew (EXAMPLES=…)
	SIB_FUZZ_EXAMPLES=$(or $(EXAMPLES),20000) $(BIN)/python -m pytest tests/campaign/test_campaign_model.py tests/campaign/test_ledger_model.py $(ARGS)

matrix: setup ## run the tests on every supported Airflow and Python (ONLY=3.1.8 PY=3.11 for one; JOBS=2 side by side)
	$(BIN)/python scripts/matrix.py $(addprefix --only ,$(ONLY)) $(addprefix --python ,$(PY)) $(addprefix --jobs ,$(JOBS)) $(if $(ARGS),-- $(ARGS))

check: setup ## formatting, lint, types, layers, the README's links
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_readme.py -k links

format: setup ## format the code and mend what lint can mend
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

docs: setup ## build the documentation into .docs/html, from this repository alone; any warning is an error
	$(BIN)/python -m sphinx --quiet --builder html --nitpicky --fail-on-warning --doctree-dir .docs/doctrees docs .docs/html
	@echo "Open .docs/html/index.html"

demo: setup ## a sandbox, a real Airflow and an announcement; until Ctrl-C, or to its end with ONCE=1
	@$(BIN)/python scripts/demo.py $(if $(ONCE),--once)

screenshots: setup ## make the documentation's pictures anew, into docs/images/
	@$(BIN)/python scripts/screenshots.py

bench: setup ## measure: a table each, and JSON in .bench/ (ONLY=ledger for one of them)
	@mkdir -p .bench
	@set -e; for file in benchmarks/bench_$(or $(ONLY),*).py; do \
	  name=$$(basename $$file .py); echo "== $$name"; $(BIN)/python $$file --json .bench/$$name.json; done

wheel: setup ## build the wheel into dist/
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

constraints: setup ## resolve the pins in constraints.txt anew
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header --no-emit-index-url \
	  --upgrade --all-extras --group dev --group celery pyproject.toml -o constraints.txt

clean: ## remove what make made
	rm -rf $(VENV) .demo .browser .celery .bench .docs .matrix dist build
