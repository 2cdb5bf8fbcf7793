# `make reproduce` and `make test` work on a fresh clone: each creates .venv first if it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
JS := tests/javascript
SCRIPTS := rlloss/graph/assets/*.js

.PHONY: reproduce reference artifact check test test-slow lint lint-js benchmark readme clean

reproduce: $(VENV)/.installed
	$(BIN)/rlloss reproduce $(ARGS)

reference: reproduce
	$(BIN)/python -m rlloss.claims.reference results/report results/runs results/reference

artifact: reproduce
	$(BIN)/python -m rlloss.claims.artifact results/runs results/reference results/artifact

check: lint test

test: $(VENV)/.installed
	$(BIN)/pytest -q -n auto -m "not slow" $(ARGS)

test-slow: $(VENV)/.installed
	$(BIN)/pytest -q -n auto -m slow $(ARGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@if command -v npm > /dev/null; then $(MAKE) --no-print-directory lint-js; else echo "JavaScript: not linted, npm is not installed"; fi

# As one script, which is what a page holds: a name that no file declares, or none uses, is an error.
lint-js: $(JS)/node_modules/.installed
	cat $(SCRIPTS) > $(JS)/page.js
	cd $(JS) && node_modules/.bin/biome lint --error-on-warnings page.js

$(JS)/node_modules/.installed: $(JS)/package.json $(JS)/package-lock.json
	cd $(JS) && npm ci --no-audit --no-fund
	touch $@

benchmark: $(VENV)/.installed
	$(BIN)/rlloss benchmark $(ARGS)

readme: $(VENV)/.installed
	rm -rf results/tour results/watched
	$(BIN)/python -m rlloss.claims.readme $$(git ls-files '*README.md')

clean:
	rm -rf $(VENV) results/runs results/report results/artifact results/tour results/watched

$(VENV)/.locked: requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rlloss needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	touch $@

$(VENV)/.installed: $(VENV)/.locked pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@
