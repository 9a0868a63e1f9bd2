# Every target sets up what it needs: a virtual environment in the checkout and, if the
# machine has no uv, uv inside it.
SHELL := /bin/sh
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3.14 python3,$(shell command -v $(p) 2>/dev/null)))
VENV := .venv
BIN := $(VENV)/bin
UV = $$(command -v uv || echo $(BIN)/uv)
INSTALL = $(UV) pip install --quiet --python $(BIN)/python --compile-bytecode
# Company networks have certificates of their own; the system knows them.
export UV_SYSTEM_CERTS ?= true
# Imports are several times slower without cached bytecode.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo session-demo demo-kubernetes test test-fast test-pythons test-busy eval check format bench bench-quick performance docs manifests lock clean

help:
	@echo "make demo    watch a real PostgreSQL break and recover   (ARGS='--fault deadlocks --serve')"
	@echo "make session-demo   Claude Code fixes a bug in two small repositories"
	@echo "make demo-kubernetes   a session in a cluster that is this machine"
	@echo "make test    run the tests                               (ARGS='-k store')"
	@echo "make test-fast     the unit tests that start no server and no program"
	@echo "make test-pythons  the unit tests on every Python of this machine"
	@echo "make test-busy     the tests twice, beside four busy loops"
	@echo "make eval    score first aid, evidence and answers on all scenarios, into docs/evaluation.md"
	@echo "make check   black, isort, flake8, mypy, import-linter, words"
	@echo "make bench   speed and memory beside the least work and other queues (ARGS='store kube')"
	@echo "make bench-quick   the same in two minutes: small, and without a verdict"
	@echo "make performance   all benchmarks, into docs/performance.md and docs/scaling.md"
	@echo "make format  rewrite the code as check wants it"
	@echo "make docs    generate pages and tables of docs/"
	@echo "make manifests  generate the CRD and deploy/manifests"
	@echo "make lock    compile the lock files again"

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "midwatch needs Python 3.11 or newer; none is on the PATH" >&2; exit 1; }
	@echo "==> creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)
	@command -v uv >/dev/null || { echo "==> installing uv into $(VENV)"; $(BIN)/python -m pip install --quiet --disable-pip-version-check uv; }

# The demo needs less than the tests do.
$(VENV)/.demo: pyproject.toml requirements.lock | $(BIN)/python
	@echo "==> installing what the demo needs"
	@$(INSTALL) --require-hashes -r requirements.lock
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: pyproject.toml requirements-dev.lock | $(BIN)/python
	@echo "==> installing what the tests and checks need"
	@$(INSTALL) --require-hashes -r requirements-dev.lock
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@ $(VENV)/.demo

# What the benchmarks run beside.
$(VENV)/.bench: requirements-bench.lock $(VENV)/.dev
	@echo "==> installing what the benchmarks need"
	@$(INSTALL) --require-hashes -r requirements-bench.lock
	@touch $@

# The page needs what the server needs.
demo: $(if $(findstring --serve,$(ARGS)),$(VENV)/.dev,$(VENV)/.demo)
	@$(BIN)/midwatch demo $(ARGS)

session-demo: $(VENV)/.dev
	@$(BIN)/midwatch session demo $(ARGS)

demo-kubernetes: $(VENV)/.dev
	@$(BIN)/python -m tests.cluster.demo $(ARGS)

test: $(VENV)/.dev
	@$(BIN)/python -m pytest -n 6 --dist worksteal $(ARGS)

test-fast: $(VENV)/.dev
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m "not integration" tests/unit $(ARGS)

test-pythons: $(VENV)/.dev
	@$(BIN)/python -m tests.pythons "$(UV)" $(ARGS)

test-busy: $(VENV)/.dev
	@$(BIN)/python -m tests.busy $(ARGS)

eval: $(VENV)/.dev
	@$(BIN)/midwatch eval --report docs/evaluation.md $(ARGS)

check: $(VENV)/.dev
	@echo "==> black" && $(BIN)/black --check --quiet src tests bench deploy tools || { echo "black would change files: make format"; exit 1; }
	@echo "==> isort" && $(BIN)/isort --check-only --quiet src tests bench deploy tools
	@echo "==> flake8" && $(BIN)/flake8 src tests bench deploy tools
	@echo "==> mypy" && $(BIN)/mypy
	@echo "==> import-linter" && $(BIN)/lint-imports
	@echo "==> words" && $(BIN)/python -m tools.words

format: $(VENV)/.dev
	@$(BIN)/isort --quiet src tests bench deploy tools
	@$(BIN)/black --quiet src tests bench deploy tools

bench: $(VENV)/.bench
	@$(BIN)/python -m bench $(ARGS)

bench-quick: $(VENV)/.bench
	@$(BIN)/python -m bench --quick $(ARGS)

# A benchmark that crashed keeps its last figures.
performance: $(VENV)/.bench
	@mkdir -p build
	@$(BIN)/python -m bench --json $(ARGS) > build/bench.json; code=$$?; $(BIN)/python -m tools.performance build/bench.json && exit $$code

docs: $(VENV)/.dev
	@$(BIN)/python -m tools.settings_page docs/settings.md
	@$(BIN)/python -m tools.tables
	@$(BIN)/python -m tools.prepared
	@$(BIN)/python -m tools.openapi docs/openapi.json

manifests: $(VENV)/.dev
	@$(BIN)/python -m deploy.render

COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate pyproject.toml

lock: $(BIN)/python
	@$(COMPILE) --extra build --extra demo -o requirements.lock
	@$(COMPILE) --all-extras -o requirements-dev.lock
	@$(subst pyproject.toml,,$(COMPILE)) --group bench -c requirements-dev.lock -o requirements-bench.lock
	@$(COMPILE) --extra build --extra sessions --extra kubernetes --extra bedrock --extra vertex --extra server --extra notify --extra mcp --extra otel --extra logs --extra mysql --extra redis --extra schedules -o requirements-image.lock

clean:
	@rm -rf $(VENV) build dist .mypy_cache .pytest_cache .import_linter_cache .hypothesis
