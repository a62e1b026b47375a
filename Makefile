# Everything runs in .venv, which the first target that needs it makes.
# `make demo` and `make test` work from a bare clone with make and Python 3.11, 3.12 or 3.13.

# The first of them that starts: a version manager's stand-in may be on the path and refuse.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11; do \
	$$python -c '' 2>/dev/null && { echo $$python; exit; }; done; echo python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEER ?=
PEER_TIMM ?=
PEER_MAE ?=
PEER_MAE_TIMM ?=
CLIPS ?=
ENGINE ?= docker
WORKERS ?= auto
# laion-clap's NumPy 1 has no wheels for Python 3.13.
CLAP_PYTHON ?= $(shell for python in python3.12 python3.11; do \
	$$python -c '' 2>/dev/null && { echo $$python; exit; }; done; echo python3)
CLAP_VENV := .venv-clap
# Made on top of .venv: the suites alone are installed there.
SUITES_VENV := .venv-suites

.PHONY: install demo test coverage test-clap test-suites lint types format bench docs docker docker-check clean help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: $(STAMP)  ## make .venv and install peas with its tested set of packages

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else \
		f"peas needs Python 3.11 to 3.13, and {sys.executable} is {v[0]}.{v[1]}: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

$(CLAP_VENV)/.installed: pyproject.toml constraints-clap.txt
	$(CLAP_PYTHON) -m venv $(CLAP_VENV)
	$(CLAP_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-clap.txt -e '.[dev,clap,sweeps]'
	@touch $@

$(SUITES_VENV)/.installed: $(STAMP) constraints-suites.txt
	$(BIN)/python -m venv $(SUITES_VENV)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$($(SUITES_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/peas_venv.pth"
	$(SUITES_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-suites.txt xares mteb s3prl intervaltree
	@# Their own requirements: Python 3.8, NumPy 1.19 and TensorFlow.
	$(SUITES_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-suites.txt --no-deps --ignore-requires-python hearvalidator heareval
	@touch $@

demo: install  ## pretrain on sounds that it makes itself, fine-tune with PEAS, evaluate, tag a clip
	rm -rf runs/demo
	$(BIN)/peas fit --config configs/demo_pretrain.yaml --trainer.default_root_dir runs/demo/pretrain
	$(BIN)/peas fit --config configs/demo.yaml --trainer.default_root_dir runs/demo
	$(BIN)/peas test --config runs/demo/config.yaml --ckpt_path runs/demo/checkpoints/best.ckpt
	$(BIN)/peas tag runs/demo/sounds/audio/1-100000-A-0.wav --checkpoint runs/demo/checkpoints/best.ckpt --top 3
	@echo "plots:" && ls runs/demo/pretrain/plots/*.png runs/demo/plots/*.png

test: install  ## all tests on every core, in random order; WORKERS=0: one after another
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

coverage: install  ## the lines and branches that the tests reach
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --cov=peas --cov-branch --cov-report=term:skip-covered

test-clap: $(CLAP_VENV)/.installed  ## what needs laion-clap or W&B's sweeps, in .venv-clap with NumPy 1
	$(CLAP_VENV)/bin/python -m pytest -m needs_numpy1

test-suites: $(SUITES_VENV)/.installed  ## adapters against HEAR, X-ARES, MTEB and s3prl themselves, in .venv-suites
	$(SUITES_VENV)/bin/python -m pytest -m needs_suites tests/suites

docs: install  ## the documentation site, into site/; a broken link or reference fails
	$(BIN)/python -m mkdocs build --strict

lint: install  ## ruff, its format included
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install  ## mypy, strict
	$(BIN)/mypy

format: install  ## mend what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install  ## ratios on this machine; PEER=DIR, PEER_TIMM=DIR: official SSAST, its timm 0.4.5; PEER_MAE=DIR, PEER_MAE_TIMM=DIR: AudioMAE, its timm 0.3.2; CLIPS=DIR: recordings
	$(BIN)/python benchmarks/frontend.py
	$(BIN)/python benchmarks/training_step.py $(if $(PEER),--peer $(PEER)) $(if $(PEER_TIMM),--peer-timm $(PEER_TIMM))
	$(BIN)/python benchmarks/ssast_pretraining_step.py $(if $(PEER),--peer $(PEER)) $(if $(PEER_TIMM),--peer-timm $(PEER_TIMM))
	$(BIN)/python benchmarks/mae_pretraining_step.py $(if $(PEER_MAE),--peer $(PEER_MAE)) $(if $(PEER_MAE_TIMM),--peer-timm $(PEER_MAE_TIMM))
	$(BIN)/python benchmarks/peas_step.py
	$(BIN)/python benchmarks/data_scale.py $(if $(CLIPS),--clips $(CLIPS))
	$(if $(CLIPS),$(BIN)/python benchmarks/loading.py --clips $(CLIPS) $(if $(PEER_MAE),--peer $(PEER_MAE)))

docker:  ## images peas:cpu and peas:cuda; ENGINE=podman for another engine
	@command -v $(ENGINE) >/dev/null || { echo "$(ENGINE) not found: give ENGINE=podman, or try the steps with make docker-check" >&2; exit 1; }
	$(ENGINE) build --file docker/cpu.Dockerfile --tag peas:cpu .
	$(ENGINE) build --file docker/cuda.Dockerfile --tag peas:cuda .

docker-check: install  ## the images' steps in a clean Debian root, without an engine: root, debootstrap, 12 GB, minutes
	$(BIN)/python -m pytest -m container tests/integration/test_container.py

faults: install  ## kill, fill, poison and starve a run, and compare what comes of it with the unbroken one
	$(BIN)/python benchmarks/faults.py

clean:  ## remove .venv, caches and build products (runs are kept)
	rm -rf $(VENV) $(CLAP_VENV) $(SUITES_VENV) site build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
