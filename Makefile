# Everything on a fresh machine with python3, g++ and make, in a virtual environment of its own:
#   make bench      check and time every kernel against its peers, then train a language model (under 5 minutes)
#   make test       all tests, linters and docstring examples
#   make test-long  the tests marked `long`: campaigns of minutes
#   make ecosystem  convert models of other packages, in an environment of its own (2 GB), and train them
#   make gpu        the tests that need an NVIDIA GPU, then the benchmarks against cuDNN
#   make sanitize-cuda  some of these tests under compute-sanitizer
#   make examples   every example in its default setting: pictures, and the table of examples/README.md
#   make build      the environment and the extension alone
#   make format     lay out the code as `make test` wants it
#   make clean      remove what was built, and the environment

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ECOSYSTEM := .venv-ecosystem
CXX_FILES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
CXX_TESTS := $(shell find tests -name '*.cpp' -o -name '*.h')

.PHONY: bench test test-long ecosystem gpu sanitize-cuda examples lint build format clean
bench: build
	$(BIN)/python -m benchmarks --quick

test: lint
	$(BIN)/python -m pytest -m "not long and not ecosystem"

test-long: build
	$(BIN)/python -m pytest -m long

# With the extension that `build` left in this folder: both environments have the same torch.
ecosystem: build $(ECOSYSTEM)/installed
	$(ECOSYSTEM)/bin/python -m pytest -m ecosystem tests/ecosystem

gpu: build
	FAIL_WITHOUT_CUDA=1 $(BIN)/python -m pytest -m needs_cuda
	$(BIN)/python -m benchmarks.gpu

sanitize-cuda: build
	for tool in memcheck racecheck; do \
	  FAIL_WITHOUT_CUDA=1 compute-sanitizer --tool $$tool --error-exitcode 1 \
	    $(BIN)/python -m pytest -m needs_cuda -k "test_lengths_on_the_gpu or test_cells or test_threads" || exit 1; \
	done

examples: build
	$(BIN)/python -m examples

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES) $(CXX_TESTS)

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES) $(CXX_TESTS)

build: $(VENV)/built

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

$(ECOSYSTEM)/installed: requirements-ecosystem.txt
	$(PYTHON) -m venv $(ECOSYSTEM)
	$(ECOSYSTEM)/bin/python -m pip install --quiet -r requirements-ecosystem.txt
	touch $@

# Editable: Python files are used where they lie; only a change of C++, CUDA or the build asks for a new build.
$(VENV)/built: $(VENV)/installed setup.py pyproject.toml fused_rnn/_version.py $(CXX_FILES)
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) $(ECOSYSTEM) build dist *.egg-info fused_rnn/_C*.so
