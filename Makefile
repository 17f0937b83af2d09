# One environment, .venv, pinned by constraints.txt. `make demo` installs what the main job needs (no torch);
# `make test` and `make check` add what they need to the same environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SPEC := pyproject.toml constraints.txt

.PHONY: demo test check bench clean

demo: $(VENV)/.run
	$(BIN)/twinspire demo -o demo --json demo/demo.json

test: $(VENV)/.dev
	$(BIN)/python -m pytest

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(SPEC) | $(BIN)/python
	$(PIP) --editable ".[cpu,server,bench]"
	@touch $@

$(VENV)/.dev: $(SPEC) | $(BIN)/python
	$(PIP) --editable ".[cpu,server,quantize,export,bench,peers,dev]"
	@touch $(VENV)/.run $@

clean:
	rm -rf $(VENV) demo dist build
