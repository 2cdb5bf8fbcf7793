# `make reproduce` and `make test` work on a fresh clone: each creates .venv first if it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: reproduce test test-slow lint benchmark readme clean

reproduce: $(VENV)/.installed
	$(BIN)/rlloss reproduce $(ARGS)

test: $(VENV)/.installed lint
	$(BIN)/pytest -q -n auto -m "not slow" $(ARGS)

test-slow: $(VENV)/.installed
	$(BIN)/pytest -q -n auto -m slow $(ARGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmark: $(VENV)/.installed-benchmark
	$(BIN)/rlloss benchmark $(ARGS)

readme: $(VENV)/.installed
	$(BIN)/rlloss report --readme README.md

clean:
	rm -rf $(VENV) results/runs results/report

$(VENV)/.locked: requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rlloss needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	touch $@

$(VENV)/.installed: $(VENV)/.locked pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

$(VENV)/.installed-benchmark: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[benchmark]'
	touch $@
