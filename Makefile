# Two commands: `make demo` shows the house at work, `make test` proves it.
# Both set up what they need first; the second time that takes no time.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ebl-stream-ready
# Pinned so that two set-ups are alike; the CPU build does, and pip takes it
# where the machine offers it.
TORCH := torch==2.13.0
# Another interpreter: make setup PYTHON=/path/to/python3
PYTHON :=
# More options of the demo: make demo DEMO="--columns 512 --order interlaced"
DEMO :=

# Test processes at a time: make test TEST_WORKERS=4
TEST_WORKERS := 2

# Sizes of the campaign: make campaign CAMPAIGN="--minutes 5 --kills 40"
CAMPAIGN :=

# Where `make bench-gpu` writes.
BENCH_GPU := bench_gpu

.PHONY: help setup demo test lint format clean bench-gpu campaign

help:
	@echo "make demo    set up, then watch a volume sharpen while a simulated scan runs"
	@echo "make test    set up, then check the code (make lint) and run the tests"
	@echo "make setup   set up only: leaves $(BIN)/ebl-stream"
	@echo "make lint    ruff, pyright and the import contracts"
	@echo "make format  let ruff write the code's layout"
	@echo "make bench-gpu  is the GPU right, and how fast: JSON and a table in $(BENCH_GPU)"
	@echo "make campaign  break everything that can break, at length: a table in campaign/"
	@echo "make clean   remove $(VENV), caches and the demo's output"

setup: $(READY)

# Prints a Python >= 3.11 that really runs and can make environments: a shim on the
# path may exist and yet fail. 3.11 first, for which everything has a wheel.
define find_python
for name in $(or $(PYTHON),python3.11 python3.12 python3.13 python3.14 python3); do \
  for candidate in $$(type -ap "$$name" || true); do \
    if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
        >/dev/null 2>&1; then echo "$$candidate"; exit 0; fi; \
  done; \
done
endef

$(READY): pyproject.toml
	@python="$$($(find_python))"; \
	if [ -z "$$python" ]; then \
	  echo "No Python 3.11 or newer that can make environments (venv, ensurepip) was found." >&2; \
	  echo "Install one (Debian, Ubuntu: python3.11 and python3.11-venv), or name it:" >&2; \
	  echo "  make setup PYTHON=/path/to/python3" >&2; \
	  exit 1; \
	fi; \
	if ! $(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	  echo "Setting up $(VENV) with $$python ($$("$$python" -V))."; \
	  echo "pip will download about 190 packages, some 0.8 GB, and PyTorch: 0.2 GB where pip"; \
	  echo "finds its CPU build, up to 3 GB where it finds only the one with CUDA."; \
	  echo "On disk 3.2 GB, or 7 GB with CUDA. What pip has in its cache is not downloaded again."; \
	  "$$python" -m venv --clear $(VENV); \
	else \
	  echo "Bringing $(VENV) up to date: only what is missing is downloaded."; \
	fi
	@# Without build isolation pip needs no network when everything is there.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'setuptools>=77'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --no-build-isolation '$(TORCH)' -e '.[test]'
	@$(BIN)/ebl-stream --version
	@touch $@

demo: setup
	@$(BIN)/ebl-stream demo $(DEMO)

# A file's tests stay together: they share servers and scans.
test: lint
	$(BIN)/pytest -q -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

campaign: setup
	@PYTHONPATH=tests $(BIN)/python -m campaign $(CAMPAIGN)

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) build dist *.egg-info ebl_stream_out \
	  .pytest_cache .ruff_cache .hypothesis .import_linter_cache .grimp_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Needs no set-up: any Python with numpy, scipy, numba and cupy will do.
bench-gpu:
	@"$$(if [ -x $(BIN)/python ]; then echo $(BIN)/python; else echo python3; fi)" \
	  benchmarks/gpu.py --out $(BENCH_GPU)
