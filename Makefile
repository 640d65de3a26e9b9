# Everything on a fresh machine with python3, g++ and make, in a virtual environment of its own:
#   make bench      check and time every kernel against its peers, then train a language model (under 5 minutes)
#   make test       all tests, linters and docstring examples
#   make test-long  the tests marked `long`: campaigns of minutes
#   make build      the environment and the extension alone
#   make format     lay out the code as `make test` wants it
#   make clean      remove what was built, and the environment

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CXX_FILES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: bench test test-long lint build format clean
bench: build
	$(BIN)/python -m benchmarks --quick

test: lint
	$(BIN)/python -m pytest -m "not long"

test-long: build
	$(BIN)/python -m pytest -m long

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

build: $(VENV)/built

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

# Editable: Python files are used where they lie; only a change of C++, CUDA or the build asks for a new build.
$(VENV)/built: $(VENV)/installed setup.py pyproject.toml fused_rnn/_version.py $(CXX_FILES)
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info fused_rnn/_C*.so
