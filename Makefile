# Everything runs in .venv, which is made on the first call.
PYTHON ?= python3
BIN := .venv/bin
.PHONY: demo test test-all clean

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test,lpips]"
	touch $@

demo: .venv/installed
	$(BIN)/kljax demo

test: .venv/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/python -m pytest

test-all: .venv/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/python -m pytest -m "slow or not slow"

clean:
	rm -rf .venv runs build dist
