# Every target makes what it needs; the first one to run creates the virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: demo test lint fuzz corpus bench clean

demo: $(READY)  ## rewrite the network that ships with the package, and show before and after
	$(BIN)/ccrewrite demo

test: $(READY)  ## the tests, a few minutes
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

fuzz: $(READY)  ## 10,000 generated geometries against torch
	$(BIN)/python -m pytest -m slow tests/nn
	CCREWRITE_EXAMPLES=10000 $(BIN)/python -m pytest tests/nn/test_cc_sizes.py -k plain_convolution

corpus: .venv-corpus/.ready  ## fifteen third-party models
	.venv-corpus/bin/python -m pytest tests/corpus

bench: $(READY)  ## what rewriting costs: reports/cpu/rewrite_cost.{json,md}
	$(BIN)/python benchmarks/rewrite_cost.py

.venv-corpus/.ready: pyproject.toml constraints.txt tests/corpus/requirements.txt
	$(PYTHON) -m venv .venv-corpus
	.venv-corpus/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	.venv-corpus/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e . -r tests/corpus/requirements.txt
	touch $@

clean:
	rm -rf $(VENV) .venv-corpus

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
