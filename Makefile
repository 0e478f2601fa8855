# Two commands matter: `make demo` and `make test`. Both install what they need into .venv.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

SEED ?= 0
# `make study`: seeds of training, and ranks of the constraint as fractions of the whole.
SEEDS ?= 0 1 2
FRACTIONS ?= 0.1 0.25 0.5
RUNS ?= runs
# Workers that train and analyse side by side, one thread each: two threads hardly help one worker.
JOBS ?= 2
VENV ?= .venv
PYTHON := $(VENV)/bin/python
# Two workers of two threads each are ten times slower than two of one: they wait for each other.
OMP_NUM_THREADS ?= 1
export OMP_NUM_THREADS

# Stages: name of the run folder : YAML under configs/organism : stage it starts from : fraction of its constraint.
STAGES := base:pretrain: aligned:align:base useful:useful:aligned harmful:harmful:aligned \
	contaminated:contaminated:aligned contaminated_lora:contaminated_lora:aligned \
	useful_again:useful:aligned harmful_again:harmful:aligned
# Contaminated fine-tuning under a constraint: name and YAML : stage it needs. At the demo's fraction a run has this
# name, at another one the fraction is in it: contaminated_away-r0.1.
CONSTRAINED := contaminated_away:aligned contaminated_onto:aligned contaminated_away_random:aligned \
	contaminated_away_random_energy:contaminated
DEMO_FRACTION := 0.25
# Analyses: subcommand : label of the result : YAML under configs/organism/analysis (: fraction).
ANALYSES := evaluate:models:evaluate project:contaminated:project overlap:weights:overlap \
	trajectory:contaminated:trajectory
CONSTRAINED_ANALYSES := evaluate:constrained:constrained project:constrained:constrained_energy
# Options; $(1) is the seed. A second seed of the same kind of fine-tune is the floor that overlaps are read against.
FLAGS_useful_again = --data.init_args.seed $(shell echo $$((1000 + $(1))))
FLAGS_harmful_again = $(FLAGS_useful_again)
FLAGS_project = --seed $(1)
FLAGS_overlap = --seed $(1)
FLAGS_trajectory = --seed $(1)

comma := ,
empty :=
space := $(empty) $(empty)
part = $(word $(2),$(subst :, ,$(1)))
study = $(RUNS)/organism-$(1)
# 0.10 and .1 are one fraction and one folder.
fractions := $(shell LC_ALL=C printf '%g ' $(FRACTIONS))
suffix_of = $(if $(filter-out $(DEMO_FRACTION),$(1)),-r$(1))
# A stage is complete when its model is there; the folder gets its name in one step.
model = $(call study,$(1))/$(2)/model/tokenizer_config.json
result = $(call study,$(1))/analysis/$(call part,$(2),1)/$(call part,$(2),2)/result.json
# $(1) fraction: the same lists with the fraction in names and at the end.
constrained_at = $(foreach stage,$(CONSTRAINED),$(call part,$(stage),1)$(call suffix_of,$(1)):$(stage):$(1))
constrained_analyses_at = $(foreach analysis,$(CONSTRAINED_ANALYSES),\
	$(call part,$(analysis),1):$(call part,$(analysis),2)$(call suffix_of,$(1)):$(call part,$(analysis),3):$(1))
# $(1) seed, $(2) list: the files that show that it is done.
models = $(foreach stage,$(2),$(call model,$(1),$(call part,$(stage),1)))
results = $(foreach analysis,$(2),$(call result,$(1),$(analysis)))

.PHONY: help install demo stages analyses report study study-analyses watch test lint format

help: ## What this Makefile can do
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

install: $(VENV)/.installed ## Make .venv with what running needs

demo: install ## Train, project, evaluate and report on the embedded organism (SEED=0)
	@$(MAKE) --no-print-directory -j$(JOBS) stages
	@$(MAKE) --no-print-directory -j$(JOBS) analyses
	@$(MAKE) --no-print-directory report

stages: $(call models,$(SEED),$(STAGES) $(call constrained_at,$(DEMO_FRACTION)))

analyses: $(call results,$(SEED),$(ANALYSES) $(call constrained_analyses_at,$(DEMO_FRACTION)))

report: ## Write the study's report and print its tables
	@$(PYTHON) analyze.py report --study $(call study,$(SEED))

study: install ## The demo for several seeds and ranks, and one report over them (SEEDS="0 1 2" FRACTIONS="0.1 0.25 0.5")
	@$(MAKE) --no-print-directory -j$(JOBS) study-analyses
	@for seed in $(SEEDS); do $(MAKE) --no-print-directory report SEED=$$seed > /dev/null; done
	@$(PYTHON) analyze.py report --out $(RUNS)/study/report/index.html \
		--study '[$(subst $(space),$(comma),$(strip $(foreach seed,$(SEEDS),$(call study,$(seed)))))]'

study-analyses: $(foreach seed,$(SEEDS),$(call results,$(seed),\
	$(ANALYSES) $(foreach fraction,$(fractions),$(call constrained_analyses_at,$(fraction)))))

watch: install ## TensorBoard over all runs, at http://localhost:6006
	$(VENV)/bin/tensorboard --logdir $(RUNS)

test: $(VENV)/.installed-test ## Install and run the whole suite
	$(VENV)/bin/pytest -n $(JOBS) --dist loadfile

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

# $(1) seed, $(2) stage
define stage_rule
$(call models,$(1),$(2)): configs/organism/$(call part,$(2),2).yaml \
		$(if $(call part,$(2),3),$(call model,$(1),$(call part,$(2),3)))
	@echo "training $(call part,$(2),1), seed $(1)"
	@$(if $(call part,$(2),4),FRACTION=$(call part,$(2),4)) $(PYTHON) train.py fit --config $$< --seed_everything $(1) \
		--study $(call study,$(1)) --run_dir $(call study,$(1))/$(call part,$(2),1) \
		--resume --archive $(FLAGS_$(call part,$(2),1))
	@touch $$@
endef

# $(1) seed, $(2) analysis, $(3) stages that it reads
define analysis_rule
$(call results,$(1),$(2)): configs/organism/analysis/$(call part,$(2),3).yaml $(call models,$(1),$(3))
	@STUDY=$(call study,$(1)) $(if $(call part,$(2),4),FRACTION=$(call part,$(2),4) SUFFIX=$(call suffix_of,$(call part,$(2),4))) \
		$(PYTHON) analyze.py $(call part,$(2),1) --config $$< --out $$(@D) $(FLAGS_$(call part,$(2),1)) --overwrite true > /dev/null
endef

# $(1) seed, $(2) fraction
define constrained_rules
$(foreach stage,$(call constrained_at,$(2)),$(eval $(call stage_rule,$(1),$(stage))))
$(foreach analysis,$(call constrained_analyses_at,$(2)),$(eval \
	$(call analysis_rule,$(1),$(analysis),contaminated $(call constrained_at,$(2)))))
endef

$(foreach seed,$(sort $(SEED) $(SEEDS)),\
	$(foreach stage,$(STAGES),$(eval $(call stage_rule,$(seed),$(stage))))\
	$(foreach analysis,$(ANALYSES),$(eval $(call analysis_rule,$(seed),$(analysis),$(STAGES))))\
	$(foreach fraction,$(sort $(DEMO_FRACTION) $(fractions)),$(call constrained_rules,$(seed),$(fraction))))
