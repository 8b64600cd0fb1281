# make sft    fine-tune a small chat model and print its replies (the main recipe)
# make test   run the tests
# make check  lint, check the format and the types, build the documentation
# make docs   build the documentation as a site in site/
# make matrix test with older versions of the dependencies, in environments of their own
# make dist   build the wheel and the sdist, check them and try the wheel in environments of its own
# The first four create the environment in .venv on the first call and reuse it afterwards.

VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python

.PHONY: sft test check docs matrix dist clean

sft: $(VENV)/.ready
	$(PY) -m recipes.chat_sft $(ARGS)

# With bytecode, the many processes of the tests do not compile the package again.
test: $(VENV)/.ready
	PYTHONDONTWRITEBYTECODE= $(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

check: $(VENV)/.ready
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright --pythonpath $(PY)
	$(PY) -m pyright --pythonpath $(PY) --project tests/typed
	$(VENV)/bin/lint-imports --no-cache
	$(MAKE) docs

docs: $(VENV)/.ready
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build
	@echo "to read it, with search: $(PY) -m http.server --bind 127.0.0.1 --directory site"

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

matrix:
	$(PYTHON) .ci/matrix $(ARGS)

dist:
	PYTHON=$(PYTHON) .ci/dist

clean:
	rm -rf $(VENV) build dist site
