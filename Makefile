# `make demo` and `make test` need nothing but Python 3.11+ and a network path to a package registry.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= runs

.PHONY: help setup demo test lint types contracts readme unit fix check bench sweep compare gate train datasets fuzz sanitize clean

help:  ## Say what each target does
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt $(wildcard rwkvbatch/native/*)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

setup: $(VENV)/.installed-test  ## Make .venv with the package (editable) and all that the tests need

demo: $(VENV)/.installed  ## Replay datasets/demo.jsonl on the bundled model into runs/demo
	rm -rf $(OUT)/demo
	-$(BIN)/rwkvbatch run datasets/demo.jsonl --preset greedy --out $(OUT)/demo
	$(BIN)/rwkvbatch show $(OUT)/demo --limit 4

check: lint types contracts readme  ## Everything but the tests: lint, types, import contracts, README

lint: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.installed-test
	$(BIN)/pyright

contracts: $(VENV)/.installed-test
	$(BIN)/lint-imports

readme: $(VENV)/.installed-test
	$(BIN)/cog --check -I . README.md

unit: $(VENV)/.installed-test
	$(BIN)/pytest

test: check unit  ## Lint, types, import contracts and all tests

fix: $(VENV)/.installed-test  ## Format, fix what can be fixed, renew the README's generated parts
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/cog -r -I . README.md

bench: $(VENV)/.installed  ## Measure this machine, the kernels and the rwkv package in one run
	$(BIN)/rwkvbatch bench --random 12x768 --against rwkv

sweep: $(VENV)/.installed  ## Temperature x frequency penalty, 5 repeats, on the bundled model, into runs/sweep
	rm -rf $(OUT)/sweep
	-$(BIN)/rwkvbatch run datasets/styles.jsonl --grid datasets/grid.toml --repeats 5 --out $(OUT)/sweep

compare: $(VENV)/.installed  ## Compare the cells of runs/sweep and write its report
	$(BIN)/rwkvbatch compare $(OUT)/sweep
	$(BIN)/rwkvbatch compare $(OUT)/sweep --format html --out $(OUT)/sweep/report.html

gate: $(VENV)/.installed  ## Exit with 1 when greedy decoding on the bundled model has become worse
	rm -rf $(OUT)/gate
	-$(BIN)/rwkvbatch run datasets/demo.jsonl --preset greedy --out $(OUT)/gate
	$(BIN)/rwkvbatch compare $(OUT)/gate --fail-if "score < 0.9"

train: $(VENV)/.installed-test  ## Train the bundled model from nothing (hours on two cores)
	$(BIN)/python tools/train_demo_model.py

datasets: $(VENV)/.installed-test  ## Write datasets/ anew from the generator
	$(BIN)/python tools/make_datasets.py

clean:  ## Remove the virtual environment and all caches
	rm -rf $(VENV) build .pytest_cache .ruff_cache .hypothesis .import_linter_cache
