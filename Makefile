# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Each sets up .venv first (a few minutes, once), with the versions of constraints.txt.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH_VENV ?= .venv-bench
PIP := pip install -q --disable-pip-version-check
DEMO := demo-output
AZURITE := $(VENV)/node_modules/.bin/azurite-blob

.PHONY: help venv demo test azurite check bench-venv clean

help:
	@echo "make demo    embed photographs, train a forgery detector, score and measure it"
	@echo "make test    run all tests"
	@echo "make check   ruff, mypy --strict, the import laws"
	@echo "make clean   remove what make wrote"

venv: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	@echo "Setting up $(VENV) (a few minutes, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/$(PIP) -c constraints.txt torch==2.13.0
	@$(BIN)/$(PIP) -c constraints.txt -e '.[test]'
	@touch $@

demo: $(READY)
	@$(BIN)/python docs/demo.py $(DEMO)

test: $(READY)
	@! command -v npm >/dev/null || $(MAKE) -s azurite || echo "no azurite: the tests of az:// are skipped"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

# Azure's storage for the tests; needs npm (node is what it is written for).
azurite: $(AZURITE)

$(AZURITE): $(READY)
	@npm install --silent --no-audit --no-fund --fetch-retries=0 --prefix $(VENV) azurite@3.37.0
	@touch $@

check: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/test_imports.py

# The peers of the benchmarks, in an environment of their own: Daft 0.7 needs older pyarrow and tqdm.
bench-venv: $(BENCH_VENV)/.ready

$(BENCH_VENV)/.ready: pyproject.toml constraints.txt
	@echo "Setting up $(BENCH_VENV) (a few minutes, once)"
	@test -x $(BENCH_VENV)/bin/python || $(PYTHON) -m venv $(BENCH_VENV)
	@grep -vE '^(pyarrow|tqdm)==' constraints.txt > $(BENCH_VENV)/constraints.txt
	@$(BENCH_VENV)/bin/$(PIP) -c $(BENCH_VENV)/constraints.txt torch==2.13.0
	@$(BENCH_VENV)/bin/$(PIP) -c $(BENCH_VENV)/constraints.txt -e '.[bench]'
	@touch $@

clean:
	rm -rf $(VENV) $(BENCH_VENV) $(DEMO) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
