"""LightningModules that train any causal language model, in full or through LoRA."""

from safety_subspaces.models.adapter import LoraSettings
from safety_subspaces.models.preference import PreferenceOptimization
from safety_subspaces.models.supervised import SupervisedFineTuning

__all__ = ["LoraSettings", "PreferenceOptimization", "SupervisedFineTuning"]
