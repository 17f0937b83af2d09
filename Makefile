# One environment, .venv, pinned by constraints.txt. `make demo` installs what the main job needs (no torch);
# the others add what they need to the same environment. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SPEC := pyproject.toml constraints.txt
TRITON_BACKEND_SOURCES ?= ../shared/data/triton_onnxruntime_backend
TRITON_BACKENDS := build/triton_backends
TRITON_BACKEND := $(TRITON_BACKENDS)/onnxruntime/libtriton_onnxruntime.so

.PHONY: demo test test-container check bench clean help

demo: $(VENV)/.run ## draw 500 pictures, index them through Triton, find them in words; writes demo/
	$(BIN)/twinspire demo -o demo --json demo/demo.json

test: $(VENV)/.dev ## run all tests
	$(BIN)/python -m pytest

test-container: $(TRITON_BACKEND) ## run container repositories on Triton's onnxruntime backend, built from TRITON_BACKEND_SOURCES
	TWINSPIRE_TRITON_BACKENDS=$(CURDIR)/$(TRITON_BACKENDS) $(BIN)/python -m pytest tests/container

$(TRITON_BACKEND): tools/build_triton_backend.sh $(VENV)/.dev
	tools/build_triton_backend.sh $(TRITON_BACKEND_SOURCES) $(TRITON_BACKENDS) $(BIN)/python

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

clean: ## remove the environment and what demo and build wrote; runs/ stays
	rm -rf $(VENV) demo dist build

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.* ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 8
