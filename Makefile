# CI runs what a developer runs: `make lint test`. `make install` needs Python 3.11 or newer and a package index.
# An environment keeps its Python; PYTHON=python3.12 chooses another.
PYTHON ?= $(shell test -x .venv/bin/python && echo .venv/bin/python || echo python3)
BIN := .venv/bin
# uv compiles nothing; the first import does, and this variable would discard the result.
unexport PYTHONDONTWRITEBYTECODE
COMPILE = env -u UV_FIND_LINKS -u UV_TORCH_BACKEND .lock/bin/uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 \
	--strip-extras --no-annotate --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock'

.PHONY: install demo test e2e attack folders conditions screenshots lint format lock schemas docs clean

# Quick if nothing changed, else it makes .venv anew.
install:
	@$(PYTHON) deploy/install.py

demo: install
	$(BIN)/ratchet demo

# Three processes on two cores, because many tests wait for brokers and child processes. Each starts with a third of the files, so
# that a file's fixtures are made once, and takes tests from a busier one when it has none left. Whole journeys, marked `long`, run
# where nothing may be left out (.ci/run), or by `pytest FILE`.
test: install
	$(BIN)/python -m pytest -q -n 3 --dist worksteal $(if $(RATCHET_TEST_NOTHING_LEFT_OUT),,-m "not long")

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/structure.py

# Take a labelled file (RATCHET_E2E_DATA, else BBC News) through init, up, feedback and a round; then kill each process.
e2e: install
	$(BIN)/python -m tests.bench.e2e_walk

# `make bench-NAME` measures, prints a table and writes bench-NAME.json; it never fails on a number.
bench-%: install
	$(BIN)/python -m tests.bench.$*

# Measure what callers without a key can cost: memory, /metrics and other callers' p99, before and during each attack.
attack: install
	$(BIN)/python -m tests.bench.attack

# Twenty folder names and two locales through the whole walk on a tiny model.
folders: install
	ONLY=$(ONLY) $(BIN)/python -m tests.bench.folders

# The second set of a server's conditions (tests/test_conditions.py): a full TMPDIR and HOME, umask 077. As root.
conditions: install
	RATCHET_TEST_CONDITIONS="nothing is usable" $(BIN)/python -m pytest -q tests/test_conditions.py

# Pictures of every page of the console in docs/images, from a tiny real project; needs Chromium.
screenshots: install
	$(BIN)/python -m tests.support.screenshots

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Pin pyproject.toml for every system and Python at once, to public builds. Pins that still fit stay; to update all of them,
# remove requirements.lock first.
lock:
	rm -rf .lock && $(PYTHON) -m venv .lock
	.lock/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $$(grep -o 'uv==[0-9.]*' pyproject.toml)
	$(COMPILE) --extra dev pyproject.toml --output-file requirements.lock
	$(COMPILE) --constraints requirements.lock deploy/package_serving/pyproject.toml --output-file deploy/serving.lock
	rm -rf .lock

# Write the JSON Schemas and the AsyncAPI document from the models (a test compares them).
schemas: install
	$(BIN)/python -m schemas.export

# Write docs/settings.md from the models, docs/rooms.md from the packages' docstrings and the other reference pages from the code
# (a test compares them), then the site.
docs: install
	$(BIN)/python -m schemas.settings_reference
	$(BIN)/python -m tests.support.reference_pages
	$(BIN)/python -m tests.support.room_pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

clean:
	rm -rf .venv .lock site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
