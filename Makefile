# The commands of the project. `make help` lists them.
#
# Needs Python >= 3.11, git and make. The first command makes a virtual environment in $(VENV);
# it is installed again only when pyproject.toml or the version changed.
#
#   make test PYTHON=python3.13 VENV=.venv-3.13     another interpreter, another environment
#   make test TESTS=tests/unit PYTEST_ARGS=-x       a part of the suite
#   make test JOBS=0                                in one process, as a debugger wants it

PYTHON      ?= python3
VENV        ?= .venv
TESTS       ?= tests
PYTEST_ARGS ?=
# Half of the time tests wait, for processes to start and for deadlines: on two cores, ten at a time take five
# sixths of what six take, and leave nothing idle; twelve take as long.
JOBS        ?= 10
PARALLEL     = -n $(JOBS) --dist worksteal
SOAK_TESTS  ?= $(wildcard tests/contract tests/property tests/model tests/simulator tests/faults tests/fuzz tests/integration)
WHEEL_TESTS ?= $(wildcard tests/unit tests/contract)
COVERAGE_TESTS ?= $(wildcard tests/unit tests/property tests/contract tests/integration tests/fuzz tests/faults)
VERSIONS    ?= 3.11 3.12 3.13 3.14 3.15
EXCEPT      ?=
DEMO        ?= $(BIN)/aiotimer run -- $(BIN)/python docs/examples/train.py

BIN     := $(VENV)/bin
PACKAGE := $(VENV)/.stamp-package
TEST    := $(VENV)/.stamp-test
SERVICES := $(VENV)/.stamp-services
INTEGRATIONS := $(VENV)/.stamp-integrations
DEV     := $(VENV)/.stamp-dev
INPUTS  := pyproject.toml aiotimer/_version.py
PIP     := -m pip --disable-pip-version-check --no-input
# What a dependency group holds, a line each: pip knows groups from 25.1 on, and a new environment has an older one.
MEMBERS := import sys, tomllib; groups = tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]; \
           members = lambda name: [one for entry in groups[name] for one in \
               (members(entry["include-group"]) if isinstance(entry, dict) else [entry])]; \
           print(*(one for name in sys.argv[1:] for one in members(name)), sep="\n")
WHEEL   := build/wheel

# What is tested is what is installed, whatever the caller's shell says. The suite starts hundreds of Pythons;
# without compiled files each of them would compile the package again.
unexport PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-services test-integrations test-all test-others soak coverage check lint types docs wheel \
        bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-17s %s\n", $$1, $$2 }' Makefile

# --- environment

# $(call install,PACKAGE,GROUPS,ENVIRONMENT): a package, and what some dependency groups hold.
install = echo 'install $(1), and $(2)' && members=$$(mktemp) && $(BIN)/python -c '$(MEMBERS)' $(2) >$$members && \
	$(or $(3),$(VENV))/bin/python $(PIP) install --quiet $(1) --requirement $$members && rm -f $$members

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"{sys.executable} is older than 3.11: set PYTHON=")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(PACKAGE): $(INPUTS) | $(BIN)/python
	$(BIN)/python $(PIP) install --quiet --editable .
	@touch $@

$(TEST): $(INPUTS) | $(BIN)/python
	@$(call install,--editable .,test)
	@touch $@ $(PACKAGE)

$(SERVICES): $(INPUTS) | $(BIN)/python
	@$(call install,--editable .,test test-services)
	@touch $@ $(TEST) $(PACKAGE)

$(INTEGRATIONS): $(INPUTS) | $(BIN)/python
	@$(call install,--editable .,test test-integrations)
	@touch $@ $(TEST) $(PACKAGE)

$(DEV): $(INPUTS) | $(BIN)/python
	@$(call install,--editable .,dev)
	@touch $@ $(TEST) $(PACKAGE)

# --- use

demo: $(PACKAGE) ## watch a hung worker being reaped (needs only the package)
	$(DEMO)

bench: $(DEV) ## run the benchmarks
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

# --- test

test: $(TEST) ## run the tests
	$(BIN)/python -m pytest $(PARALLEL) $(TESTS) $(PYTEST_ARGS)

# `make test` skips those of them whose framework is not there.
test-services: JOBS := 2
test-services: $(SERVICES) ## run the recipes with the real gunicorn, uWSGI, uvicorn, Celery, Jupyter, PyInstaller
	$(BIN)/python -m pytest $(PARALLEL) tests/services $(PYTEST_ARGS)

# The same of those that need torch, which takes long to import: two at a time are as quick as six.
test-integrations: JOBS := 2
test-integrations: $(INTEGRATIONS) ## run the adapters for trainers, with the real torch (its build for the CPU)
	$(BIN)/python -m pytest $(PARALLEL) tests/trainers $(PYTEST_ARGS)

soak: $(TEST) ## run the slow tests, and the property tests with many more examples
	-@$(call install,--editable .,fuzz)
	$(BIN)/python -m pytest -m 'soak or not soak' --hypothesis-profile=soak --timeout=90000 \
	    -o faulthandler_timeout=100000 $(SOAK_TESTS) $(PYTEST_ARGS)

# Tracing makes every process slower, and some tests have a deadline of their own.
coverage: JOBS := 3
coverage: $(TEST) ## run the tests that reach every line, and see that they do
	rm -rf build/coverage && mkdir -p build/coverage
	$(BIN)/python -m coverage run -m pytest -q $(PARALLEL) $(COVERAGE_TESTS) $(PYTEST_ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report
	$(BIN)/python -m coverage report --include='aiotimer/_core/*' --fail-under=100

# An interpreter counts as found only if it starts, is that version and can make an environment:
# version managers leave shims on PATH that fail.
PROBE := import ensurepip, sys; print(sys.executable); \
         sys.exit("%d.%d" % sys.version_info[:2] != sys.argv[1])

test-all: ## run the tests with every Python of $(VERSIONS) that is installed
	@passed= failed= missing=; \
	for version in $(filter-out $(EXCEPT),$(VERSIONS)); do \
	    python=; \
	    for candidate in $$(command -v python$$version) $(PYTHON) \
	            "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$$version.*/bin/python; do \
	        if found=$$("$$candidate" -c '$(PROBE)' $$version 2>/dev/null </dev/null); then \
	            python=$$found; break; \
	        fi; \
	    done; \
	    if [ -z "$$python" ]; then missing="$$missing $$version"; continue; fi; \
	    echo "--- Python $$version: $$python"; \
	    if $(MAKE) --no-print-directory test PYTHON="$$python" VENV=.venv-$$version; \
	    then passed="$$passed $$version"; else failed="$$failed $$version"; fi; \
	done; \
	echo "passed:$${passed:- none}; failed:$${failed:- none}; not installed:$${missing:- none}"; \
	[ -z "$$failed" ] && [ -n "$$passed$(EXCEPT)" ]

THIS_VERSION := import sys; print("%d.%d" % sys.version_info[:2])

test-others: $(BIN)/python ## the same, without the version that `make test` runs on
	@$(MAKE) --no-print-directory test-all EXCEPT="$$($(BIN)/python -c '$(THIS_VERSION)')"

# --- check

check: lint types docs wheel coverage ## lint, types, docs, the wheel as installed, and coverage

lint: $(DEV) ## ruff, both of its halves
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(DEV) ## mypy --strict
	$(BIN)/mypy

docs: $(DEV) ## build the documentation; a warning is an error
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env docs build/docs

# The wheel is built from the sdist, installed alone in a new environment (so that a missing dependency
# shows), and tested from a directory that holds the tests, and what they read, but not the package.
wheel: $(DEV) ## build the wheel, install it in a fresh environment, and test that
	rm -rf $(WHEEL) && mkdir -p $(WHEEL)
	$(BIN)/python -m build --outdir $(WHEEL)/dist .
	$(BIN)/python -m venv $(WHEEL)/venv
	$(WHEEL)/venv/bin/python $(PIP) install --quiet $(WHEEL)/dist/*.whl
	cp -R .github .pre-commit-config.yaml Makefile docs tests pyproject.toml $(WHEEL)/
	cd $(WHEEL) && venv/bin/aiotimer --version
	cd $(WHEEL) && venv/bin/python -c \
	    'import aiotimer, sys; assert aiotimer.__file__.startswith(sys.prefix), aiotimer.__file__'
	@$(call install,$(WHEEL)/dist/*.whl,test,$(WHEEL)/venv)
	cd $(WHEEL) && venv/bin/python -m pytest $(PARALLEL) $(WHEEL_TESTS)

clean: ## remove environments, builds and caches
	rm -rf .venv .venv-* build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
