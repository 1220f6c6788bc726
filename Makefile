# `make demo` and `make test` need only make and a Python 3.10 to 3.12: the rest is installed here.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Programs in Python whose names do not say so.
SCRIPTS := android_demo/build_apk android_demo/draw_screens android_demo/put_models

# Coverage takes a third of the time again, so only `make coverage` counts lines.
TESTS := -m "not slow and not nightly and not android" -n 2 --dist worksteal

.PHONY: demo compare docs test coverage test-slow test-nightly test-android demo-models lint

DEMO := benchmarks/demo/fashion

# The carried network made faster, the whole way; ends with demo-output/report.html.
demo: $(INSTALLED)
	$(BIN)/tfdwd-compress --model=$(DEMO)_shufflenet.keras --folder=demo-output \
		--images=$(DEMO)_mnist.npz --images_key=x_train --latency=0.5 --minutes=1.5 \
		--test=$(DEMO)_mnist.npz --test_key=x_test \
		--test_labels=$(DEMO)_mnist.npz --test_labels_key=y_test

# All methods side by side: the table of the README.
compare: $(INSTALLED)
	$(BIN)/python benchmarks/demo/run.py

# The documentation as a website, build/docs/index.html.
docs: $(INSTALLED)
	$(BIN)/python -m sphinx -q -W docs build/docs

test: $(INSTALLED)
	$(BIN)/python -m pytest $(TESTS)

coverage: $(INSTALLED)
	$(BIN)/python -m pytest $(TESTS) \
		--cov=tfdwd --cov-report=term-missing:skip-covered --cov-fail-under=95

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

# Random networks, damaged files, kills: prints the figures of docs/robustness.md.
test-nightly: $(INSTALLED)
	$(BIN)/python -m pytest -m nightly -s

# Needs what android_demo/install_tools installs.
test-android: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check enjarify-adapter==1.0.2
	$(BIN)/python -m pytest -m android

# Puts the demo's two models into the Android app; android_demo/build_apk asks for it.
demo-models: $(INSTALLED)
	$(BIN)/python android_demo/put_models

lint: $(INSTALLED)
	$(BIN)/ruff check . $(SCRIPTS)
	$(BIN)/ruff format --check . $(SCRIPTS)
	$(BIN)/mypy tfdwd

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]' -c constraints.txt
	touch $@
