# Everything runs in .venv, which is made on the first call.
PYTHON ?= python3
BIN := .venv/bin
# A process per core; a file's tests share what they compiled.
TESTS := $(BIN)/python -m pytest -n auto --dist loadfile
.PHONY: demo test test-all mutations types docs dist clean

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

# The modules that pyproject.toml names, which are those that users write against.
types: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[types]"
	$(BIN)/mypy

# Pages of the API, from docstrings, in build/docs.
docs: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[docs]"
	$(BIN)/pdoc --docformat google --output-directory build/docs \
		kljax $(patsubst kljax/%/__init__.py,kljax.%,$(wildcard kljax/*/__init__.py))

# sdist and wheel, in dist; tests/packaging/check_install.py tries them.
dist: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[release]"
	$(BIN)/python -m build

clean:
	rm -rf .venv runs build dist
