# Two commands matter: `make demo` and `make test`. Both install what they need into .venv.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

SEED ?= 0
# Workers that train and analyse side by side, one thread each: two threads hardly help one worker.
JOBS ?= 2
VENV ?= .venv
PYTHON := $(VENV)/bin/python
STUDY := runs/organism-$(SEED)
# Two workers of two threads each are ten times slower than two of one: they wait for each other.
OMP_NUM_THREADS ?= 1
export STUDY SEED OMP_NUM_THREADS

# Stages of the demo: name of the run folder : YAML under configs/organism : stage it starts from.
STAGES := base:pretrain: aligned:align:base useful:useful:aligned harmful:harmful:aligned \
	contaminated:contaminated:aligned contaminated_lora:contaminated_lora:aligned \
	useful_again:useful:aligned harmful_again:harmful:aligned
# A second seed of the same kind of fine-tune is the floor that overlaps are read against.
FLAGS_useful_again := --data.init_args.seed $(shell echo $$((1000 + $(SEED))))
FLAGS_harmful_again := $(FLAGS_useful_again)

# A stage is complete when its model is there; the folder gets its name in one step.
model = $(STUDY)/$(1)/model/tokenizer_config.json
part = $(word $(2),$(subst :, ,$(1)))
STAGE_MODELS := $(foreach stage,$(STAGES),$(call model,$(call part,$(stage),1)))
ANALYSES := $(STUDY)/analysis/evaluate/models/result.json $(STUDY)/analysis/project/contaminated/result.json \
	$(STUDY)/analysis/overlap/weights/result.json

.PHONY: help install demo stages analyses report test lint format clean-study

help: ## What this Makefile can do
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

install: $(VENV)/.installed ## Make .venv with what running needs

demo: install ## Train, project, evaluate and report on the embedded organism (SEED=0)
	@$(MAKE) --no-print-directory -j$(JOBS) stages
	@$(MAKE) --no-print-directory -j$(JOBS) analyses
	@$(MAKE) --no-print-directory report

stages: $(STAGE_MODELS)

analyses: $(ANALYSES)

report: ## Write the study's report and print its tables
	@$(PYTHON) analyze.py report --study $(STUDY)

test: $(VENV)/.installed-test ## Install and run the whole suite
	$(VENV)/bin/pytest

lint: $(VENV)/.installed-test ## ruff, mypy and the direction of the layers
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	PYTHONPATH=src $(VENV)/bin/lint-imports

format: $(VENV)/.installed-test ## Format the code
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(PYTHON):
	python3 -m venv $(VENV)

$(VENV)/.installed: requirements.txt | $(PYTHON)
	$(PYTHON) -m pip install -r requirements.txt
	@touch $@

$(VENV)/.installed-test: requirements.txt pyproject.toml | $(PYTHON)
	$(PYTHON) -m pip install -e '.[test]'
	@touch $@ $(VENV)/.installed

# $(1) stage:yaml:source
define stage_rule
$(call model,$(call part,$(1),1)): configs/organism/$(call part,$(1),2).yaml $(if $(call part,$(1),3),$(call model,$(call part,$(1),3)))
	@echo "training $(call part,$(1),1)"
	@$(PYTHON) train.py fit --config $$< --seed_everything $(SEED) --run_dir $(STUDY)/$(call part,$(1),1) \
		--resume --archive $(FLAGS_$(call part,$(1),1))
	@touch $$@
endef
$(foreach stage,$(STAGES),$(eval $(call stage_rule,$(stage))))

$(STUDY)/analysis/evaluate/models/result.json: configs/organism/analysis/evaluate.yaml $(STAGE_MODELS)
	@$(PYTHON) analyze.py evaluate --config $< --overwrite true > /dev/null

$(STUDY)/analysis/project/contaminated/result.json: configs/organism/analysis/project.yaml $(STAGE_MODELS)
	@$(PYTHON) analyze.py project --config $< --seed $(SEED) --overwrite true > /dev/null

$(STUDY)/analysis/overlap/weights/result.json: configs/organism/analysis/overlap.yaml $(STAGE_MODELS)
	@$(PYTHON) analyze.py overlap --config $< --seed $(SEED) --overwrite true > /dev/null
