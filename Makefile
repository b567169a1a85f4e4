PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-slow test-versions lint clean

# Builds the dataset, trains all phases, evaluates and writes a report. Goes on
# where it was when it is called again.
# Another training seed on the same dataset: make quickstart SEED=1
SEED ?= 0
quickstart: .venv/installed
	$(BIN)/dreamer4 quickstart experiments/quickstart.py --set seed=$(SEED) \
	  --run-dir runs/quickstart$(if $(filter-out 0,$(SEED)),-seed$(SEED))

PYTEST := $(BIN)/python -m pytest -x -q -rs --durations=15 -n auto \
  --dist loadfile --no-loadscope-reorder

# All but whole trainings, kills, soaks and what takes several processes or each
# mesh of devices, which are in test-slow; every change has to pass both.
test: lint
	$(PYTEST) -m 'not slow'

test-slow: .venv/tests-installed
	$(PYTEST) -m slow

# The suite on the lowest versions that setup.cfg allows, and on the newest on
# every Python that is found; make test-versions VERSIONS="oldest 3.12" chooses,
# and OPTIONS=--interfaces only runs what leans on other packages.
VERSIONS ?=
OPTIONS ?=
test-versions:
	$(PYTHON) tests/versions.py $(VERSIONS) $(OPTIONS)

lint: .venv/tests-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/made: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is too old: Python >= 3.11 is needed;" \
	  "name one with make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

# For the quickstart: the package and its engine.
.venv/installed: .venv/made
	$(BIN)/python -m pip install --quiet -e '.[navix]'
	touch $@

# For the tests: all engines and converters that this Python can have.
.venv/tests-installed: .venv/made
	$(BIN)/python tests/install.py
	touch $@

# Leaves datasets and runs alone.
clean:
	rm -rf .venv .cache .pytest_cache .ruff_cache *.egg-info build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
