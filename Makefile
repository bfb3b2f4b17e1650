# Prerequisites: Python >= 3.11, a C++17 compiler, make. Everything else is installed into local virtual environments:
#   .venv      what a user gets: fastgen without torch (make demo)
#   .venv-dev  what a developer needs: torch, the tests, lint, docs and benchmark tools
# Every target is quick the second time: stamp files remember what is installed. `make help` lists the targets.

PYTHON      ?= python3
VENV        ?= .venv
DEV_VENV    ?= .venv-dev
CONSTRAINTS ?= constraints.txt
PHOTO       ?= examples/coffee.jpg
OUT         ?= out
PYTEST_ARGS ?=

PIP_FLAGS := --disable-pip-version-check --no-input -qq
DEV       := $(DEV_VENV)/bin
CXX_FILES  = $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh')

# An editable install needs a rebuild when compiled sources or the build's configuration change, and again when a
# Python file appears or disappears (the import hook lists them at install time); edits to Python files need nothing.
BUILD_INPUTS := pyproject.toml CMakeLists.txt $(shell find csrc -type f)
FILE_LIST    := build/python-files.txt

.DEFAULT_GOAL := help
.PHONY: help demo test sanitize bench lint format docs clean distclean check-tools FORCE

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

check-tools:
	@command -v "$(PYTHON)" >/dev/null || { echo "fastgen: '$(PYTHON)' was not found; install Python >= 3.11 or name one: make $(GOAL) PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "fastgen: $(PYTHON) is $$("$(PYTHON)" -V 2>&1), but Python >= 3.11 is needed; name one: make $(GOAL) PYTHON=python3.12" >&2; exit 1; }
	@command -v "$${CXX:-c++}" >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || { echo "fastgen: no C++ compiler was found; install one (Debian/Ubuntu: apt install g++; macOS: xcode-select --install) or set CXX" >&2; exit 1; }

$(FILE_LIST): FORCE
	@mkdir -p $(@D)
	@find fastgen kernels train -name '*.py' | LC_ALL=C sort > $@.new
	@if cmp -s $@.new $@; then rm -f $@.new; else mv $@.new $@; fi

$(VENV)/bin/python $(DEV)/python:
	@$(MAKE) --no-print-directory check-tools GOAL="$(MAKECMDGOALS)"
	@"$(PYTHON)" -m venv $(@:/bin/python=) || { echo "fastgen: $(PYTHON) cannot create a virtual environment; on Debian/Ubuntu: apt install python3-venv" >&2; rm -rf $(@:/bin/python=); exit 1; }

$(VENV)/.installed: $(BUILD_INPUTS) $(FILE_LIST) | $(VENV)/bin/python
	@echo "fastgen: building the C++ engine and installing into $(VENV) (no torch) ..."
	@$(VENV)/bin/python -m pip install $(PIP_FLAGS) -e .
	@touch $@

# torch first and constrained, so that no extra can pull another build of it.
$(DEV_VENV)/.torch: $(CONSTRAINTS) | $(DEV)/python
	@echo "fastgen: installing torch into $(DEV_VENV) ..."
	@$(DEV)/python -m pip install $(PIP_FLAGS) -c $(CONSTRAINTS) torch
	@touch $@

$(DEV_VENV)/.installed: $(BUILD_INPUTS) $(FILE_LIST) $(DEV_VENV)/.torch
	@echo "fastgen: building the C++ engine and installing .[dev] (tests, lint, docs, benchmarks) into $(DEV_VENV) ..."
	@$(DEV)/python -m pip install $(PIP_FLAGS) -c $(CONSTRAINTS) -e '.[dev]'
	@touch $@

demo: $(VENV)/.installed  ## stylise the example photo with every shipped style into out/
	@$(VENV)/bin/python examples/demo.py $(PHOTO) -o $(OUT)

test: $(DEV_VENV)/.installed  ## run the whole test suite (installs torch on the first run)
	$(DEV)/python -m pytest $(PYTEST_ARGS)

sanitize: $(DEV_VENV)/.installed  ## run the tests of the C++ code with address and undefined-behaviour sanitizers
	.ci/sanitize $(DEV)/python $(PYTEST_ARGS)

bench: $(DEV_VENV)/.installed  ## measure latency against PyTorch, write benchmarks/results and docs/benchmarks.md
	$(DEV)/python -m benchmarks.run

lint: $(DEV_VENV)/.installed  ## ruff, mypy and clang-format, changing nothing
	$(DEV)/ruff check .
	$(DEV)/ruff format --check .
	$(DEV)/mypy
	$(DEV)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(DEV_VENV)/.installed  ## rewrite Python and C++ sources in the house format
	$(DEV)/ruff check --fix .
	$(DEV)/ruff format .
	$(DEV)/clang-format -i $(CXX_FILES)

docs: $(DEV_VENV)/.installed  ## build the documentation into build/docs
	$(DEV)/sphinx-build -q -W --keep-going -b html docs build/docs
	@echo "fastgen: open build/docs/index.html"

clean:  ## remove build products and out/
	rm -rf build $(OUT) .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f $(VENV)/.installed $(DEV_VENV)/.installed
	find fastgen kernels train tests benchmarks examples docs -name __pycache__ -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove both virtual environments
	rm -rf $(VENV) $(DEV_VENV)
