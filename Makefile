# Every target works as the first one in a fresh clone: what it needs is set up on the way.
# `make` or `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SOURCES := wire runtime sharding metaserver blockserver notifserver client ops loadtest migrations tests
# On two cores: tests wait a third of their time, for restarts, leases and time-outs.
TEST_WORKERS ?= 3
# A module's tests share its clusters, so they stay together on one worker, in the order in which they were found.
DIST := --dist loadscope --no-loadscope-reorder
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup run down test test-long coverage test-journal test-contract test-kill test-badinput test-restore test-moves check fmt docs bench bench-sync bench-million bench-api bench-move bench-rebalance loadtest lock

help: ## List the targets
	@echo "Shardbox: make TARGET"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-16s %s\n", $$1, $$2 }'

setup: $(INSTALLED) ## Make .venv with everything that the lock file names
	@echo "==> $(VENV) is up to date with requirements.lock"

# The stamp is written last, so a set-up that was cut short starts over.
$(INSTALLED): requirements.lock pyproject.toml
	@echo "==> $(VENV): Python $$($(PYTHON) -c 'import platform; print(platform.python_version())')"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Shardbox needs Python 3.11 or later; name one: make setup PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "Python's venv module is missing; on Debian: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "==> the packages of requirements.lock, checked against their hashes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@echo "==> shardctl and shardbox, from this checkout"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
	@echo "==> done; 'make run' starts a cluster, 'make test' runs the tests"

run: $(INSTALLED) ## Start a cluster with two synced folders, detached
	$(BIN)/shardctl dev demo

down: $(INSTALLED) ## Stop it; the data stays
	$(BIN)/shardctl dev down

test: $(INSTALLED) ## Run the tests
	$(BIN)/python -m pytest -n $(TEST_WORKERS) $(DIST) $(PYTEST_ARGS)

test-long: $(INSTALLED) ## Run the tests that are too long for every time
	$(BIN)/python -m pytest -n $(TEST_WORKERS) $(DIST) -m long $(PYTEST_ARGS)

coverage: $(INSTALLED) ## Run the tests measured, which takes 40 % longer
	@rm -f .coverage .coverage.*
	COVERAGE_PROCESS_START=$(CURDIR)/pyproject.toml $(BIN)/python -m coverage run -m pytest -n $(TEST_WORKERS) $(DIST) $(PYTEST_ARGS)
	@mkdir -p build/test
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage report > build/test/coverage.txt
	@echo "==> $$($(BIN)/python -m coverage report --format=total) % of lines and branches covered; by file: build/test/coverage.txt"

test-journal: $(INSTALLED) ## 10,000 random histories of the journal; writes build/test/journal.json
	$(BIN)/python -m tests.journal

test-contract: $(INSTALLED) ## 500 requests to each operation of every server; writes build/test/contract.json
	CONTRACT_EXAMPLES=500 $(BIN)/python -m pytest -n $(TEST_WORKERS) $(DIST) tests/contract

test-kill: $(INSTALLED) ## Kill everything in turn during syncs; writes build/test/kill.json
	$(BIN)/python -m tests.kill

test-restore: $(INSTALLED) ## Lose a shard and the directory, and restore them; writes build/test/restore.json
	$(BIN)/python -m tests.restore

test-moves: $(INSTALLED) ## Kill everything at every fault point of a move; writes build/test/moves.json
	$(BIN)/python -m tests.reshard

test-badinput: $(INSTALLED) ## Bad input of every kind; writes build/test/badinput.json
	$(BIN)/python -m tests.badinput

bench: bench-sync bench-api ## Run all benchmarks

bench-sync: $(INSTALLED) ## Two devices, real input, measured; writes build/bench/sync.json
	$(BIN)/python -m loadtest.bench_sync

bench-api: $(INSTALLED) ## Requests to one metaserver process, measured; writes build/bench/api.json
	$(BIN)/python -m loadtest.bench_api

bench-million: $(INSTALLED) ## COUNT (1,000,000) small files up and down, measured; writes build/bench/million.json
	$(BIN)/python -m loadtest.bench_million $(if $(COUNT),--count $(COUNT))

bench-move: $(INSTALLED) ## Slots between two servers and back under load; writes build/bench/move.json
	$(BIN)/python -m loadtest.bench_move

bench-rebalance: $(INSTALLED) ## One shard to four, six and three under load; writes build/bench/rebalance.json
	$(BIN)/python -m loadtest.bench_rebalance

loadtest: $(INSTALLED) ## Devices under Locust for a minute; writes build/loadtest/report.html
	$(BIN)/python -m loadtest.run_load

check: $(INSTALLED) ## Lint, formatting, types, layers, secrets, licences: what CI runs beside the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m tests.audit

docs: $(INSTALLED) ## Write docs/api.md and build/openapi.json from the servers' own marks
	$(BIN)/python -m ops.api_page

fmt: $(INSTALLED) ## Format the code and sort its imports
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

lock: $(INSTALLED) ## Write requirements.lock anew from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --generate-hashes --no-emit-index-url \
		--no-header --no-annotate --quiet --python-version 3.11 --output-file requirements.lock
