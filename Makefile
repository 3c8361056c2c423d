# Everything runs in .venv, made once from constraints.txt. PY names another Python (3.11 or newer).
PY ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/.ready
PHOTO ?= examples/photos/budgie.jpg
SCALE ?= 8
PYTEST := $(BIN)/python -m pytest

.PHONY: help setup upscale test test-slow test-all lint bench clean

help:
	@echo "make upscale    enlarge a sample photo x8 with the embedded model (PHOTO=..., SCALE=...)"
	@echo "make test       lint, types and the quick tests"
	@echo "make test-slow  the slow tests only"
	@echo "make test-all   lint, types and all tests that this machine can run"
	@echo "make lint       ruff and mypy"
	@echo "make bench      the benchmarks, JSON into out/benchmarks (hours; QUICK=1: less)"
	@echo "make clean      remove .venv, out and caches"

setup: $(READY)

$(READY): constraints.txt pyproject.toml
	@test -n "$(PY)" || { echo "Python 3.11 or newer is needed; name one: make PY=/path/to/python3"; exit 1; }
	$(PY) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[train,ray,huge,dev]'
	@touch $(READY)

upscale: $(READY)
	@mkdir -p out
	$(BIN)/tudsr upscale "$(PHOTO)" -o "out/$(notdir $(basename $(PHOTO)))-x$(SCALE).png" --scale $(SCALE) \
		--compare "out/$(notdir $(basename $(PHOTO)))-before-after.jpg" --overwrite
	@echo "before/after: $(CURDIR)/out/$(notdir $(basename $(PHOTO)))-before-after.jpg"

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(PYTEST) -q -m "not slow and not gpu"

test-slow: $(READY)
	$(PYTEST) -q -m "slow and not gpu"

test-all: lint
	$(PYTEST) -q -m "not gpu"

bench: $(READY)
	benchmarks/targets.sh out/benchmarks

clean:
	rm -rf .venv out build .pytest_cache .mypy_cache .ruff_cache .hypothesis
