# make test   install into .venv and run every test
# make demo   install into .venv and run the demonstration, about 8 minutes on 2 cores
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find transforms networks pipeline bundles -type f -name '*.py' -o -name '*.yaml' 2>/dev/null)

.PHONY: install test demo lint clean

# strict: the three folders are one namespace, which a plain editable install cannot map;
# it links single files, so a new file means a new install
$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt 'setuptools>=77' wheel
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,dev]' --config-settings editable_mode=strict
	touch $@

install: $(VENV)/.installed

test: install
	$(BIN)/python -m pytest -m ''

demo: install
	$(BIN)/drr2ct demo --output outputs/demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info
