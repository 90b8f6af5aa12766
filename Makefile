# `make demo` and `make test` need nothing but Python 3.11+ and a network path to a package registry.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= runs
JOBS   ?= auto

# Given on the command line, too, an empty OUT is runs/ and not the root of the file system.
ifeq ($(strip $(OUT)),)
override OUT := runs
endif

# A run ends with 1 when checks on replies failed: that is a result here, not a reason to stop.
CHECKS_FAILED := [ $$? -eq 1 ]

# Only a folder that is a run, or empty, makes room for a new run: other programs write manifests too.
define remove_run
	@set -- "$(OUT)/$@"; [ ! -e "$$1" ] || grep -qs '"rwkvbatch"' "$$1/manifest.json" || rmdir "$$1" 2>/dev/null || \
		{ echo "$(OUT)/$@ is not a run: move it, or choose another folder with OUT=FOLDER" >&2; exit 1; }
	rm -rf "$(OUT)/$@"
endef

.PHONY: help setup demo test test-arm test-ecosystem lint types contracts documents unit all-tests fix check bench gpu sweep compare gate train datasets fuzz sanitize docs wheels test-oldest clean

help:  ## Say what each target does
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# The editable installation has a list of modules, which is out of date when a module becomes a package.
PACKAGES := $(wildcard rwkvbatch/*/__init__.py rwkvbatch/*/*/__init__.py)
INPUTS := pyproject.toml constraints.txt $(wildcard rwkvbatch/native/*) $(PACKAGES)

$(VENV)/.installed: $(BIN)/python $(INPUTS)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-test: $(BIN)/python $(INPUTS)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $(VENV)/.installed $@

# One installation with all extras: each one builds the kernels.
$(VENV)/.installed-ecosystem: $(BIN)/python $(INPUTS)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,lm-eval,ifeval,inspect]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt llm
	@touch $(VENV)/.installed $(VENV)/.installed-test $@

setup: $(VENV)/.installed-test  ## Make .venv with the package (editable) and all that the tests need

demo: $(VENV)/.installed  ## Replay datasets/demo.jsonl on the bundled model into runs/demo
	$(remove_run)
	$(BIN)/rwkvbatch run datasets/demo.jsonl --preset greedy --out "$(OUT)/demo" || $(CHECKS_FAILED)
	$(BIN)/rwkvbatch show "$(OUT)/demo" --limit 4

check: lint types contracts documents  ## Everything but the tests: lint, types, import contracts, generated documents

lint: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.installed-test
	$(BIN)/pyright

contracts: $(VENV)/.installed-test
	$(BIN)/lint-imports

GENERATED := docs/commands.md docs/install.md docs/scripts.md

documents: $(VENV)/.installed-test
	$(BIN)/cog --check -I . $(GENERATED)

# Files in the order that tests/conftest.py gives them, each in one process.
PYTEST := $(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

unit: $(VENV)/.installed-test  ## Run the tests that take less than 5 seconds each
	$(PYTEST) -m "not slow"

all-tests: $(VENV)/.installed-test
	$(PYTEST)

# The types are checked in one process that takes a minute: beside the tests, not before them.
test: lint contracts documents  ## Lint, types, import contracts, generated documents and all tests
	$(MAKE) --jobs=2 types all-tests

test-arm: $(VENV)/.installed-test  ## Run the kernels of 64-bit ARM under emulation: the bits must be those of x86-64
	$(BIN)/pytest tests/native/test_processors.py -rs

# The program `promptfoo` is Node.js's: its tests are skipped where it is not on the PATH.
test-ecosystem: $(VENV)/.installed-ecosystem  ## Test with lm-evaluation-harness, Inspect, llm and promptfoo
	$(BIN)/pytest tests/integrations tests/script/test_answers.py

fix: $(VENV)/.installed-test  ## Format, fix what can be fixed, renew the generated documents
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/cog -r -I . $(GENERATED)

bench: $(VENV)/.installed  ## Measure this machine, the kernels and the rwkv package in one run
	$(BIN)/rwkvbatch bench --random 12x768 --against rwkv

gpu: $(VENV)/.installed-test  ## Verify, test and measure everything on an NVIDIA GPU in ten minutes: gpu-report.json, .md
	$(BIN)/python benchmarks/gpu_report.py --out gpu-report

sweep: $(VENV)/.installed  ## Temperature x frequency penalty, 5 repeats, on the bundled model, into runs/sweep
	$(remove_run)
	$(BIN)/rwkvbatch run datasets/styles.jsonl datasets/copying.jsonl --grid datasets/grid.toml --top-p 1 \
		--repeats 5 --out "$(OUT)/sweep" || $(CHECKS_FAILED)

compare: $(VENV)/.installed  ## Compare the cells of runs/sweep and write its report
	$(BIN)/rwkvbatch compare "$(OUT)/sweep"
	$(BIN)/rwkvbatch compare "$(OUT)/sweep" --format html --replace --out "$(OUT)/sweep/report.html"

gate: $(VENV)/.installed  ## Exit with 1 when greedy decoding on the bundled model has become worse
	$(remove_run)
	$(BIN)/rwkvbatch run datasets/demo.jsonl --preset greedy --out "$(OUT)/gate" || $(CHECKS_FAILED)
	$(BIN)/rwkvbatch compare "$(OUT)/gate" --fail-if "score < 0.9" --fail-if "error_rate > 0"

train: $(VENV)/.installed-test  ## Train the bundled model from nothing (hours on two cores)
	$(BIN)/python tools/train_demo_model.py

datasets: $(VENV)/.installed-test  ## Rewrite datasets/ from the generator
	$(BIN)/python tools/make_datasets.py

FUZZ_SECONDS ?= 60
FUZZ_CORPUS  ?= build/fuzz
FUZZED_READERS := gguf safetensors hf-config hf-index quantised adapter peft-config tokenizer world-vocabulary state \
	lm-eval inspect promptfoo csv parquet benchmark benchmark-parquet chats chat-array stream request

fuzz: $(VENV)/.installed-test  ## Fuzz each reader of foreign input for FUZZ_SECONDS=60; ends at a finding
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[fuzz]'
	for target in gates text checks script checkpoint; do \
		$(BIN)/python -m tools.fuzz.fuzz_$$target $(FUZZ_SECONDS) $(FUZZ_CORPUS)/$$target || exit 1; \
	done
	for reader in $(FUZZED_READERS); do \
		$(BIN)/python -m tools.fuzz.fuzz_reader $$reader $(FUZZ_SECONDS) $(FUZZ_CORPUS)/$$reader || exit 1; \
	done

# Leaks are not looked for: the interpreter and torch keep what they have until the end. The C++ library is loaded first
# too, because the sanitizer looks for its exceptions at the start.
SANITIZED := build/sanitize
PRELOAD    = $(shell $(CXX) -print-file-name=libasan.so):$(shell $(CXX) -print-file-name=libstdc++.so)

sanitize: $(VENV)/.installed-test  ## Run the tests of the kernels with the address and undefined behaviour sanitizers
	$(BIN)/python -m pip install --quiet 'nanobind>=2.4' 'cmake>=3.20' ninja
	$(BIN)/cmake -S rwkvbatch/native -B $(SANITIZED) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
		-DRWKVBATCH_SANITIZE=ON -DPython_EXECUTABLE=$(abspath $(BIN))/python
	$(BIN)/cmake --build $(SANITIZED)
	RWKVBATCH_SANITIZED=$$(ls $(abspath $(SANITIZED))/_native*.so) LD_PRELOAD=$(PRELOAD) \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
		$(BIN)/python -m pytest -p tools.sanitized -p no:cacheprovider tests/native tests/model/ops

docs: $(VENV)/.installed  ## Build the site into build/site; a broken link or anchor is an error
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/mkdocs build --quiet

# One wheel for Python 3.11, and one for the stable ABI of 3.12 and newer. TRY_WITH and KERNELS_ONLY: see the script.
WHEEL_PYTHONS ?= python3.11 python3.12
export TRY_WITH KERNELS_ONLY OVERRIDES PYTEST_OPTIONS

wheels:  ## Build this platform's wheels into dist/ and try each in a fresh environment without a compiler
	for python in $(WHEEL_PYTHONS); do tools/build_wheel.sh $$python dist || exit 1; done

test-oldest:  ## Run the tests with the oldest version of every dependency that pyproject.toml allows
	tools/test_oldest.sh $(PYTHON) build/oldest

clean:  ## Remove the virtual environment and all caches
	rm -rf $(VENV) build .pytest_cache .ruff_cache .hypothesis .import_linter_cache
