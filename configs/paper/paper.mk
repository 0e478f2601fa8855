# `make paper MODEL=<model>`: the paper's runs and analyses on one of its models, one after another: each takes the GPU.
# The data's environment variables (METAMATHQA=metamathqa@<file> and so on) reach the commands as they are.
PAPER_MODELS := $(patsubst configs/paper/%/model.env,%,$(wildcard configs/paper/*/model.env))
MODEL ?=
# 1, or 8 under ZeRO-3.
GPUS ?= 1

ifneq ($(filter paper paper-%,$(MAKECMDGOALS)),)
ifeq ($(filter $(MODEL),$(PAPER_MODELS)),)
$(error MODEL='$(MODEL)' is none of the paper's models; say MODEL= one of $(PAPER_MODELS))
endif
ifeq ($(filter $(GPUS),1 8),)
$(error GPUS=$(GPUS): expected 1, or 8 for ZeRO-3)
endif
include configs/paper/$(MODEL)/model.env

# The paper's seed, unless another one is asked for: that has a study of its own.
PAPER_SEED := $(if $(filter file,$(origin SEED)),42,$(SEED))
PAPER_STUDY := $(patsubst runs/%,$(RUNS)/%,$(STUDY))$(if $(filter-out 42,$(PAPER_SEED)),-$(PAPER_SEED))
PAPER_ENVIRONMENT := BASE=$(BASE) ALIGNED=$(ALIGNED) STUDY=$(PAPER_STUDY)
# The same 32 examples a step.
PAPER_GPUS_8 := --config configs/deepspeed/gpu8_zero3_bf16.yaml --trainer.accumulate_grad_batches 4

# Stages: name of the run folder : YAML under configs/paper : what it needs beside the aligned model.
PAPER_STAGES := useful:useful: harmful:harmful: contaminated:contaminated: \
	contaminated_first:contaminated_first: useful_again:useful: harmful_again:harmful: \
	contaminated_away:contaminated_away:subspace contaminated_onto:contaminated_onto:subspace \
	contaminated_away_random:contaminated_away_random:subspace \
	contaminated_away_random_energy:contaminated_away_random_energy:subspace+contaminated
# A second seed of the same kind of fine-tune is the floor that overlaps are read against.
PAPER_FLAGS_useful_again := --data.init_args.seed $(shell echo $$((1000 + $(PAPER_SEED))))
PAPER_FLAGS_harmful_again := $(PAPER_FLAGS_useful_again)
# Analyses: subcommand : label of the result : YAML under configs/paper/analysis.
PAPER_ANALYSES := evaluate:models:evaluate project:contaminated:project overlap:weights:overlap \
	activations:states:activations

paper_subspace := $(PAPER_STUDY)/alignment.safetensors
paper_model = $(PAPER_STUDY)/$(1)/model/tokenizer_config.json
paper_result = $(PAPER_STUDY)/analysis/$(call part,$(1),1)/$(call part,$(1),2)/result.json
paper_needs = $(foreach need,$(subst +, ,$(1)),$(if $(filter subspace,$(need)),$(paper_subspace),$(call paper_model,$(need))))
PAPER_MODEL_FILES := $(foreach stage,$(PAPER_STAGES),$(call paper_model,$(call part,$(stage),1)))
PAPER_RESULTS := $(foreach analysis,$(PAPER_ANALYSES),$(call paper_result,$(analysis)))
# Of -n alone: a long option such as --no-print-directory has an n too.
is_dry_run = $(findstring n,$(filter-out --%,$(firstword -$(MAKEFLAGS))))

.PHONY: paper paper-analyses

paper: install ## The paper's experiments (MODEL=llama-3.2-1b GPUS=1); with --dry-run, its commands, memory and time
	+@$(if $(is_dry_run),$(or $(wildcard $(PYTHON)),python3) studies/estimate.py \
		configs/paper/$(MODEL)/model.env,:)
	@$(MAKE) --no-print-directory -j1 paper-analyses
	@$(PYTHON) analyze.py report --study $(PAPER_STUDY)

paper-analyses: $(PAPER_RESULTS)

$(paper_subspace): configs/paper/analysis/subspace.yaml
	@echo "alignment subspace of $(PAPER_STUDY)"
	@$(PAPER_ENVIRONMENT) $(PYTHON) analyze.py subspace --config $< --overwrite true > /dev/null
	@touch $@

# $(1) stage. Once complete it needs no checkpoint to go on from, which is as large as three models.
define paper_stage_rule
$(call paper_model,$(call part,$(1),1)): configs/paper/$(call part,$(1),2).yaml $(call paper_needs,$(call part,$(1),3))
	@echo "training $(call part,$(1),1) of $(PAPER_STUDY)"
	@$(PAPER_ENVIRONMENT) $(PYTHON) train.py fit --config $$< $(PAPER_GPUS_$(GPUS)) --seed_everything $(PAPER_SEED) \
		--run_dir $(PAPER_STUDY)/$(call part,$(1),1) --resume --archive $(PAPER_FLAGS_$(call part,$(1),1))
	@rm -rf $(PAPER_STUDY)/$(call part,$(1),1)/checkpoints
	@touch $$@
endef

# $(1) analysis
define paper_analysis_rule
$(call paper_result,$(1)): configs/paper/analysis/$(call part,$(1),3).yaml $(PAPER_MODEL_FILES)
	@echo "$(call part,$(1),1) $(call part,$(1),2) of $(PAPER_STUDY)"
	@$(PAPER_ENVIRONMENT) $(PYTHON) analyze.py $(call part,$(1),1) --config $$< --overwrite true > /dev/null
endef

$(foreach stage,$(PAPER_STAGES),$(eval $(call paper_stage_rule,$(stage))))
$(foreach analysis,$(PAPER_ANALYSES),$(eval $(call paper_analysis_rule,$(analysis))))
endif
