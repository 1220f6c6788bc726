# `make demo` and `make test` need only make and a Python 3.10 to 3.12: the rest is installed here.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow lint

demo: $(INSTALLED)
	$(BIN)/python benchmarks/demo/run.py

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow" --cov=tfdwd --cov-report=term-missing:skip-covered --cov-fail-under=95

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy tfdwd

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]' -c constraints.txt
	touch $@
