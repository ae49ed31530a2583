# Needs Python 3.11 or newer and nothing else: every target makes .venv first and installs into it what is missing.
#
#   make demo       a quick lithology sweep, its table, the best config
#   make test       the tests (at most 15 minutes on two cores)
#   make test-fast  those of them that start no Ray (a minute and a half)
#   make test-all   with those that take long, break trainers on purpose, or build clusters
#   make test-cluster   a cluster's whole life on four hosts in network namespaces (root; skipped where that is refused)
#   make check      linter, type checker, import contracts, documentation site
#   make check-next what the newest Ray, Optuna and W&B would break (in a throw-away environment)
#   make docs       the documentation site, in site/
#   make reference  the pages of it that are generated from the models
#
# PYTHON=/path/to/python picks the interpreter; PIP_ARGS goes to pip (an index with CPU or CUDA wheels of torch, say).

SHELL    := /bin/bash
VENV     := .venv
BIN      := $(VENV)/bin
STAMP    := $(VENV)/.installed
PYTHON   ?= python3.11 python3 python
PIP_ARGS ?=
ARGS     ?=

# One thread per process: a sweep sets its workers' threads itself, everything else would only crowd the cores.
export OMP_NUM_THREADS ?= 1

.PHONY: install demo test test-fast test-all test-cluster check docs reference check-next

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@for python in $(PYTHON); do \
	  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; python=; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "Buttress needs Python 3.11 or newer; tried: $(PYTHON). Name one: make PYTHON=/path/to/python3.11" >&2; exit 2; \
	fi; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1 && ! "$$python" -m venv --clear $(VENV); then \
	  echo "$$python cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; \
	fi
	$(BIN)/python -m pip install --quiet --no-input $(PIP_ARGS) -c constraints.txt -e '.[dev,docs,families]'
	@touch $@

check: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest -q tests/test_fresh_imports.py
	@$(MAKE) --no-print-directory docs

# The contracts of tests/test_compat.py with the newest Ray, Optuna and W&B; torch stays pinned. Not part of `check`.
check-next: $(STAMP)
	@next=$$(mktemp -d) && trap 'rm -rf "$$next"' EXIT && $(BIN)/python -m venv "$$next" && \
	"$$next/bin/python" -m pip install --quiet --no-input $(PIP_ARGS) -c constraints.txt '.[dev]' && \
	"$$next/bin/python" -m pip install --quiet --no-input $(PIP_ARGS) --upgrade 'ray[default,tune,train]' optuna wandb && \
	"$$next/bin/python" -m pip list | grep -iE '^(ray|optuna|wandb|torch) ' && \
	PYTHONPATH=. "$$next/bin/python" -m pytest -q tests/test_compat.py $(ARGS)

test-fast: $(STAMP)
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not ray and not slow and not long and not control and not cluster" $(ARGS)

test: $(STAMP)
	@$(BIN)/python -m pytest -m "not long and not control and not cluster" $(ARGS)

test-all: $(STAMP)
	@$(BIN)/python -m pytest $(ARGS)

test-cluster: $(STAMP)
	@$(BIN)/python -m pytest tests/test_cluster_hosts.py tests/test_cluster_mission.py $(ARGS)

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

reference: $(STAMP)
	$(BIN)/python docs/generate.py

demo: $(STAMP)
	@started=$$SECONDS; \
	$(BIN)/buttress run search_spaces/lithology.yaml --profile quick --report --out runs $(ARGS) || exit; \
	swept=$$((SECONDS - started)); sweep=$$(ls -td runs/lithology-*/ | head -n 1); \
	$(BIN)/buttress export $$sweep -o runs/best.yaml && \
	echo "The sweep took $$swept s. Next: $(BIN)/buttress why $${sweep%/} TRIAL, $(BIN)/buttress train runs/best.yaml"
