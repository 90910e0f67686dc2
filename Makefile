# `make` alone lists the targets. Everything runs in .venv, on a CPU, at the versions of requirements-cpu.lock.
.DEFAULT_GOAL := help
BIN := .venv/bin
PACKAGES := executor actors learner launch
READY := .venv/.azr-setup

.PHONY: help setup train test test-slurm test-gpu check lint fmt docs results lock clean clean-venv

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY)  ## build .venv (minutes the first time; PYTHON=... names another python3.11)

$(READY): requirements-cpu.lock pyproject.toml launch/setup_cpu.sh
	@PYTHON="$(PYTHON)" launch/setup_cpu.sh

train: $(READY)  ## the run of the README: self-play with a 135M model on this machine's CPU
	$(BIN)/azr train launch/recipes/smollm2-cpu-learn.toml

# Lint and tests at once; --keep-going: both report, whichever fails. The + before a recipe of tests shows their progress
# as it comes.
TOGETHER := @$(MAKE) --no-print-directory --keep-going --jobs 2 --output-sync=line
# Two workers, each with whole files of tests, in the order that tests/conftest.py gives.
PYTEST := $(BIN)/python -m pytest -q --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: $(READY)  ## lint, types, layering, unit tests: under two minutes on two cores
	$(TOGETHER) unit lint

test: $(READY)  ## check, the slow unit tests, the integration tests with real engines, test-slurm: 20 to 30 minutes
	$(TOGETHER) unit-and-integration lint

test-all: $(READY)  ## test, and what takes longer: soaks, drills of many kills, deep property tests, a million malformed frames
	$(TOGETHER) everything lint
	$(BIN)/python -m tests.fuzz_stream --frames 1000000 --seed 0

test-slurm: $(READY)  ## jobs on a SLURM of the tests' own; tests/slurm/install.sh installs it, without it they are skipped
	$(BIN)/python -m pytest -q -m "not deep" tests/slurm

# Without .venv, the python3 of the machine: bare ones have torch there, and no package index to build .venv from.
test-gpu:  ## what only a GPU can show, in under six minutes; ARGS=--dry runs it on a CPU, ARGS=--help tells more
	@$(firstword $(PYTHON) $(wildcard $(BIN)/python) python3) tests/gpu/run $(ARGS)

unit: $(READY)
	+@$(PYTEST) -m "not slow and not deep" tests/unit

unit-and-integration: $(READY)
	+@$(PYTEST) -m "not deep" --hypothesis-profile full tests/unit tests/integration tests/slurm

everything: $(READY)
	+@$(PYTEST) --hypothesis-profile deep --timeout 7200 tests/unit tests/integration tests/slurm

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy $(PACKAGES)
	@$(BIN)/lint-imports

fmt: $(READY)  ## format, and fix what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

results: $(READY)  ## write the pages and charts of docs/studies from their small files
	@set -e; for study in docs/studies/*/study.toml; do $(BIN)/azr study report "$$(dirname "$$study")"; done

docs: $(READY)  ## write the pages that come from the code: docs/configuration.md, configuration-sft.md and metrics.md
	$(BIN)/azr config docs --format markdown > docs/configuration.md
	$(BIN)/azr config docs --sft --format markdown > docs/configuration-sft.md
	$(BIN)/python -m launch.metric_reference > docs/metrics.md

define SYNC_LOCK
import pathlib, re
from importlib.metadata import version
lock = pathlib.Path("requirements-cpu.lock")
# A build's own mark (torch's +cpu) stays out: not every index spells it.
pin = lambda found: found[1] + "==" + version(found[1]).split("+")[0]
lock.write_text(re.sub(r"(?m)^([A-Za-z0-9._-]+)==\S+", pin, lock.read_text()))
endef
export SYNC_LOCK

lock:  ## write the versions now in .venv to requirements-cpu.lock, for the packages it names
	@$(BIN)/python -c "$$SYNC_LOCK"

clean:  ## remove caches and build products; runs/ and .venv stay
	rm -rf build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +

clean-venv:  ## remove .venv
	rm -rf .venv
