# Everything a person or a CI runs, each by one word. Needs: Python 3.11 or newer, g++, OpenSSL's headers; the rest
# (cmake, ninja, linters, test tools) comes from PyPI into .venv.
#
# Idea: a stamp in build/stamps says what was installed from which state of the tree, so a second run installs nothing
# and a changed source costs one incremental build (build/skbuild stays between runs).
# Rejected: an editable install, which rebuilds at import time and hides a file that the wheel forgot.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name) 2>/dev/null)))
CXX ?= g++
VENV ?= .venv
JOBS ?= $(shell nproc)
# Whether warnings of the C++ compiler are errors: ON in CI, whose compiler we know.
WERROR ?= OFF
STAMPS := build/stamps
BIN := $(VENV)/bin

sources := CMakeLists.txt pyproject.toml $(shell find src native -type f \
    \( -name '*.py' -o -name '*.pyi' -o -name '*.cpp' -o -name '*.hpp' -o -name '*.h' -o -name '*.html' \
       -o -name 'py.typed' \) -not -path 'native/test/*' 2>/dev/null)

.PHONY: help
help:
	@echo "make demo         build, install into .venv and run the demonstration"
	@echo "make test         every check: lint, types, native tests with sanitizers, pytest"
	@echo "make lint         ruff, mypy, basedpyright"
	@echo "make build        build and install into .venv (incremental)"
	@echo "make native-test  the C++ tests: plain, address+undefined, thread sanitizer"
	@echo "make stubs        write src/drust/_core.pyi from the built extension"
	@echo "make format       ruff's formatter and safe fixes, over src and tests"
	@echo "make soak         the tests that run for minutes"
	@echo "make bench        the benchmarks"
	@echo "make clean        remove build/ (make distclean: .venv too)"

# -- what the machine must have ------------------------------------------------------------------------------------
$(STAMPS)/toolchain:
	@mkdir -p $(STAMPS)
	@test -n "$(PYTHON)" || { echo "error: no python3 found; install Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "error: $(PYTHON) is older than 3.11; install Python 3.11 or say make PYTHON=/path/to/python3.11" >&2; \
	    exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	    echo "error: $(PYTHON) has no venv module; Debian/Ubuntu: apt install python3-venv" >&2; exit 1; }
	@command -v $(CXX) >/dev/null || { \
	    echo "error: no C++ compiler ($(CXX)); Debian/Ubuntu: apt install g++; Fedora: dnf install gcc-c++" >&2; exit 1; }
	@echo 'static_assert(__cplusplus > 201703L);' | $(CXX) -std=c++20 -fsyntax-only -x c++ - 2>/dev/null || { \
	    echo "error: $(CXX) does not know C++20; drust needs g++ 11 or newer" >&2; exit 1; }
	@echo '#include <openssl/evp.h>' | $(CXX) -fsyntax-only -x c++ - 2>/dev/null || { \
	    echo "error: OpenSSL's headers are missing; Debian/Ubuntu: apt install libssl-dev;" \
	         "Fedora: dnf install openssl-devel" >&2; exit 1; }
	@echo '#include <Python.h>' | $(CXX) -fsyntax-only -x c++ - \
	    -I"$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')" 2>/dev/null || { \
	    echo "error: Python's headers are missing; Debian/Ubuntu: apt install python3-dev;" \
	         "Fedora: dnf install python3-devel" >&2; exit 1; }
	@touch $@

$(BIN)/python: | $(STAMPS)/toolchain
	$(PYTHON) -m venv $(VENV)

# -- installing ----------------------------------------------------------------------------------------------------
pip := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Without build isolation nanobind keeps its path, so that cmake finds yesterday's objects still good.
install_drust = CXX="$(CXX)" CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) $(pip) install --no-build-isolation \
    --config-settings=build-dir=build/skbuild --config-settings=cmake.define.DRUST_WERROR=$(WERROR)

# setuptools and wheel are for dependencies that PyPI has as sources only: the venv's own setuptools is too old for them.
$(STAMPS)/build-tools: pyproject.toml | $(BIN)/python
	$(pip) install 'scikit-build-core>=0.10' 'nanobind>=2.4' 'numpy>=2.0' 'cmake>=3.25' 'ninja>=1.11' \
	    'setuptools>=70.1' wheel
	@touch $@

# The first install of an extra brings its dependencies; a changed source afterwards touches drust alone.
$(STAMPS)/extra-%: pyproject.toml $(STAMPS)/build-tools
	$(install_drust) '.[$*]'
	@touch $@ $(STAMPS)/installed

$(STAMPS)/installed: $(sources) $(STAMPS)/build-tools
	$(install_drust) --no-deps --force-reinstall .
	@touch $@

.PHONY: build demo bench
build: $(STAMPS)/extra-demo $(STAMPS)/installed

demo: build
	$(BIN)/drust demo

bench: $(STAMPS)/extra-dev $(STAMPS)/installed
	$(BIN)/drust bench

# -- checking ------------------------------------------------------------------------------------------------------
.PHONY: test lint native-test pytest soak
test: lint native-test pytest

lint: $(STAMPS)/extra-dev
	$(BIN)/ruff check src tests
	$(BIN)/mypy
	$(BIN)/basedpyright --pythonpath $(BIN)/python

# gcc's thread sanitizer cannot map its shadow where the kernel randomises more than 28 bits.
steady_addresses = $(shell [ "$$(cat /proc/sys/vm/mmap_rnd_bits 2>/dev/null || echo 28)" -le 28 ] || \
    { setarch -R true 2>/dev/null && echo setarch -R; })
export ASAN_OPTIONS := detect_stack_use_after_return=1:strict_string_checks=1
export UBSAN_OPTIONS := print_stacktrace=1
export TSAN_OPTIONS := halt_on_error=1:second_deadlock_stack=1

build/native-%/built: $(STAMPS)/build-tools FORCE
	$(BIN)/cmake -S . -B build/native-$* -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
	    -DDRUST_SANITIZE=$(filter-out plain,$*) -DDRUST_WERROR=$(WERROR) --log-level=WARNING
	$(BIN)/cmake --build build/native-$* -j$(JOBS)

.PHONY: FORCE
FORCE:

# Spoiled frames, shared out over JOBS processes: each begins with a seed of its own, which it prints.
FUZZ_FRAMES ?= 1000000
# Kills at random times and real clocks on shared machines: a failure is printed, and must not happen twice in a row.
run_native = $(2) $(BIN)/ctest --test-dir build/native-$(1) --output-on-failure --no-tests=error -j$(JOBS) \
    --repeat until-pass:2
run_fuzzers = for fuzzer in $$(find build/native-$(1) -maxdepth 1 -name 'fuzz_*' -type f -executable | sort); do \
    seq $(JOBS) | xargs -P $(JOBS) -I '{}' "$$fuzzer" $$(( ($(2)) / $(JOBS) + 1 )) '{}$(3)000'; done

native-test: build/native-plain/built build/native-address/built build/native-thread/built
	$(call run_native,plain,)
	$(call run_native,address,)
	$(call run_native,thread,$(steady_addresses))
	@$(call run_fuzzers,address,$(FUZZ_FRAMES))

PYTEST_ARGS ?= -n 2
pytest: $(STAMPS)/extra-dev $(STAMPS)/installed
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# What `make test` draws from seeds that are always the same, many times more of it, from a seed that is printed:
# make soak SOAK_SEED=4711 draws the same again.
SOAK_SEED := $(or $(SOAK_SEED),$(shell shuf -i 1-999999 -n 1))
SOAK_KILLS ?= 10000
SOAK_NATIVE_KILLS ?= 10000
SOAK_SWEEP_EVERY ?= 20
SOAK_LOAD_S ?= 600

soak: $(STAMPS)/extra-dev $(STAMPS)/installed build/native-plain/built build/native-address/built
	@echo "make soak SOAK_SEED=$(SOAK_SEED)"
	DRUST_TEST_SEED=$(SOAK_SEED) DRUST_TEST_ROUNDS=$(SOAK_NATIVE_KILLS) build/native-plain/test_kill_points random
	@$(call run_fuzzers,address,10 * $(FUZZ_FRAMES),$(SOAK_SEED))
	{ $(BIN)/python -m drust.testing.soak --kills $(SOAK_KILLS) --seed $(SOAK_SEED) && \
	  $(BIN)/python -m drust.testing.load --seconds $(SOAK_LOAD_S) --seed $(SOAK_SEED) && \
	  $(BIN)/python -m drust.testing.sweep --every $(SOAK_SWEEP_EVERY) \
	      --first $$(( $(SOAK_SEED) % $(SOAK_SWEEP_EVERY) )); } 2> build/soak.log || \
	    { tail -n 20 build/soak.log; echo "what the sessions printed: build/soak.log" >&2; exit 1; }
	$(BIN)/python -m pytest -m soak

# -- generated files -----------------------------------------------------------------------------------------------
# tests/test_house_stubs.py compares the committed file with what this writes.
.PHONY: stubs format clean distclean
stubs: $(STAMPS)/extra-dev $(STAMPS)/installed
	cat native/bind/stubs*.pattern > build/stubs.pattern
	$(BIN)/python -m nanobind.stubgen -q -m drust._core -p build/stubs.pattern -o src/drust/_core.pyi

format: $(STAMPS)/extra-dev
	$(BIN)/ruff check --fix --exit-zero --quiet src tests
	$(BIN)/ruff format src tests

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis

distclean: clean
	rm -rf $(VENV)
