# Everything runs in .venv, which is made on the first call.
PYTHON ?= python3
BIN := .venv/bin
# A process per core; a file's tests share what they compiled.
TESTS := $(BIN)/python -m pytest -n auto --dist loadfile
.PHONY: demo test test-all mutations clean

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test,lpips]"
	touch $@

demo: .venv/installed
	$(BIN)/kljax demo

test: .venv/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(TESTS)

test-all: .venv/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(TESTS) -m "slow or not slow"

mutations: .venv/installed
	$(BIN)/python tests/mutate.py runs/mutations

clean:
	rm -rf .venv runs build dist
