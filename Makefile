# Every target makes what it needs; the first one to run creates the virtual environment. `make help` lists them.
UV := $(shell command -v uv 2>/dev/null)
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: demo test lint fuzz cases reference browser train corpus onnx lowering deploy foreign gpu gpu-code bench bench-corpus reports reports-corpus evidence docs gallery release lock help clean

demo: $(READY)  ## rewrite the network that ships with the package, and show before and after
	$(BIN)/ccrewrite demo

test: $(READY)  ## the tests, a few minutes
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: $(READY)  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

fuzz: $(READY)  ## 10,000 generated geometries against torch, 2,000 generated networks; the DCLS tests without the CC family
	$(BIN)/python -m pytest -m slow tests/families tests/api tests/test_house.py
	CCREWRITE_EXAMPLES=10000 $(BIN)/python -m pytest tests/families/cc/test_cc_sizes.py -k plain_convolution

CASES = ../cases

cases: .venv-cases/.ready  ## every program of the folder CASES, which says ok or FAULT; passes where there is no such folder
	.venv-cases/bin/python .ci/cases.py $(CASES)

reference: $(READY)  ## DCLS layers and checkpoints against the reference package from PyPI
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r tests/reference_dcls/requirements.txt
	$(BIN)/python -m pytest tests/reference_dcls

browser: $(READY)  ## the report's page in headless Chromium; needs Debian's chromium and chromium-driver
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt selenium
	$(BIN)/python -m pytest -m browser tests/report

train: .venv-train/.ready  ## fine-tuning in two processes, killed and resumed, and under other trainers
	.venv-train/bin/python -m pytest -m slow tests/training

corpus: .venv-corpus/.ready  ## fifteen third-party models
	.venv-corpus/bin/python -m pytest -m slow tests/corpus

onnx: $(READY)  ## ONNX files of open internal sizes at many of them; minutes
	$(BIN)/python -m pytest -m slow tests/export

deploy: .venv-deploy/.ready  ## which runtime takes which form of a folded layer: reports/deploy
	.venv-deploy/bin/python benchmarks/deploy/deploy_runtimes.py
	.venv-deploy/bin/python -m pytest -m "browser or not slow" tests/deploy

quantize: .venv-deploy/.ready  ## int8 by the quantizers that people use: reports/deploy/int8; positions trained for it; ONNX files back to training
	.venv-deploy/bin/python benchmarks/deploy/deploy_int8.py
	.venv-deploy/bin/python benchmarks/deploy/deploy_targets.py
	.venv-deploy/bin/python -m pytest -m slow tests/deploy/test_int8.py tests/deploy/test_torch_model.py

foreign: $(READY)  ## ONNX files that others made, out of packages, rewritten: reports/deploy/foreign_files.md
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps -r benchmarks/deploy/foreign_files.txt -d build/foreign
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/deploy/foreign_files.py

page: .venv-deploy/.ready  ## build/browser: a rewritten network in the browser, its internal sizes on sliders
	.venv-deploy/bin/python examples/browser/build.py

lowering: $(READY)  ## compiled models: forms, choices, packages, folded layers; needs a C++ compiler
	$(BIN)/python -m pytest -m slow tests/lowering tests/folded tests/passes tests/plugin tests/cli

gpu:  ## on a CUDA machine with torch and triton, installing nothing: what every form computes and takes there: reports/gpu
	PYTHONPATH=. $(PYTHON) benchmarks/speed/gpu.py $(OPTIONS)

gpu-code: $(READY) .venv-triton/.ready  ## the forms' GPU code, looked at, compiled and interpreted without a GPU
	PYTHONPATH=.venv-triton $(BIN)/python -m pytest -m slow --show-capture=no tests/lowering/test_gpu_code.py

bench: $(READY)  ## what rewriting costs, and the layers' speed: reports/cpu, reports/cc, reports/dcls
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r tests/reference_dcls/requirements.txt
	$(BIN)/python benchmarks/speed/rewrite_cost.py
	$(BIN)/python benchmarks/speed/dcls_construction.py
	$(BIN)/python benchmarks/speed/cc_speed.py
	$(BIN)/python benchmarks/speed/lowering_cpu.py
	$(BIN)/python benchmarks/speed/compile_time.py $(if $(ONLY),--only '$(ONLY)')
	$(BIN)/python benchmarks/speed/moved.py $(if $(QUICK),--quick) $(if $(ONLY),--only '$(ONLY)')

bench-corpus: .venv-corpus/.ready  ## whole models compiled, and steps of fine-tuning: reports/cpu
	.venv-corpus/bin/python benchmarks/speed/lowered_models.py
	.venv-corpus/bin/python benchmarks/speed/finetune_step.py
	.venv-corpus/bin/python benchmarks/speed/verification_cost.py
	.venv-corpus/bin/python benchmarks/speed/moved.py --corpus $(if $(QUICK),--quick) $(if $(ONLY),--only '$(ONLY)')

reports: $(READY)  ## the comparison report of the demo's network, and the index; needs a C++ compiler
	$(BIN)/python benchmarks/reports/make_reports.py demo $(if $(QUICK),--quick)
	$(BIN)/python benchmarks/reports/make_reports.py index

reports-corpus: .venv-corpus/.ready  ## those of the fifteen corpus models, one on each core; needs a C++ compiler; QUICK=1, ONLY='names'
	.venv-corpus/bin/python benchmarks/reports/make_reports.py corpus $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY))

EVIDENCE = segmentation sequences denoising classification unet

evidence: $(READY)  ## what the learned geometry gains, and what forecasts say of it, on digits and photographs; two hours
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt scikit-image
	for claim in $(EVIDENCE); do $(BIN)/python benchmarks/evidence/$$claim.py || exit 1; done
	$(BIN)/python benchmarks/evidence/equal_time.py
	$(BIN)/python benchmarks/evidence/forecast.py
	$(BIN)/python benchmarks/evidence/cc_evidence.py
	$(BIN)/python benchmarks/evidence/dcls_recovery.py
	$(BIN)/python benchmarks/evidence/dcls_sparse.py

docs: .venv-docs/.ready  ## the site, built strictly: build/site/index.html
	.venv-docs/bin/python docs/site/stage.py build/pages
	PATH="$(CURDIR)/.venv-docs/bin:$$PATH" NO_COLOR=1 .venv-docs/bin/zensical build --strict --clean >build/site.log 2>&1; \
		status=$$?; cat build/site.log; test $$status -eq 0 && ! grep -q '^griffe:' build/site.log

gallery: .venv-gallery/.ready  ## the six programs of the gallery, and the site's examples that need a compiler or other libraries
	.venv-gallery/bin/python -m pytest -m slow tests/pages

release: .venv-release/.ready  ## dist/: sdist and wheel, checked, installed in an empty environment, and the demo run there
	rm -rf build/lib build/bdist.* dist .venv-empty
	.venv-release/bin/python -m build --outdir dist .
	.venv-release/bin/twine check --strict dist/*
	.venv-release/bin/python .ci/wheel.py dist
	$(PYTHON) -m venv .venv-empty
	.venv-empty/bin/pip install --quiet --disable-pip-version-check "$$(ls $(CURDIR)/dist/*.whl)[demo]"
	cd dist && ../.venv-empty/bin/ccrewrite demo

lock: pyproject.toml constraints.txt  ## dev.lock anew: every package that development installs; needs uv
	uv pip compile pyproject.toml --extra dev -c constraints.txt --universal --python-version 3.11 \
		--no-annotate --no-header --quiet --output-file dev.lock

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv-train/.ready: pyproject.toml constraints.txt tests/training/requirements.txt
	$(PYTHON) -m venv .venv-train
	.venv-train/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	.venv-train/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,report,train]' -r tests/training/requirements.txt
	touch $@

.venv-corpus/.ready: pyproject.toml constraints.txt tests/corpus/requirements.txt
	$(PYTHON) -m venv .venv-corpus
	.venv-corpus/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	.venv-corpus/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e . -r tests/corpus/requirements.txt
	touch $@

.venv-gallery/.ready: pyproject.toml constraints.txt examples/gallery/requirements.txt
	$(PYTHON) -m venv .venv-gallery
	.venv-gallery/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	.venv-gallery/bin/pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e '.[demo,onnx,report,train]' -r examples/gallery/requirements.txt
	touch $@

.venv-cases/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-cases
	.venv-cases/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	.venv-cases/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,onnx,report,train]' peft
	touch $@

.venv-deploy/.ready: pyproject.toml constraints.txt tests/deploy/requirements.txt tests/deploy/files.txt
	$(PYTHON) -m venv .venv-deploy
	.venv-deploy/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	.venv-deploy/bin/pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e '.[demo,onnx]' -r tests/deploy/requirements.txt
	.venv-deploy/bin/pip install --quiet --disable-pip-version-check --no-deps -r tests/deploy/files.txt
	.venv-deploy/bin/npm install --silent --no-save --ignore-scripts --prefix .venv-deploy onnxruntime-web@1.30.0
	touch $@

.venv-docs/.ready: docs/site/requirements.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -r docs/site/requirements.txt
	touch $@

.venv-release/.ready:
	$(PYTHON) -m venv .venv-release
	.venv-release/bin/pip install --quiet --disable-pip-version-check -c constraints.txt build twine
	touch $@

# Beside the environment, not in it: torch's build for the CPU comes without triton, and nothing else here wants it.
.venv-triton/.ready: constraints.txt | $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt --upgrade --target .venv-triton triton
	touch $@

clean:
	rm -rf $(VENV) .venv-cases .venv-train .venv-corpus .venv-deploy .venv-triton .venv-docs .venv-gallery .venv-release .venv-empty

$(READY): pyproject.toml constraints.txt dev.lock
	$(PYTHON) -m venv $(VENV)
	$(if $(UV),uv pip install --python $(BIN)/python,$(BIN)/pip install --disable-pip-version-check) --quiet -c dev.lock -e '.[dev]'
	touch $@
