# Every target makes what it needs; the first one to run creates the virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: demo test lint fuzz reference browser corpus bench reports reports-corpus evidence clean

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

reference: $(READY)  ## DCLS layers and checkpoints against the reference package from PyPI
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r tests/reference_dcls/requirements.txt
	$(BIN)/python -m pytest tests/reference_dcls

browser: $(READY)  ## the report's page in headless Chromium; needs Debian's chromium and chromium-driver
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt selenium
	$(BIN)/python -m pytest -m browser tests/report

corpus: .venv-corpus/.ready  ## fifteen third-party models
	.venv-corpus/bin/python -m pytest -m slow tests/corpus

bench: $(READY)  ## what rewriting costs, and the layers' speed: reports/cpu, reports/cc, reports/dcls
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r tests/reference_dcls/requirements.txt
	$(BIN)/python benchmarks/rewrite_cost.py
	$(BIN)/python benchmarks/dcls_construction.py
	$(BIN)/python benchmarks/cc_speed.py

reports: $(READY)  ## the comparison report of the demo's network, and the index
	$(BIN)/python benchmarks/make_reports.py demo
	$(BIN)/python benchmarks/make_reports.py index

reports-corpus: .venv-corpus/.ready  ## those of the fifteen corpus models
	.venv-corpus/bin/python benchmarks/make_reports.py corpus

evidence: $(READY)  ## what the learned geometry gains, on digits; many minutes
	$(BIN)/python benchmarks/cc_evidence.py
	$(BIN)/python benchmarks/dcls_recovery.py
	$(BIN)/python benchmarks/dcls_sparse.py

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
