# Every target works in a fresh clone: what it needs is installed into .venv first.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BIN := $(CURDIR)/.venv/bin
# What is given on the command line stays one word, and is none of the shell's.
quoted = '$(subst ','\'',$(1))'
VENV_PATH := PATH="$(BIN):$$PATH"
PIP := "$(BIN)/python" -m pip --disable-pip-version-check install --quiet -c requirements.lock
CORES ?= 4
STUDY ?= workflow/paper.yaml
PAPER ?= results/paper
MINUTES ?=
WORKERS ?= 2
# One thread each: networks as small as those of the tests gain nothing from two.
PYTEST = $(VENV_PATH) OMP_NUM_THREADS=1 pytest --numprocesses $(call quoted,$(WORKERS))
SEED ?= 0
COUNT ?= 20
LOWEST ?= tests/config tests/core tests/data tests/models tests/pipelines tests/surgery tests/commands tests/test_api.py
LAMBDAS ?= 0.001 0.005 0.01 0.05 0.1
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

.PHONY: demo
demo: .venv/.installed ## Install, run all eight stages with params.yaml, show the result
	"$(BIN)/python" benchmarks/demo.py
	$(VENV_PATH) dvc repro
	$(VENV_PATH) pelap show --run results/default

.PHONY: repro
repro: .venv/.installed ## Run what params.yaml, data or code make necessary (results/default)
	$(VENV_PATH) dvc repro

.PHONY: report
report: .venv/.installed ## Bring results/default/report up to date and say where it is
	$(VENV_PATH) dvc repro report
	$(VENV_PATH) pelap show --run results/default

.PHONY: sweep
sweep: .venv/.installed ## Run data sets x seeds of workflow/config.yaml on CORES=4 (results/sweep)
	$(VENV_PATH) snakemake --cores $(call quoted,$(CORES)) all_seeds

.PHONY: study
study: .venv/.installed ## Run the controls of the collapse study on CORES=4 (results/collapse_study)
	$(VENV_PATH) snakemake --cores $(call quoted,$(CORES)) collapse_study

.PHONY: pruning-study
pruning-study: .venv/.installed ## Prune, distil and measure three seeds on CORES=4 (results/pruning_study)
	$(VENV_PATH) snakemake --cores $(call quoted,$(CORES)) pruning_study

.PHONY: choosing
choosing: .venv/.installed ## Compare ways to choose operators on CORES=4 (results/choosing)
	$(VENV_PATH) snakemake --cores $(call quoted,$(CORES)) choosing

.PHONY: tasks
tasks: .venv/.installed ## Run the tasks of workflow/config.yaml, three seeds each, on CORES=4 (results/tasks)
	$(VENV_PATH) snakemake --cores $(call quoted,$(CORES)) all_tasks

.PHONY: paper
paper: .venv/.installed ## Run STUDY=workflow/paper.yaml in pieces of MINUTES (docs/paper.md, results/paper)
	"$(BIN)/python" -m pelap paper --study $(call quoted,$(STUDY)) --root $(call quoted,$(PAPER)) \
		$(if $(MINUTES),--minutes $(call quoted,$(MINUTES))) $(if $(DATASET),--dataset $(call quoted,$(DATASET)))

.PHONY: bench
bench: .venv/.installed ## Run every benchmark, side by side with its reference (results/bench)
	"$(BIN)/python" benchmarks $(if $(DEVICE),--device $(call quoted,$(DEVICE)))

.PHONY: gpu-check
gpu-check: ## Show in eight minutes what a GPU does, with the Python that is there (results/gpu-check)
	"$(PYTHON)" benchmarks --gpu-check

.PHONY: ablation
ablation: .venv/.installed ## Compare LAMBDAS="0.001 0.005 0.01 0.05 0.1" as experiments (docs/ablation.md)
	@for value in $(foreach value,$(LAMBDAS),$(call quoted,$(value))); do \
		$(VENV_PATH) dvc exp remove --quiet "lambda-$$value" 2>/dev/null || true; \
		$(VENV_PATH) dvc exp run --queue --name "lambda-$$value" --set-param "lambda=$$value" collapse; \
	done
	$(VENV_PATH) dvc exp run --run-all
	@for variant in pelap invariant; do \
		$(VENV_PATH) dvc exp show --md --sort-by lambda --hide-workspace --drop '.*' --keep \
			"^(Experiment|$$variant[.](mean_mask|active_channels|unet_input_std|diffusion_loss|floor_ratio))$$"; \
	done
	$(VENV_PATH) dvc plots diff $(foreach value,$(LAMBDAS),$(call quoted,lambda-$(value))) --out dvc_plots \
		--targets "Mask by epoch" "Scale by epoch" "Noise loss by epoch"

.PHONY: test
test: .venv/.installed-dev ## Run the quick tests, which touch every module of pelap, WORKERS=2 at a time
	$(PYTEST) -m "not slow"

.PHONY: test-all
test-all: .venv/.installed-dev ## Run the others: whole runs, studies, pipelines of every kind
	$(PYTEST) --dist loadfile -m slow

.PHONY: test-faults
test-faults: .venv/.installed-dev ## Kill, starve and deceive every command COUNT=20 times a kind, by SEED=0 (SECURITY.md)
	$(VENV_PATH) OMP_NUM_THREADS=1 python tests/faults --seed $(call quoted,$(SEED)) --count $(call quoted,$(COUNT)) \
		$(if $(KINDS),--only $(foreach kind,$(KINDS),$(call quoted,$(kind))))

.PHONY: test-lowest
test-lowest: .venv-lowest/.installed ## Try the lowest versions that pyproject.toml allows, in .venv-lowest
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest --numprocesses $(WORKERS) -W default -m "not slow" $(LOWEST)

.PHONY: lint
lint: .venv/.installed-dev ## Check style, imports and workflow
	$(VENV_PATH) ruff check
	$(VENV_PATH) ruff format --check
	$(VENV_PATH) lint-imports
	$(VENV_PATH) snakemake --lint

.PHONY: types
types: .venv/.installed-dev ## Check types
	$(VENV_PATH) mypy

.PHONY: format
format: .venv/.installed-dev ## Format the code and mend what can be mended
	$(VENV_PATH) ruff check --fix
	$(VENV_PATH) ruff format

.PHONY: clean
clean: ## Remove caches and build products; results, data and .venv stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage build dist dvc_plots
	find . -name .venv -prune -o -name __pycache__ -prune -exec rm -rf {} +

.venv/.installed: pyproject.toml requirements.lock
	@$(if $(PYTHON),"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null,false) \
		|| { echo "PeLAP needs Python 3.11 or newer; install it, or name it: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	test -x "$(BIN)/python" || "$(PYTHON)" -m venv .venv
	$(PIP) --editable '.[study,audio]'
	@touch $@

# Warnings of versions that do not know each other are no failures there; what they come with is newer.
.venv-lowest/.installed: pyproject.toml requirements.lowest
	test -x .venv-lowest/bin/python || "$(PYTHON)" -m venv .venv-lowest
	.venv-lowest/bin/python -m pip --disable-pip-version-check install --quiet -c requirements.lowest \
		--editable '.[study,audio,text]' pytest pytest-timeout pytest-xdist
	@touch $@

.venv/.installed-dev: .venv/.installed
	$(PIP) --editable '.[dev]'
	@touch $@
