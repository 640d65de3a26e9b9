# Everything, on a fresh machine with python3, g++ and make. What is installed goes into a virtual environment here.
#   make bench      check and time every kernel against its peers, then train a language model (under 5 minutes)
#   make test       all tests, linters and docstring examples
#   make test-long  the tests marked `long`, which take minutes each
#   make mutate     plant faults into copies of the library, one at a time, and report those that no test sees (an hour)
#   make test-torch-cuda  build and test against PyTorch for CUDA 13, in a separate environment (6 GB, needs nvcc)
#   make test-emulated  test the AVX-512 kernels in an emulator, for machines without AVX-512 (needs Debian's bochs and
#                   isolinux)
#   make ecosystem  convert and train models of other packages, and run the page on reinforcement learning, in a separate
#                   environment (2 GB)
#   make gpu        build for this machine's NVIDIA GPU, run the tests that need one, time against cuDNN (10 minutes)
#   make sanitize-cuda  run the tests marked `sanitize` under compute-sanitizer's memcheck and racecheck
#   make examples   run every example with its defaults: pictures, and the table of examples/README.md
#   make docs       build the website of pages and API reference into site/, in a separate environment (Python 3.11.5 or
#                   newer)
#   make build      create the environment and build the extension, nothing else
#   make format     format the code and fix lint errors that can be fixed automatically
#   make clean      remove all build results and environments

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ECOSYSTEM := .venv-ecosystem
TORCH_CUDA := .venv-torch-cuda
DOCS := .venv-docs
PYTHON_FILES := $(shell find fused_rnn -name '*.py' -o -name '*.pyi')
CXX_FILES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
CXX_TESTS := $(shell find tests -name '*.cpp' -o -name '*.c' -o -name '*.h' -o -name '*.cu')
# The tests that depend on the version of PyTorch, without those that read the sources.
TORCH_CUDA_TESTS := operators layers autograd compile interop/test_convert.py gpu/test_cuda_resources.py
TORCH_CUDA_IGNORED := operators/test_determinism.py layers/test_distributed.py

# Tests run in as many processes as there are cores, up to eight; each computes on one thread.
PARALLEL := --numprocesses auto --maxprocesses 8 --dist worksteal

.PHONY: bench test test-long mutate test-torch-cuda test-emulated ecosystem gpu build-gpu sanitize-cuda examples docs lint build format clean
bench: build
	$(BIN)/python -m benchmarks --quick

test: lint
	$(BIN)/python -m pytest $(PARALLEL) -m "not long and not ecosystem"

test-long: build
	$(BIN)/python -m pytest -m long

mutate: build
	PYTHONPATH=tests:tests/support nice $(BIN)/python -m mutation

test-emulated: build
	PYTHONPATH=tests $(BIN)/python -m instruction_sets.emulated

# The tests run in a folder without sources, so that they import the installed package.
test-torch-cuda: $(TORCH_CUDA)/built
	rm -rf build/torch-cuda/run
	mkdir -p build/torch-cuda/run
	cp -r pyproject.toml tests build/torch-cuda/run
	ln -s ../source/build build/torch-cuda/run/build
	cd build/torch-cuda/run && $(CURDIR)/$(TORCH_CUDA)/bin/python tests/support/installed.py
	cd build/torch-cuda/run && $(CURDIR)/$(TORCH_CUDA)/bin/python -m pytest $(PARALLEL) $(TORCH_CUDA_TESTS:%=tests/%) \
	  $(TORCH_CUDA_IGNORED:%=--ignore=tests/%)

# Uses the extension that `build` left in this folder, since both environments have the same torch.
ecosystem: build $(ECOSYSTEM)/installed
	$(ECOSYSTEM)/bin/python -m pytest -m ecosystem tests/interop/ecosystem

# The benchmarks run even if a test fails, and the target fails at the end.
gpu: build-gpu
	status=0; \
	FAIL_WITHOUT_CUDA=1 $(BIN)/python -m pytest $(PARALLEL) -m needs_cuda || status=1; \
	$(BIN)/python -m benchmarks.gpu || status=1; \
	$(BIN)/python -m benchmarks.gpu_convolutions || status=1; \
	$(BIN)/python -m benchmarks.gpu_sampling || status=1; \
	exit $$status

# Builds only for the GPU of this machine. ninja rebuilds only what has changed.
build-gpu: $(VENV)/installed
	FUSED_RNN_CUDA=1 FUSED_RNN_CUDA_ARCHS=native \
	  $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $(VENV)/built

# PyTorch's caching allocator is off, since it would hide accesses beyond the end of a tensor. Errors that calls of CUDA
# return are not reported: libraries ask for what a driver may lack when they start, and launches of ours raise them.
sanitize-cuda: build-gpu
	@command -v compute-sanitizer > /dev/null || \
	  { echo "compute-sanitizer, which is part of the CUDA toolkit, is not on the PATH"; exit 1; }
	status=0; for tool in memcheck racecheck; do \
	  FAIL_WITHOUT_CUDA=1 PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 1 --report-api-errors no \
	    $(BIN)/python -m pytest -m sanitize || status=1; \
	done; exit $$status

examples: build
	$(BIN)/python -m examples

# Docstrings are read from the sources, so the extension is not needed. The variable silences an announcement.
docs: $(DOCS)/installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build

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

$(TORCH_CUDA)/installed: requirements-torch-cuda.txt
	$(PYTHON) -m venv $(TORCH_CUDA)
	$(TORCH_CUDA)/bin/python -m pip install --quiet -r requirements-torch-cuda.txt
	touch $@

$(DOCS)/installed: requirements-docs.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet -r requirements-docs.txt
	touch $@

# Built from a copy of the sources, for all default architectures, so that the build in this folder is neither used nor
# changed.
$(TORCH_CUDA)/built: $(TORCH_CUDA)/installed setup.py pyproject.toml $(CXX_FILES) $(PYTHON_FILES)
	mkdir -p build/torch-cuda/source
	cd build/torch-cuda/source && rm -rf csrc fused_rnn build/lib* build/bdist*
	cp -rp setup.py pyproject.toml README.md LICENSE csrc fused_rnn build/torch-cuda/source
	rm -f build/torch-cuda/source/fused_rnn/_C*.so
	env -u FUSED_RNN_CUDA_ARCHS FUSED_RNN_CUDA=1 \
	  $(TORCH_CUDA)/bin/python -m pip install --quiet --no-build-isolation --no-deps ./build/torch-cuda/source
	touch $@

# Editable: Python files are used in place, so only changes of C++, CUDA or the build rules need a rebuild.
$(VENV)/built: $(VENV)/installed setup.py pyproject.toml fused_rnn/_version.py $(CXX_FILES)
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) $(ECOSYSTEM) $(TORCH_CUDA) $(DOCS) build dist site *.egg-info fused_rnn/_C*.so
