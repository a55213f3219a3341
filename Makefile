# Everything a user or a developer runs. `make` alone lists it.
PYTHON ?= python3
EXTRA ?= cpu
ONCE ?=
ARGS ?=
JOBS ?= 2
KILLS ?= 1000
SECONDS ?= 60
MINUTES ?= 10
LIFECYCLE_RUNS ?= 100
LIFECYCLE_STEPS ?= 50
VENV := .venv/bin
MKDOCS = NO_MKDOCS_2_WARNING=1 $(VENV)/mkdocs build --strict -f .ci/mkdocs.yml -d $(CURDIR)/build/docs

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test lint docs pictures format check hostile lifecycle long clients kills siege fuzz image-test clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F '\t' '{printf "  make %-10s %s\n", $$1, $$2}'

setup:  ## install everything into .venv (EXTRA=cpu, cuda or none)
	@$(PYTHON) requirements/install.py --extra $(EXTRA)

demo: setup  ## start the gateway on the demo's model and take the tour (ONCE=1: end afterwards)
	@$(VENV)/python -m app demo $(if $(filter-out 0,$(ONCE)),--once) $(ARGS)

serve: setup  ## start the gateway with your own model (settings: GATEWAY_…, or ARGS="--port 8000 …")
	@$(VENV)/python -m app serve $(ARGS)

test: setup lint  ## run every check and every test, those with the real engine too
	OMP_NUM_THREADS=1 $(VENV)/python -m pytest -n $(JOBS) --dist loadgroup $(ARGS)

lint: setup  ## formatting, style, types, import rules, dead links
	$(VENV)/ruff format --check .
	$(VENV)/ruff check .
	$(VENV)/mypy
	$(VENV)/lint-imports
	$(MKDOCS)

docs: setup  ## build the pages of docs/ as a site, into build/docs
	$(MKDOCS)

pictures: setup  ## draw the pictures in docs/: dashboard panels, from a real Prometheus, and the console
	PANEL_PICTURE=docs/images/panels.png $(VENV)/python -m pytest -q tests/dashboards/test_dashboards.py -k every_panel
	CONSOLE_PICTURES=docs/images $(VENV)/python -m pytest -q tests/console/test_demo_pictures.py

format: setup  ## put the code into its form
	$(VENV)/ruff format .
	$(VENV)/ruff check --fix .

check: setup lint  ## what takes seconds: lint, and the tests without the engine
	$(VENV)/python -m pytest -m "not engine and not slow and not long" $(ARGS)

hostile: setup  ## try every hostile input, race and fault that needs no engine, and count them
	OMP_NUM_THREADS=1 $(VENV)/python -m pytest -q -m "(hostile or ruling) and not engine" $(ARGS)

lifecycle: setup  ## any order of uploads, deletions, rollbacks, restarts, audited (LIFECYCLE_RUNS=100, LIFECYCLE_STEPS=50)
	LIFECYCLE_RUNS=$(LIFECYCLE_RUNS) LIFECYCLE_STEPS=$(LIFECYCLE_STEPS) OMP_NUM_THREADS=1 $(VENV)/python -m pytest -q tests/faults/test_lifecycle.py $(ARGS)

long: setup  ## the tests that take minutes: engines killed and hung, two engines behind one gateway, full-size references
	$(VENV)/python -m pytest -m long $(ARGS)

clients: setup  ## two turns by every client that installs here, each in an environment of its own; what does not install is said
	CLIENTS_MAY_LACK=1 OMP_NUM_THREADS=1 $(VENV)/python -m pytest -q -rs -m "" tests/clients $(ARGS)

kills: setup  ## kill a gateway a thousand times (KILLS=1000) and audit what is left after each kill
	OMP_NUM_THREADS=1 $(VENV)/python -m tests.faults.kills $(KILLS)

siege: setup  ## five hostile keys attack at once while a healthy one chats, real engine (MINUTES=10)
	OMP_NUM_THREADS=1 $(VENV)/python -m tests.faults.siege --minutes $(MINUTES) $(ARGS)

fuzz: setup  ## fuzz every parser that reads strangers' bytes, SECONDS (60) each (ARGS=header: one of them)
	$(VENV)/python -m tests.fuzz.campaign --seconds $(SECONDS) $(ARGS)

image-test: setup  ## build the images and run them, where a container engine runs (minutes)
	IMAGE_TEST=1 $(VENV)/python -m pytest -rs -s tests/images $(ARGS)

clean:  ## remove what was built (not .venv, not data)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage
	find app tests requirements -name __pycache__ -prune -exec rm -rf {} +
