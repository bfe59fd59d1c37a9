# make demo | demo-full | test | test-all | test-oldest | venv | clean. The only requirement is Python 3.11.
PYTHON ?= python3
# TORCH=torch==2.13.0 is the CPU build on most indexes; pass your CUDA build's requirement instead.
TORCH ?= torch==2.13.0
# The oldest one that pyproject.toml allows.
TORCH_OLDEST ?= torch==2.13.0
BIN := .venv/bin
OLDEST := .venv-oldest/bin
# Two processes take the test files in turn; a test has two ranks, so more would crowd a small machine.
# One thread each: two processes that compute with two threads on two cores wait for each other.
SHARED := -n 2 --dist loadfile
test test-all test-oldest: export OMP_NUM_THREADS = 1

.PHONY: venv demo demo-full test test-all test-oldest lint clean

venv: .venv/ready

.venv/ready: .ci/requirements.txt pyproject.toml
	@echo "set-up, once: about 5 minutes on 2 slow cores"
	@echo "1 of 4: an environment of its own, .venv (about 30 s)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --upgrade pip
	@echo "2 of 4: $(TORCH), the largest part (about 2 min)"
	@$(BIN)/pip install --quiet "$(TORCH)"
	@echo "3 of 4: the other libraries, $$(grep -c == .ci/requirements.txt) of them (about 2 min)"
	@$(BIN)/pip install --quiet -r .ci/requirements.txt
	@echo "4 of 4: hybridiff_compile itself (about 10 s)"
	@PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --no-deps --editable .
	@touch $@

# The lower bounds of pyproject.toml, in an environment of their own.
.venv-oldest/ready: .ci/oldest.py pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	$(OLDEST)/pip install --quiet --upgrade pip
	$(OLDEST)/pip install --quiet "$(TORCH_OLDEST)" $$($(PYTHON) .ci/oldest.py)
	$(OLDEST)/pip install --quiet --no-deps --editable .
	touch $@

# Few pictures, at most 2 minutes; demo-full makes those of docs/benchmarks.md.
demo: venv
	$(BIN)/hybridiff demo --quick --out demo

demo-full: venv
	$(BIN)/hybridiff demo --out demo

lint: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

# Workers are forked from a process that has imported torch (tests/warm.py); test-all starts each anew.
test: lint
	$(BIN)/python -m pytest -m "not slow" --warm $(SHARED)

test-all: lint
	$(BIN)/python -m pytest $(SHARED)

# The tests of what depends on other packages the most may be named: make test-oldest TESTS=tests/capture
test-oldest: .venv-oldest/ready
	$(OLDEST)/python -m pytest -m "not slow" $(SHARED) $(TESTS)

clean:
	rm -rf .venv .venv-oldest demo build dist *.egg-info
