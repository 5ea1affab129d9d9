# make demo     run examples/index_sources.py
# make test     everything that CI runs: lint, types, documentation, then the suite on every Python here, with coverage on that of .venv
# make docs     the documentation, into build/docs
# make dist     the sdist and the wheel, into dist
# make suite    the suite on the Python of .venv alone, with coverage
# make stress   the long random histories
# make bench    measure against ThreadPoolExecutor
# make torture  thirty faults, ten ways to run work on connections: writes benchmarks/torture/README.rst
#
# Needs GNU make and Python 3.11 or newer (PYTHON=... names another); all else goes into .venv.
# TASKER_PYTHONS=path:path names more Pythons for `make test`, beside those on PATH and of pyenv.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

heading = @printf '\n==== %s ====\n' '$(1)'

.PHONY: demo test lint types docs dist suite pythons stress mutations bench torture find-python clean
.NOTPARALLEL: # The steps of `test` run in their order, and the first that fails ends it.

demo: $(VENV)/.package
	$(BIN)/python examples/index_sources.py

test: lint types docs pythons

lint: $(VENV)/.tools
	$(call heading,ruff)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.tools
	$(call heading,mypy: oldest and newest Python)
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.15
	$(call heading,pyright)
	$(BIN)/pyright --warnings
	$(call heading,pyright: each public name has a type)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pyright --verifytypes tasker_executor --ignoreexternal

docs: $(VENV)/.tools
	$(call heading,sphinx)
	rm -rf build/docs # A page of source code that is left from before lacks what was documented since.
	$(BIN)/python -m sphinx -q -W -n -d build/doctrees -b html docs build/docs
	$(BIN)/python docs/check.py build/docs

dist: $(VENV)/.tools
	$(call heading,sdist and wheel)
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*

suite: $(VENV)/.tools
	$(call heading,pytest with coverage)
	$(BIN)/pytest --cov -rsfE

pythons: $(VENV)/.tools
	$(call heading,pytest on every Python and conformance)
	$(BIN)/python tests/run_all.py

mutations: $(VENV)/.tools
	$(BIN)/python tests/mutations.py

stress: $(VENV)/.tools
	$(BIN)/pytest -m stress

bench: $(VENV)/.package
	$(BIN)/python -m benchmarks

torture: $(VENV)/.created
	$(PIP) 'pip>=25.1' # The first that knows --group.
	$(PIP) --editable . --group torture
	$(BIN)/python -m benchmarks.torture

clean:
	rm -rf .venv .venv-* .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist htmlcov
	find . -name __pycache__ -prune -exec rm -rf {} +

# Prints the first Python that will do; says what is missing if there is none.
find-python:
	@for python in $(or $(PYTHON),python3 python3.15 python3.14 python3.13 python3.12 python3.11); do \
	    "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && \
	        { echo "$$python"; exit; }; \
	done; echo 'no Python 3.11 or newer with the venv module found; name one: make PYTHON=...' >&2; exit 1

# A stamp is the last thing that its recipe writes: a step that was interrupted is done again, one that was not is not.
$(VENV)/.created:
	python=$$($(MAKE) --silent --no-print-directory find-python) && "$$python" -m venv --clear $(VENV)
	@touch $@

$(VENV)/.package: $(VENV)/.created pyproject.toml
	$(PIP) --editable .
	@touch $@

$(VENV)/.tools: $(VENV)/.created pyproject.toml
	$(PIP) 'pip>=25.1' # The first that knows --group; venv brings the one that came with Python.
	$(PIP) --editable . --group test
	@touch $(VENV)/.package $@
