# make demo | test | test-all | test-oldest | venv | clean. The only requirement is Python 3.11.
PYTHON ?= python3
# TORCH=torch==2.13.0 is the CPU build on most indexes; pass your CUDA build's requirement instead.
TORCH ?= torch==2.13.0
# The oldest one that pyproject.toml allows; indexes may have it with CUDA only, some gigabytes.
TORCH_OLDEST ?= torch==2.11.0
BIN := .venv/bin
OLDEST := .venv-oldest/bin
# Two processes take the test files in turn; a test has two ranks, so more would crowd a small machine.
SHARED := -n 2 --dist loadfile

.PHONY: venv demo test test-all test-oldest lint clean

venv: .venv/ready

.venv/ready: .ci/requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet -r .ci/requirements.txt
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@

# The lower bounds of pyproject.toml, in an environment of their own.
.venv-oldest/ready: .ci/oldest.py pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	$(OLDEST)/pip install --quiet --upgrade pip
	$(OLDEST)/pip install --quiet "$(TORCH_OLDEST)" $$($(PYTHON) .ci/oldest.py)
	$(OLDEST)/pip install --quiet --no-deps --editable .
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

# The tests of what depends on other packages the most may be named: make test-oldest TESTS=tests/capture
test-oldest: .venv-oldest/ready
	$(OLDEST)/python -m pytest -m "not slow" $(SHARED) $(TESTS)

clean:
	rm -rf .venv .venv-oldest demo build dist *.egg-info
