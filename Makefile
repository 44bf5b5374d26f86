# What a developer runs is what CI runs: `make lint test`. `make install` needs Python 3.11+ and a package index, nothing else.
# An environment keeps the Python that it was made with; PYTHON=python3.12 chooses another.
PYTHON ?= $(shell test -x .venv/bin/python && echo .venv/bin/python || echo python3)
BIN := .venv/bin
# uv leaves compiling to the first import, which is slow when it may not be kept.
unexport PYTHONDONTWRITEBYTECODE
COMPILE = env -u UV_FIND_LINKS -u UV_TORCH_BACKEND .lock/bin/uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 \
	--strip-extras --no-annotate --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock'

.PHONY: install demo test e2e attack folders lint format lock schemas clean

# Quick where nothing changed; else it makes .venv anew.
install:
	@$(PYTHON) deploy/install.py

demo: install
	$(BIN)/ratchet demo

# Three at a time on two cores: many tests wait for brokers and child processes.
test: install
	$(BIN)/python -m pytest -q -n 3

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A labelled file (RATCHET_E2E_DATA, else BBC News) through init, up, feedback and a round; then each part is taken away.
e2e: install
	$(BIN)/python -m tests.bench.e2e_walk

# `make bench-NAME` measures, prints a table and writes bench-NAME.json; it never judges.
bench-%: install
	$(BIN)/python -m tests.bench.$*

# What callers without a key can cost: memory, /metrics and the p99 of honest callers, before and during each attack.
attack: install
	$(BIN)/python -m tests.bench.attack

# Twenty folder names through the whole walk on a tiny model.
folders: install
	$(BIN)/python -m tests.bench.folders

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Pin pyproject.toml for every system and Python at once, from the public builds alone. Pins that still fit stay; to take the newest
# of everything, remove requirements.lock first.
lock:
	rm -rf .lock && $(PYTHON) -m venv .lock
	.lock/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $$(grep -o 'uv==[0-9.]*' pyproject.toml)
	$(COMPILE) --extra dev pyproject.toml --output-file requirements.lock
	$(COMPILE) --constraints requirements.lock deploy/serving.in --output-file deploy/serving.lock
	rm -rf .lock

# Write the JSON Schemas and the AsyncAPI document from the models (a test keeps them true).
schemas: install
	$(BIN)/python -m schemas.export

clean:
	rm -rf .venv .lock .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
