# One environment, .venv, pinned by constraints.txt. `make demo` installs what the main job needs (no torch);
# the others add what they need to the same environment. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SPEC := pyproject.toml constraints.txt
# The GPU packages overwrite the modules of those for processors: they have an environment of their own, of 4 GB.
GPU_VENV := .venv-gpu
GPU_BIN := $(GPU_VENV)/bin
# So do CLIP_benchmark and MTEB, which need other versions of Hugging Face's packages; 6 GB with PyTorch.
HARNESS_VENV := .venv-harness
HARNESS_BIN := $(HARNESS_VENV)/bin
# The oldest and the newest TensorRT that plans are built with; the Python bindings alone, 1.3 MB each. Both bring a
# module of the same name, so each has a folder of its own.
TENSORRT_VERSIONS := 10.16.1.11 11.4.0.106
TENSORRT_BINDINGS := $(TENSORRT_VERSIONS:%=$(VENV)/tensorrt-bindings/%)
# Processes that share the tests' files; the order of the folders puts the longest files first.
TEST_PROCESSES ?= 2
PARALLEL_TESTS = $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder
# Tests that take longer than any of `make test` may.
UNBOUNDED := -o timeout=3600 -o faulthandler_timeout=0
# Without what has targets of its own.
HERE := not thorough and not gpu_packages and not published_sizes and not harness_packages
PROMETHEUS := build/prometheus
CHROMIUM := build/chromium
TRITON_BACKEND_SOURCES ?= ../shared/data/triton_onnxruntime_backend
TRITON_BACKENDS := build/triton_backends
TRITON_BACKEND := $(TRITON_BACKENDS)/onnxruntime/libtriton_onnxruntime.so

.PHONY: demo docs test test-fast test-thorough test-container fuzz-gateway test-gpu-packages test-harness test-published-sizes test-tensorrt-bindings check bench bench-smoke clean help

demo: $(VENV)/.run ## draw 500 pictures, index them through Triton, find them in words; writes demo/
	$(BIN)/twinspire demo -o demo --json demo/demo.json

# The tests of a file share servers and models, so they stay in one process.
test: $(VENV)/.dev $(TENSORRT_BINDINGS) $(PROMETHEUS)/promtool $(CHROMIUM)/chromium ## run all tests
	$(PARALLEL_TESTS) -m "not serial and $(HERE)"
	$(BIN)/python -m pytest -m "serial and $(HERE)"

test-fast: $(VENV)/.dev ## run the tests that need neither seconds nor a server, between edits
	$(PARALLEL_TESTS) -m "not slow and not serial and $(HERE)"

# Not in CI: half an hour.
test-thorough: $(VENV)/.dev ## run the tests of which `make test` runs a part at their full size
	$(PARALLEL_TESTS) $(UNBOUNDED) -m thorough

# In CI the same test makes some 200 requests.
fuzz-gateway: $(VENV)/.dev ## send the gateway some 5,000 requests that Schemathesis makes from its OpenAPI document
	TWINSPIRE_FUZZ_REQUESTS=5000 $(BIN)/python -m pytest $(UNBOUNDED) -s tests/gateway/test_attacks_bodies.py -k schemathesis

# Not in CI: downloads 3 GB the first time.
test-harness: $(HARNESS_VENV)/.dev ## test the adapters to CLIP_benchmark and MTEB with those packages, in .venv-harness
	HF_HUB_OFFLINE=1 $(HARNESS_BIN)/python -m pytest -m harness_packages tests/harnesses

# Not in CI: downloads 2 GB the first time. The second line runs the same code's other tests with these packages.
test-gpu-packages: $(GPU_VENV)/.dev ## test the extra gpu on a machine without a GPU, in .venv-gpu
	$(GPU_BIN)/python -m pytest -m gpu_packages tests/gpu_packages
	$(GPU_BIN)/python -m pytest tests/client/test_cuda_driver.py tests/client/test_dependencies.py tests/client/test_towers*.py \
		tests/client/test_auto_selection.py tests/client/test_index_gpu.py tests/client/test_index_kinds.py \
		tests/client/test_cli_index_build.py tests/client/test_index_snapshots.py tests/server/test_repository_build.py

# Not in CI: half an hour.
test-published-sizes: $(VENV)/.dev ## export, quantize and run whole models of published sizes with random weights
	$(BIN)/python -m pytest $(UNBOUNDED) -m published_sizes tests/export/test_published_sizes.py

test-tensorrt-bindings: $(VENV)/.dev $(TENSORRT_BINDINGS) ## check every call of TensorRT against its bindings
	$(BIN)/python -m pytest tests/export/test_tensorrt_bindings.py

# Debian's package; the tests of deploy/ need it.
$(PROMETHEUS)/promtool: tools/fetch_prometheus.sh
	tools/fetch_prometheus.sh $(PROMETHEUS)
	@touch $@

# Debian's package; the tests of the gateway's page need it.
$(CHROMIUM)/chromium: tools/fetch_chromium.sh
	rm -rf $(CHROMIUM)
	tools/fetch_chromium.sh $(CHROMIUM)
	@touch $@

test-container: $(TRITON_BACKEND) ## run container repositories on Triton's onnxruntime backend, built from TRITON_BACKEND_SOURCES
	TWINSPIRE_TRITON_BACKENDS=$(CURDIR)/$(TRITON_BACKENDS) $(BIN)/python -m pytest tests/container

$(TRITON_BACKEND): tools/build_triton_backend.sh $(VENV)/.dev
	tools/build_triton_backend.sh $(TRITON_BACKEND_SOURCES) $(TRITON_BACKENDS) $(BIN)/python

# The first run makes ViT-B/32 with random weights in runs/bench, which takes minutes; later ones find it there.
bench: $(VENV)/.dev ## run every benchmark at a size that ends in minutes; records in runs/bench
	mkdir -p runs/bench
	$(BIN)/twinspire bench latency --rounds 3 --json runs/bench/latency.json
	$(BIN)/twinspire bench recall --data scenes:1000 --json runs/bench/recall.json
	$(BIN)/twinspire bench search --count 400 --json runs/bench/search.json
	$(BIN)/twinspire bench index --json runs/bench/index.json
	$(BIN)/python -m twinspire_bench.engines --rounds 3 --json runs/bench/engines.json
	$(BIN)/python -m twinspire_bench.merged_tokens --rounds 3 --json runs/bench/merged.json
	$(BIN)/python -m twinspire_bench.serving_overhead --rounds 3 --json runs/bench/served.json
	$(BIN)/python -m twinspire_bench.lanes --rounds 1 --json runs/bench/lanes.json
	$(BIN)/python -m twinspire_bench.overload --seconds 10 --json runs/bench/overload.json
	$(BIN)/python -m twinspire_bench.gateway --rounds 2 --json runs/bench/gateway.json
	$(BIN)/python -m twinspire_bench.growth --sizes 10000,100000 --json runs/bench/growth.json

bench-smoke: $(VENV)/.dev ## run every benchmark small, and fail where the sample's recall is below that of bench/baseline
	rm -rf runs/smoke
	$(BIN)/twinspire bench run --suite smoke --history runs/smoke
	$(BIN)/twinspire bench gate bench/baseline runs/smoke --recall-only

docs: $(VENV)/.dev ## build the documentation in build/site; fails for a broken link and an undocumented public name
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: $(VENV)/.dev ## lint, check formatting, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(SPEC) | $(BIN)/python
	$(PIP) --editable ".[cpu,server,gateway,bench]"
	@touch $@

$(VENV)/.dev: $(SPEC) | $(BIN)/python
	$(PIP) --editable ".[cpu,server,gateway,metrics,otel,audio,quantize,export,bench,peers,docs,dev]"
	@touch $(VENV)/.run $@

$(HARNESS_VENV)/.dev: $(SPEC)
	$(PYTHON) -m venv $(HARNESS_VENV)
	$(HARNESS_BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[cpu,harness]" onnx pytest pytest-timeout
	@touch $@

# pip before 24.1 cannot resolve the extra.
$(GPU_VENV)/.dev: $(SPEC) constraints-gpu.txt
	$(PYTHON) -m venv $(GPU_VENV)
	$(GPU_BIN)/python -m pip install --quiet --disable-pip-version-check "pip>=24.1"
	$(GPU_BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--constraint constraints-gpu.txt --editable ".[gpu]" pytest pytest-timeout hypothesis onnx
	@touch $@

$(VENV)/tensorrt-bindings/%: | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@.tmp tensorrt-cu13-bindings==$*
	mv $@.tmp $@

clean: ## remove the environments and what demo and build wrote; runs/ stays
	rm -rf $(VENV) $(GPU_VENV) $(HARNESS_VENV) demo dist build

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.* ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 24
