# Every target sets up what it needs: Python 3.11 and make are all a fresh machine must have.
PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
RUN := $(UV) run --frozen
TEST := $(RUN) --extra examples --extra flows --extra plots --extra arviz --group test --group bench
OPTIMIZED := XLA_FLAGS=--xla_force_host_platform_device_count=8
WORKERS ?= 2
# Without bytecode every process that a test starts compiles all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format imports types check bench notebooks clean

help:            ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

demo: $(UV)      ## fit the cancer model on all local devices, write runs/demo/report.html
	$(RUN) --extra examples --extra plots --extra arviz jaxprob demo

test: $(UV)      ## run the tests (at most 20 minutes on two cores)
	$(TEST) pytest -n $(WORKERS) --dist worksteal -m "not slow and not optimized"
	$(OPTIMIZED) $(TEST) pytest -n $(WORKERS) --dist worksteal -m "not slow and optimized"

test-all: $(UV)  ## run all tests, the slow ones too, on code that XLA optimizes
	$(OPTIMIZED) $(TEST) pytest -n $(WORKERS) --dist worksteal

lint: $(UV)      ## ruff, style and format
	$(RUN) --group test ruff check .
	$(RUN) --group test ruff format --check .

format: $(UV)    ## let ruff repair what it can
	$(RUN) --group test ruff check --fix .
	$(RUN) --group test ruff format .

imports: $(UV)   ## a hall imports only from the halls above it
	$(RUN) --group test lint-imports

types: $(UV)     ## mypy
	$(RUN) --group test mypy

check: lint imports types test

bench: $(UV)     ## run the benchmarks against the peers and write benchmarks/results/
	@for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(TEST) --group peers python $$script || exit 1; done

notebooks: $(UV) ## run every notebook from its .py and write the .ipynb
	@for file in notebooks/*.py; do \
	  $(RUN) --extra examples --extra plots --extra arviz --group docs jupytext --to ipynb --execute $$file || exit 1; done

clean:           ## remove what the targets made
	rm -rf .venv .uv .jax_cache .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

.uv/bin/uv:
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --target .uv uv
