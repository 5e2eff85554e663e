# make test   install into .venv and run every test
# make demo   install into .venv and run the demonstration, about 8 minutes on 2 cores
# make docs   build the documentation as a site, build/site/index.html
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find transforms networks pipeline bundles -type f -name '*.py' -o -name '*.yaml' -o -name '*.safetensors' 2>/dev/null)

.PHONY: install test demo lint docs tutorial clean

# strict: the three folders are one namespace, which a plain editable install cannot map;
# it links single files, so a new file means a new install
$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt 'setuptools>=77' wheel
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,dev,docs]' --config-settings editable_mode=strict
	touch $@

install: $(VENV)/.installed

test: install
	@command -v chromium chromium-browser >/dev/null && command -v chromedriver >/dev/null || echo "no chromium and chromedriver here: the tests of pages in a browser are skipped (Debian: apt-get install chromium chromium-driver)"
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -m '' -n auto --dist worksteal

demo: install
	$(BIN)/drr2ct demo --output outputs/demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict # not --quiet, with which warnings do not count

tutorial: install
	$(BIN)/python docs/site/run_tutorial.py

clean:
	rm -rf $(VENV) build *.egg-info
