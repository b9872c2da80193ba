# Each target does its own set-up; a second call reuses it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := $(VENV)/.ready-peers
PYTHON312 ?= python3.12
VENV312 ?= .venv312

# Into an environment, some requirements: by uv, in less than half of pip's time; by pip, which knows its own mirrors and
# wheel folders, where uv cannot. Nothing is compiled: Python does so with what it imports.
ALL := -e '.[all,dev]'
BACKBONES := -e '.[maps,finetune,onnx]' pytest
PIP := -m pip install --quiet --no-compile --disable-pip-version-check
define install
@$(1)/bin/python $(PIP) uv && $(1)/bin/uv pip install --quiet --python $(1)/bin/python -c constraints.txt $(2) || \
  { echo "uv cannot: pip goes on"; $(1)/bin/python $(PIP) -c constraints.txt $(2); }
endef

.PHONY: help setup demo test test-torchgeo010 lint bench notebooks clean
help:
	@echo "make demo       scenes -> corpus -> encoder -> scores and map; opens with demo/report/index.html"
	@echo "make test       lint, types, layers and tests: what CI runs"
	@echo "make test-torchgeo010  backbones and tasks in torchgeo 0.10, in an environment of Python 3.12 beside"
	@echo "make bench      speed beside peers (an idle machine, please)"
	@echo "make notebooks  run the six notebooks whole, about half an hour; make test runs them small"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "geomim needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version). Try: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Setting up $(VENV): about 2 minutes and 8 GB, once."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(call install,$(VENV),$(ALL))
	@touch $@

$(PEERS): $(READY)
	$(call install,$(VENV),-e '.[bench]')
	@touch $@

setup: $(READY)

demo: $(READY)
	$(BIN)/geomim demo

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# One more process than CI has cores, since tests wait for processes of their own. Files in their order: by number of
# tests, the few long ones would come last and leave a core idle.
test: $(READY) lint
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

$(VENV312)/.ready: pyproject.toml constraints.txt
	@echo "Setting up $(VENV312): Python 3.12 and torchgeo 0.10, about 8 GB, once."
	@test -x $(VENV312)/bin/python || $(PYTHON312) -m venv $(VENV312)
	$(call install,$(VENV312),$(BACKBONES))
	@touch $@

test-torchgeo010: $(VENV312)/.ready
	$(VENV312)/bin/python -m pytest tests/finetune

bench: $(PEERS)
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script $(BENCH) || exit 1; done

notebooks: $(READY)
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=1800 notebooks

clean:
	rm -rf $(VENV) $(VENV312) build dist
