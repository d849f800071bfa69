# Everything a fresh clone needs: `make demo` and `make test` set up .venv by themselves, once.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
DEMO_DIR ?= demo-out
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test quick torture learn browser lint format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  (PYTHON=$(PYTHON); the first target that needs it installs into $(VENV))"

demo: $(STAMP) ## teach a small model a style, draw before and after, into demo-out/; PROMPTS="red apple; fox"
	@$(BIN)/kcache demo "$(DEMO_DIR)" --prompts "$$PROMPTS"
	@echo "To type kcache commands yourself:  . $(BIN)/activate"

test: browser lint ## everything that CI checks: lint, types, all tests, the wheel
	@echo "== pytest"
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

quick: $(STAMP) ## the tests that take seconds and need no browser
	@$(BIN)/python -m pytest -q -m "not slow and not browser and not torture"

torture: $(STAMP) ## all the kills, power failures, failing disks and damage there are, in two processes; a table at the end
	@$(BIN)/python -m pytest -v -n 2 --dist worksteal -m torture

learn: $(STAMP) ## train kandinsky-tiny's prior and UNet from noise and score them: two hours; PICTURES=the emoji
	@$(BIN)/python examples/kandinsky-tiny/learn.py --pictures "$(PICTURES)"

browser: ## see to Chromium and its driver, with which the tests open the page of kcache report
	@sh tests/get_browser.sh

lint: $(STAMP) ## ruff and mypy
	@echo "== ruff"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo "not formatted as 'make format' would"; $(BIN)/ruff format --check .; exit 1; }
	@echo "== mypy"
	@$(BIN)/mypy

format: $(STAMP) ## rewrite the files as ruff wants them
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

clean: ## remove build products; keeps .venv, caches of features, and what the demo wrote
	@rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# pip, not uv: pip's configuration decides which build of torch the pin means.
$(STAMP): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit("kcache needs Python 3.11 or newer, and this is " + sys.version.split()[0] + "; try: make PYTHON=/path/to/python3.11") if sys.version_info < (3, 11) else None'
	@echo "== setting up $(VENV) with $(PYTHON) (some minutes, once)"
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@
