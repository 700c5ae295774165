# make demo: the whole chain on a synthetic landscape.   make test: every check and test.
# Both work on a fresh clone; all that they need is Python 3.11 or later, with its venv module.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := src tests benchmarks examples
STAMP := $(VENV)/.installed

.PHONY: demo test check tables clean

demo: $(STAMP)
	$(BIN)/autoreg demo demo --overwrite

# One thread each (tests/conftest.py). Work is stolen from the end, so that the tests of a file mostly share its fixtures.
test: check
	$(BIN)/pytest -n 2 --dist worksteal

check: $(STAMP)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# The tables in the README from the records in benchmarks/results.
tables: $(STAMP)
	$(BIN)/python benchmarks/tables.py

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "autoreg needs Python 3.11 or later; try make PYTHON=python3.11")'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { echo "no venv module: on Debian, apt install python3-venv" >&2; rm -rf $(VENV); exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) demo
