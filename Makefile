# Two commands do everything: `make train` (the main job) and `make test`. Both set the machine up first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export MUJOCO_GL ?= egl
# The tests that decide by what matrix products round to run again on the plainest kernels: as on another processor.
OTHER_PROCESSOR := ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=SSE4_2 ONEDNN_MAX_CPU_ISA=SSE41 OPENBLAS_CORETYPE=Nehalem
ROUNDED := $(patsubst %,tests/test_%.py,policy regression extension objectives flow)

.PHONY: train test check setup bench bench-objectives clean

train: setup  ## the main job: reinforcement learning of the shipped tiny policy, about a quarter of an hour on 2 cores
	$(BIN)/rl-finetune train $(ARGS)

test: setup check  ## static checks and all tests, 8 to 11 minutes on 2 cores
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)
	$(OTHER_PROCESSOR) $(BIN)/python -m pytest -n 2 --dist loadfile $(ROUNDED)

check: setup  ## style, types, floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: setup  ## side-by-side measurements into benchmarks/results/
	$(BIN)/python -m benchmarks.bench_envs benchmarks/results/envs.json
	$(BIN)/python -m benchmarks.bench_learning benchmarks/results/learning.json

bench-objectives: setup  ## objectives and sampling laws over seeds, about an hour and a half on 2 cores; goes on where it was stopped
	$(BIN)/python -m benchmarks.objectives

setup: $(VENV)/.installed
	@PYTHON=$(PYTHON) scripts/system_packages.sh

$(VENV)/.installed: pyproject.toml
	PYTHON=$(PYTHON) scripts/system_packages.sh
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

clean:  ## remove what the commands above made, but not runs/
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
