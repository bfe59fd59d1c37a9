# make demo | test | test-all | venv | clean. The only requirement is Python 3.11.
PYTHON ?= python3
# TORCH=torch==2.13.0 is the CPU build on most indexes; pass your CUDA build's requirement instead.
TORCH ?= torch==2.13.0
BIN := .venv/bin
# Two processes take the test files in turn; a test has two ranks, so more would crowd a small machine.
SHARED := -n 2 --dist loadfile

.PHONY: venv demo test test-all lint clean

venv: .venv/ready

.venv/ready: .ci/requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet -r .ci/requirements.txt
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@

demo: venv
	$(BIN)/hybridiff demo --out demo

lint: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

test: lint
	$(BIN)/python -m pytest -m "not slow" $(SHARED)

test-all: lint
	$(BIN)/python -m pytest $(SHARED)

clean:
	rm -rf .venv demo build dist *.egg-info
