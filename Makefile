# `make` lists what there is. Everything runs in .venv, which is made when it is missing or out of date.
PYTHON ?= python3
TARGET ?=
ARGS ?=
ENGINES ?= 1000

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test lint types unit rules alert-report real bench dashboards screenshots manifests docs clean FORCE

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@echo '  PYTHON=python3.12 chooses the interpreter (3.11 or newer), ARGS="--help" is handed on.'

run: .venv/runtime ## the exporter: against TARGET=http://host:8000, or with a simulated engine
	@exec $(BIN)/vllm-capacity serve $(if $(TARGET),--target '$(TARGET)',--simulate) $(ARGS)

test: lint types unit rules ## everything that needs no server: format, lint, types, tests, rules

lint: .venv/development ## formatting and lint
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .

types: .venv/development ## strict types
	$(BIN)/python -m mypy

unit: .venv/development ## the tests that need no real server
	$(BIN)/python -m pytest -m 'not real and not gpu' $(ARGS)

rules: ## the alert rules by promtool, where it is installed
	@if command -v promtool >/dev/null; then \
	  promtool check rules alerts/*.rules.yml && promtool test rules alerts/*.rules.test.yml; \
	else echo 'promtool is not installed: the alert rules are not checked'; fi

alert-report: .venv/development ## when every alert fires in recordings and scenarios: docs/alerts.md, and to a webhook
	$(BIN)/python tests/alerts_played/report.py --webhook

real: .venv/development ## the tests against a real vLLM (CPU build, 3.5 GB in a cache folder), Prometheus and Chromium
	CPU_VLLM_PYTHON="$$(.ci/vllm-environment)" && export CPU_VLLM_PYTHON && \
	  $(BIN)/python -m pytest -m real $(ARGS)

bench: .venv/development ## what parsing a page, a collection and ENGINES=1000 cost, and an hour of history
	$(BIN)/python benchmarks/parse_page.py
	$(BIN)/python benchmarks/tick.py $(ENGINES)
	$(BIN)/python benchmarks/history.py $(ENGINES)

dashboards: .venv/development ## write the dashboards from their code
	$(BIN)/python dashboards/build.py

manifests: .venv/development ## write what deploy/ repeats of rules and dashboards
	$(BIN)/python deploy/build.py

screenshots: dashboards ## the page and every dashboard over recordings (six minutes; needs prometheus, chromium, npm)
	$(BIN)/python docs/images/shoot_page.py
	$(BIN)/python dashboards/pictures/shoot.py

docs: .venv/development ## write the tables of the documentation from the code
	$(BIN)/python docs/build.py

clean: ## remove the environment and what tools left behind
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# ---- the environment ----

.venv/runtime: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python 3.11 or newer is needed, $(PYTHON) is %d.%d: choose another with make PYTHON=..." % v[:2])'
	$(PYTHON) -m venv --clear .venv
	$(PIP) --editable .
	@pwd > $@

.venv/development: .venv/runtime
	$(PIP) --editable '.[dev]'
	@touch $@

# An environment holds absolute paths: that of a folder which was moved or copied is made anew.
ifneq ($(shell cat .venv/runtime 2>/dev/null),$(shell pwd))
.venv/runtime: FORCE
endif
