# One environment, .venv, pinned by constraints.txt. `make demo` installs what the main job needs (no torch);
# the others add what they need to the same environment. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SPEC := pyproject.toml constraints.txt
# The oldest and the newest TensorRT that plans are built with; the Python bindings alone, 1.3 MB each. Both bring a
# module of the same name, so each has a folder of its own.
TENSORRT_VERSIONS := 10.16.1.11 11.4.0.106
TENSORRT_BINDINGS := $(TENSORRT_VERSIONS:%=$(VENV)/tensorrt-bindings/%)

.PHONY: demo test test-tensorrt-bindings check bench clean help

demo: $(VENV)/.run ## draw 500 pictures, index them through Triton, find them in words; writes demo/
	$(BIN)/twinspire demo -o demo --json demo/demo.json

test: $(VENV)/.dev $(TENSORRT_BINDINGS) ## run all tests
	$(BIN)/python -m pytest

test-tensorrt-bindings: $(VENV)/.dev $(TENSORRT_BINDINGS) ## check every call of TensorRT against its bindings
	$(BIN)/python -m pytest tests/export/test_tensorrt_bindings.py

# The first run makes ViT-B/32 with seeded weights in runs/bench, which takes minutes; later ones find it there.
bench: $(VENV)/.dev ## run every benchmark at a size that ends in minutes; records in runs/bench
	mkdir -p runs/bench
	$(BIN)/twinspire bench latency --rounds 3 --json runs/bench/latency.json
	$(BIN)/twinspire bench recall --data scenes:1000 --json runs/bench/recall.json
	$(BIN)/twinspire bench search --count 400 --json runs/bench/search.json
	$(BIN)/twinspire bench index --json runs/bench/index.json
	$(BIN)/python -m twinspire_bench.engines --rounds 3 --json runs/bench/engines.json
	$(BIN)/python -m twinspire_bench.served --rounds 3 --json runs/bench/served.json

check: $(VENV)/.dev ## lint, check formatting, types and import rules
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

$(VENV)/tensorrt-bindings/%: | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@.tmp tensorrt-cu13-bindings==$*
	mv $@.tmp $@

clean: ## remove the environment and what demo and build wrote; runs/ stays
	rm -rf $(VENV) demo dist build

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.* ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 24
