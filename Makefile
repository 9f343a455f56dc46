# make demo         train the example, with checkpoints        ARGS="--steps 300 --dir /tmp/run"
# make test-fast    run the quick tests, which need neither jobs nor a bucket      ARGS="-k verify"   JOBS=2
# make test         run all tests                              ARGS="tests/cli -m 'not slow'"               JOBS=2
# make test-oldest  run the tests of storage with the oldest supported versions of Orbax, JAX and others (by hand; in .venv-oldest)
# make lint         check formatting, lint rules, types, spelling, which part imports which, and the site
# make docs         build the documentation site into site/, strictly: a broken link or an undocumented public name is an error
# make format       apply formatting and the fixes that are safe
# make install      only make .venv
# make clean        remove the environments (.venv, .venv-oldest, .venv-tensorflow), caches, the site and build results
#
# Everything happens in .venv, made on first use with the first Python >= 3.11 that is found; PYTHON=/path/to/python chooses one.

SHELL := /bin/sh
VENV := .venv
OLDEST := .venv-oldest
TENSORFLOW := .venv-tensorflow
BIN := $(VENV)/bin
PYTHON ?=
JOBS ?= 2
ARGS ?=

# The tests start many processes. Where Python may not keep what it compiled, each of them compiles all of jaxckpt again.
unexport PYTHONDONTWRITEBYTECODE

# How far an installation into .venv got: each extra of pyproject.toml contains the one before. Where the mark `installing` is found,
# an installation was interrupted, nothing in .venv can be trusted, and all of it is made again.
INCLUDED_demo := demo
INCLUDED_test := demo test
INCLUDED_docs := demo docs
INCLUDED_lint := demo test docs lint
INTERRUPTED := $(if $(wildcard $(VENV)/installing),interrupted)

# What mkdocs says at every start about its next version.
export NO_MKDOCS_2_WARNING := 1

.PHONY: help demo test test-fast test-oldest lint docs format install clean interrupted
.DEFAULT_GOAL := help
# Two installations into one environment must not run at once.
.NOTPARALLEL:

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

demo: $(VENV)/installed-demo
	@$(BIN)/jaxckpt demo $(ARGS)

# worksteal: an idle worker takes tests from a busy one, so one slow file does not keep a core waiting.
# Some tests let TensorFlow write checkpoints. It lives in an environment of its own: where Flax finds TensorFlow, it imports it, and
# programs that read TensorFlow's checkpoints must not need it.
test: $(VENV)/installed-test $(TENSORFLOW)/installed
	@REQUIRE_TENSORFLOW=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-fast: $(VENV)/installed-test
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m 'not slow and not job and not bucket' \
	  --hypothesis-profile=quick $(ARGS)

# The part that depends on what the libraries do. Deprecation warnings are not errors here, because old versions are not repaired any more.
test-oldest: $(OLDEST)/installed
	@$(OLDEST)/bin/python -m pytest -n $(JOBS) --dist worksteal -W default \
	  $(or $(ARGS),tests/storage tests/test_checkpoint.py tests/restoring/test_round_trips.py)

lint: $(VENV)/installed-lint
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/basedpyright --pythonpath $(BIN)/python
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/codespell *.md *.yml Makefile pyproject.toml benchmarks configs docs jaxckpt tests
	@$(BIN)/python -m mkdocs build --strict --quiet

docs: $(VENV)/installed-docs
	@$(BIN)/python -m mkdocs build --strict
	@echo "The site: $(CURDIR)/site/index.html   (its search needs a server: python3 -m http.server -d site)"

format: $(VENV)/installed-lint
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

install: $(VENV)/installed-test

clean:
	rm -rf $(VENV) $(OLDEST) $(TENSORFLOW) site build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Sets $found to the first of the given Pythons that can make an environment.
find-python = found=; \
	for python in $(1); do \
	  if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "make: no Python >= 3.11 with venv and ensurepip found (tried: $(1))." >&2; \
	  echo "make: install one (Debian, Ubuntu: apt install python3-venv), or name it: make PYTHON=/path/to/python3.12 ..." >&2; \
	  exit 1; \
	fi

# Candidates are run, not only looked up: a name may be a shim that leads nowhere, or a Python without venv or pip.
$(VENV)/installed-%: pyproject.toml $(INTERRUPTED)
	@set -eu; \
	if [ -e $(VENV)/installing ] || ! $(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  $(call find-python,$(or $(PYTHON),python3.13 python3.12 python3.11 python3 python)); \
	  echo "Making $(VENV) with $$found"; \
	  rm -rf $(VENV); mkdir $(VENV); touch $(VENV)/installing; \
	  "$$found" -m venv $(VENV); \
	fi; \
	echo "Installing jaxckpt and its extra '$*' into $(VENV) (a minute or two, once)"; \
	touch $(VENV)/installing; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$*]'; \
	touch $(addprefix $(VENV)/installed-,$(INCLUDED_$*)); \
	rm -f $(VENV)/installing

# The oldest versions have no wheels for the newest Python. Made anew each time, so that nothing newer is left in it.
$(OLDEST)/installed: pyproject.toml .ci/oldest.txt
	@set -eu; \
	$(call find-python,$(or $(PYTHON),python3.11 python3.12)); \
	echo "Making $(OLDEST) with $$found and the oldest supported versions (a minute or two)"; \
	rm -rf $(OLDEST); \
	"$$found" -m venv $(OLDEST); \
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -c .ci/oldest.txt \
	  -e . 'flax==0.12.1' hypothesis pytest pytest-timeout pytest-xdist; \
	touch $@

# TensorFlow has no wheels for the newest Python either, and takes 2 GB.
$(TENSORFLOW)/installed: tests/from_tensorflow/requirements.txt
	@set -eu; \
	$(call find-python,$(or $(PYTHON),python3.13 python3.12 python3.11 python3 python)); \
	echo "Making $(TENSORFLOW) with $$found and TensorFlow (a minute or two, once)"; \
	rm -rf $(TENSORFLOW); \
	"$$found" -m venv $(TENSORFLOW); \
	$(TENSORFLOW)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/from_tensorflow/requirements.txt; \
	touch $@
