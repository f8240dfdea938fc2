# make quickstart makes .venv, fine-tunes the mini model on the sample data with LoRA, and sums up what came out
# make test       makes .venv, installs everything into it, lints, runs all tests (the one test command)
# make test-fast  the same without the slow proofs
# make bench      times ours beside the libraries that are installed: bench/bench.md
# make format     formats the code
# make test-oldest, make test-newest   the fast tests with the oldest releases that the requirements allow, the newest
# make lock       what test-newest passed with becomes requirements-lock.txt
#
# PYTHON=python3.12                                     another Python
# TORCH_INDEX=https://where.torch/builds/are            torch from there, for instance a build without CUDA (README)
PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin
REQUIREMENTS := requirements.txt requirements-extra.txt requirements-dev.txt
LOCKED := -c requirements-lock.txt
# two files of tests at a time, a thread each
PYTEST := python -m pytest -n 2 --dist loadfile

.PHONY: quickstart test test-fast bench format test-oldest test-newest lock clean

# $(call install,FOLDER,REQUIREMENTS,CONSTRAINTS): a new environment. An index of torch has not all that torch needs, so
# torch comes from there alone.
define install
	$(PYTHON) -m cli
	$(PYTHON) -m venv $(1)
	$(if $(TORCH_INDEX),$(1)/bin/python -m pip install --quiet --no-deps --index-url $(TORCH_INDEX) $(3) torch)
	$(1)/bin/python -m pip install --quiet -r $(2) $(3)
endef

.venv/runs: requirements.txt requirements-lock.txt
	$(call install,.venv,requirements.txt,$(LOCKED))
	touch $@

quickstart: .venv/runs
	$(BIN)/python data/quickstart.py

.venv/installed: $(REQUIREMENTS) requirements-lock.txt
	$(call install,.venv,requirements-dev.txt,$(LOCKED))
	touch $@

test: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	OMP_NUM_THREADS=1 $(BIN)/$(PYTEST) --durations=5

test-fast: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/$(PYTEST) -m "not slow"

bench: .venv/installed
	$(BIN)/python -m benchmarks.bench

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# These hold us against transformers 5 in its own words, or point the hub's client of 1.0 at a local server.
NEWER := tests/test_fuzz_formats.py tests/test_loading_faults.py tests/test_sharing.py
NEWER_TESTS := tests/test_corpus.py::test_transformers_reads_the_saved_tokenizer_alike \
	tests/test_tokenizer.py::test_real_vocabulary_encodes_as_transformers_does

test-oldest:
	rm -rf .venv-oldest && mkdir .venv-oldest
	sed -n 's/>=/==/p' $(REQUIREMENTS) > .venv-oldest/bounds.txt
	$(call install,.venv-oldest,requirements-dev.txt,-c .venv-oldest/bounds.txt)
	.venv-oldest/bin/python -m pytest -m "not slow" $(addprefix --ignore=,$(NEWER)) $(addprefix --deselect=,$(NEWER_TESTS))

test-newest:
	rm -rf .venv-newest
	$(call install,.venv-newest,requirements-dev.txt,)
	.venv-newest/bin/python -m pytest -m "not slow"

lock: test-newest
	grep '^#' requirements-lock.txt > .venv-newest/lock.txt
	.venv-newest/bin/python -m pip freeze | sed 's/+.*//' | grep -Ev '^(nvidia|cuda|triton)' >> .venv-newest/lock.txt
	cp .venv-newest/lock.txt requirements-lock.txt

clean:
	rm -rf .venv* .pytest_cache .ruff_cache
