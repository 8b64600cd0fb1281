# make sft    fine-tune a small chat model and print its replies (the main recipe)
# make test   run the tests
# make check  lint, check the format and the types
# Each creates the environment in .venv on the first call and reuses it afterwards.

VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python

.PHONY: sft test check clean

sft: $(VENV)/.ready
	$(PY) -m recipes.chat_sft $(ARGS)

test: $(VENV)/.ready
	$(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

check: $(VENV)/.ready
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright --pythonpath $(PY)
	$(VENV)/bin/lint-imports --no-cache

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist
