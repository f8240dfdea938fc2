# make quickstart makes .venv, fine-tunes the mini model on the sample data with LoRA, and sums up what came out
# make test       makes .venv, installs everything into it, lints, runs all tests (the one test command)
# make test-fast  the same without the slow proofs
# make format     formats the code
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-fast format clean

.venv/runs: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

quickstart: .venv/runs
	$(BIN)/python data/quickstart.py

.venv/installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

test: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m pytest --durations=5

test-fast: .venv/installed
	$(BIN)/python -m pytest -m "not slow"

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .pytest_cache .ruff_cache
