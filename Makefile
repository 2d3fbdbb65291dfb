# Every target that needs the virtual environment depends on a stamp inside it, so nobody installs by hand and a
# second `make` installs nothing. Two stamps: running needs less than testing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev

# Only what is said to make counts: shells export HOST, and other names, for purposes of their own.
PORT := 12345
SECONDS := 600
SEED := 1
WORKERS := 4
STORE := uploads
$(foreach name,USERS RATE PLAN PHASE_SECONDS PAYLOADS PAYLOAD_DIR HOST A B PAIRS TOLERANCE SOCKET FORCE ANY_USER \
  INCLUDE_ACCEPTED,$(eval $(name) :=))
LOAD_OPTIONS = $(if $(USERS),--users '$(USERS)') $(if $(RATE),--arrival-rate '$(RATE)') $(if $(PLAN),--plan '$(PLAN)') \
  $(if $(PHASE_SECONDS),--phase-seconds '$(PHASE_SECONDS)') $(if $(PAYLOADS),--payloads '$(PAYLOADS)') \
  $(if $(PAYLOAD_DIR),--payload-dir '$(PAYLOAD_DIR)') $(if $(HOST),--host '$(HOST)')
FLAGS = $(if $(filter-out 0,$(FORCE)),--force) $(if $(filter-out 0,$(ANY_USER)),--any-user) \
  $(if $(filter-out 0,$(INCLUDE_ACCEPTED)),--include-accepted)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONSAFEPATH # or python -m does not find our packages in this folder
# Tests of a file share what it starts. More workers than cores: most of a test is waiting. What takes long comes first.
IN_PARALLEL := -n 8 --dist loadfile --no-loadscope-reorder
# Or numpy starts a thread a core in every process, and none here has work for them.
export OPENBLAS_NUM_THREADS := 1

.DEFAULT_GOAL := help
.PHONY: help install serve killport loadtest compare test test-slow soak fuzz lint bench clean

help: ## this list
	@echo "socketswarm: load-test a TCP upload server. Targets:"
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

NEW_ENOUGH = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "socketswarm needs Python 3.11 or newer; this is $$($(PYTHON) --version). Name another one: make PYTHON=python3.11 ..." >&2; exit 1; }
# What is another user's, of .venv or else of the checkout: one line, in place of pip's thirty.
THEIRS = $(shell if [ -e $(VENV) ]; then find $(VENV) ! -type l ! -user $$(id -u) ! -writable -print -quit 2>/dev/null; elif [ ! -w . ]; then pwd; fi)
OURS = $(if $(THEIRS),$(error $(shell id -un 2>/dev/null || id -u) cannot install here: $(THEIRS) belongs to $(shell stat -c %U '$(THEIRS)'). Have its owner run make, or use a checkout of your own))
# make itself would say for each stamp that it may not look.
ifneq ($(filter-out help killport clean,$(MAKECMDGOALS)),)
$(if $(shell for each in $(VENV) $(BIN); do [ ! -e $$each ] || [ -x $$each ] || echo closed; done),$(OURS))
endif

# Both, since pip comes last: a .venv that was not finished is gone on with, and nothing is ever removed.
$(BIN)/python $(BIN)/pip &:
	@$(NEW_ENOUGH)
	$(OURS)
	$(PYTHON) -m venv $(VENV) && test -x $(BIN)/python || { echo "$(VENV) cannot be set up. If it is of a Python that is gone, remove it: make clean" >&2; exit 1; }

$(RUN_STAMP): pyproject.toml constraints.txt | $(BIN)/python $(BIN)/pip
	$(OURS)
	$(BIN)/pip install --quiet --config-settings editable_mode=compat --constraint constraints.txt --editable .
	@touch $@

$(DEV_STAMP): pyproject.toml constraints.txt | $(BIN)/python $(BIN)/pip
	$(OURS)
	$(BIN)/pip install --quiet --config-settings editable_mode=compat --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(RUN_STAMP)

install: $(RUN_STAMP) ## set up .venv (every other target does this by itself)

serve: $(RUN_STAMP) ## run the upload server: PORT=12345 WORKERS=4 STORE=uploads
	@exec $(BIN)/python -m server --port '$(PORT)' --workers '$(WORKERS)' --store '$(STORE)'

# Installs nothing: it takes the standard library only.
killport: FOUND = $(shell test -x $(BIN)/python && echo $(BIN)/python)
killport: ## free what a stuck server holds: PORT=12345 or SOCKET=/PATH, FORCE=1 ANY_USER=1 INCLUDE_ACCEPTED=1
	@$(if $(FOUND),,$(NEW_ENOUGH);) exec $(or $(FOUND),$(PYTHON)) -m server.ports release $(if $(findstring command,$(origin SOCKET)),'unix://$(SOCKET)',$(or $(foreach each,$(PORT),'$(each)'),'')) $(FLAGS)

loadtest: $(RUN_STAMP) ## the main job: USERS= RATE= PLAN= PHASE_SECONDS= PAYLOADS= PAYLOAD_DIR= HOST=
	@exec $(BIN)/python -m loadtest run $(LOAD_OPTIONS)

compare: $(RUN_STAMP) ## which is better: A='--workers 1' B='--workers 2' PAIRS=20, and all of loadtest for both
	@exec $(BIN)/python -m loadtest compare --a '$(A)' --b '$(B)' $(if $(PAIRS),--pairs '$(PAIRS)') \
	  $(if $(TOLERANCE),--tolerance '$(TOLERANCE)') $(LOAD_OPTIONS)

test: $(DEV_STAMP) ## run the tests, but for the slow ones
	@exec $(BIN)/python -m pytest $(IN_PARALLEL) -m 'not slow'

test-slow: $(DEV_STAMP) ## run those that try the same thing at more moments, bytes and sockets, with more examples
	@exec $(BIN)/python -m pytest $(IN_PARALLEL) --hypothesis-profile many -m 'slow or hypothesis'

lint: $(DEV_STAMP) ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

soak: $(DEV_STAMP) ## nothing acknowledged is lost, for SECONDS=600 of kills, reloads and stops: SEED=1
	@exec env SOAK_SECONDS='$(SECONDS)' SOAK_SEED='$(SEED)' $(BIN)/python -m pytest tests/faults/test_nothing_lost.py -s -q

fuzz: $(DEV_STAMP) ## a million malformed frames through the parser, ten thousand over sockets: SEED=1
	@exec env FUZZ_PARSED=1000000 FUZZ_SENT=10000 FUZZ_SEED='$(SEED)' $(BIN)/python -m pytest tests/faults/test_fuzz.py -s -q

bench: $(DEV_STAMP) ## measure server and load (needs Debian's nginx-light, lsof, tshark and sysstat)
	$(OURS)
	$(BIN)/pip install --quiet --constraint constraints.txt uvicorn httptools
	@exec $(BIN)/python -m pytest tests/bench -s -q -p no:cacheprovider

clean: ## remove .venv and caches; uploads/ and reports/runs/ stay
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
