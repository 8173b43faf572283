# Insula's habits. `make help` lists them.
#
# The environment is .venv; with PY=python3.12 on the command line it is .venv-3.12 beside it.
# Stamps inside the environment remember what has been installed, so nothing is done twice.

ifeq ($(origin PY),command line)
  VERSION := $(shell $(PY) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  ifeq ($(VERSION),)
    $(error PY=$(PY) does not run; name a Python of 3.11 or newer)
  endif
  VENV ?= .venv-$(VERSION)
  BUILD ?= build/dev-$(VERSION)
else
  PY := $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
    $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
  VENV ?= .venv
  BUILD ?= build/dev
endif
BIN := $(VENV)/bin
PYTHON := $(BIN)/python
PIP := $(PYTHON) -m pip --disable-pip-version-check --retries 8 --timeout 60 -qq
# One build at a time in one tree, where the system can say so.
LOCK := $(shell command -v flock >/dev/null 2>&1 && echo flock build/.lock)

MODEL ?= smollm2:135m
# As typed: a dollar sign in a prompt is a dollar sign.
export INSULA_PROMPT := $(value PROMPT)
FUZZ_SECONDS ?= 60
export FUZZ_SECONDS
WORKERS ?= auto
PYTEST := $(PYTHON) -m pytest -n $(WORKERS) --dist worksteal

.PHONY: run test test-all check format bench wheel native env clean help
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'
	@echo '  with PY=python3.12 any of them uses that Python'

# --- the environment ---------------------------------------------------------------------------

$(PYTHON):
	@test -n "$(PY)" || { echo "Insula needs Python 3.11 or newer; none was found on PATH. Install one, or name it: make PY=/path/to/python3.12 …" >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PY) -V)"
	@$(PY) -m venv $(VENV)

$(VENV)/.base: pyproject.toml cmake/build_backend.py | $(PYTHON)
	@mkdir -p build
	@echo "Installing what Insula needs into $(VENV) (once; a minute or two)"
	@$(PIP) install --upgrade 'pip>=25.1'
	@$(PYTHON) cmake/build_backend.py requirements > $(VENV)/.requirements
	@$(PIP) install -r $(VENV)/.requirements
	@$(PIP) install -C wheel.cmake=false -C editable.mode=inplace -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@echo "Installing what the tests need into $(VENV) (once)"
	@$(PIP) install -C wheel.cmake=false -C editable.mode=inplace -e '.[dev]'
	@touch $@

# Torch only where a CPU build of it is at hand: the registry's own is several GB of CUDA.
$(VENV)/.oracle: $(VENV)/.dev
	@echo "Installing what the slow tests compare with into $(VENV) (once)"
	@$(PIP) install -C wheel.cmake=false -C editable.mode=inplace -e '.[dev,oracle]'
	@$(PIP) install --only-binary :all: 'torch==2.13.0+cpu' 2>/dev/null || echo "no CPU build of torch here: the tests that compare with it will say so and skip"
	@touch $@

env: $(VENV)/.oracle ## install everything that the targets below need, and stop

native: | $(VENV)/.base ## compile what changed in native/ (seconds)
	@mkdir -p build
	@$(LOCK) $(PYTHON) cmake/build_backend.py develop $(BUILD) $(QUIET)

# --- what a person does ------------------------------------------------------------------------

# Its output is the answer, so the compiler is heard only where it has something to say.
run: QUIET := --quiet
run: native ## chat with the default model; PROMPT="…" asks one question, MODEL=… takes another model
	@if [ -n "$$INSULA_PROMPT" ]; then $(BIN)/insula run $(MODEL) "$$INSULA_PROMPT"; else $(BIN)/insula run $(MODEL); fi

test: $(VENV)/.dev native ## the default tests: no network, under 5 minutes; ARGS="-k name" narrows
	@$(PYTEST) $(ARGS)

test-all: $(VENV)/.oracle native ## everything: fuzzers, cross-compiling, the wheel; under 25 minutes
	@$(PYTEST) -m "" --durations=12 $(ARGS)

check: $(VENV)/.dev native ## ruff, mypy, clang-format, import ladder, weak symbols
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@find native -name '*.cpp' -o -name '*.h' -o -name '*.inl' | xargs $(BIN)/clang-format --dry-run -Werror
	@$(PYTHON) -m pytest -q -n0 tests/test_import_ladder.py
	@$(PYTHON) cmake/check_isa_objects.py $(BUILD)

format: $(VENV)/.dev ## put everything in the form that `make check` asks for
	@$(BIN)/ruff check --fix-only --quiet . || true
	@$(BIN)/ruff format .
	@find native -name '*.cpp' -o -name '*.h' -o -name '*.inl' | xargs $(BIN)/clang-format -i

bench: $(VENV)/.dev native ## this machine against other engines, in turns, into docs/performance.md
	@$(PYTHON) bench/run.py $(ARGS)

wheel: $(VENV)/.oracle ## a wheel for this Python in dist/, for any Linux since glibc 2.28
	@$(PYTHON) cmake/make_wheel.py dist

clean: ## remove what was built; the environments and downloaded models stay
	rm -rf build dist src/insula/_native*.so src/insula/_native*.pyi
