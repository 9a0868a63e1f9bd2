# Every target sets up what it needs: a virtual environment in the checkout and, if the
# machine has no uv, uv inside it.
SHELL := /bin/sh
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3.14 python3,$(shell command -v $(p) 2>/dev/null)))
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
UV = $$(command -v uv || echo $(BIN)/uv)
# Imports are several times slower without cached bytecode.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test check format bench docs lock clean

help:
	@echo "make demo    watch a real PostgreSQL break and recover   (ARGS='--fault deadlocks')"
	@echo "make test    run the tests                               (ARGS='-k store')"
	@echo "make check   black, isort, flake8, mypy, import-linter"
	@echo "make bench   speed and memory, as ratios to a floor"
	@echo "make format  rewrite the code as check wants it"
	@echo "make docs    write the generated pages anew"
	@echo "make lock    compile requirements.lock anew"

$(READY): pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { echo "midwatch needs Python 3.11 or newer; none is on the PATH" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "==> creating $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV); }
	@command -v uv >/dev/null || test -x $(BIN)/uv || { echo "==> installing uv into $(VENV)"; $(BIN)/python -m pip install --quiet --disable-pip-version-check uv; }
	@echo "==> installing the locked dependencies"
	@$(UV) pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r requirements.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $(READY)

demo: $(READY)
	@$(BIN)/midwatch demo $(ARGS)

test: $(READY)
	@$(BIN)/python -m pytest -n 2 $(ARGS)

check: $(READY)
	@echo "==> black" && $(BIN)/black --check --quiet src tests bench || { echo "black would change files: make format"; exit 1; }
	@echo "==> isort" && $(BIN)/isort --check-only --quiet src tests bench
	@echo "==> flake8" && $(BIN)/flake8 src tests bench
	@echo "==> mypy" && $(BIN)/mypy
	@echo "==> import-linter" && $(BIN)/lint-imports

format: $(READY)
	@$(BIN)/isort --quiet src tests bench
	@$(BIN)/black --quiet src tests bench

bench: $(READY)
	@$(BIN)/python -m bench $(ARGS)

docs: $(READY)
	@$(BIN)/python -m midwatch.cli.reference docs/settings.md

lock: $(READY)
	@$(UV) pip compile --quiet --universal --python-version 3.11 --all-extras --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate pyproject.toml -o requirements.lock

clean:
	@rm -rf $(VENV) build dist .mypy_cache .pytest_cache .import_linter_cache .hypothesis
