"""LightningModules that train any causal language model, in full or through an adapter."""

from safety_subspaces.training.modules.adapter import LoraSettings
from safety_subspaces.training.modules.frozen_basis import FrozenBasisSettings
from safety_subspaces.training.modules.preference import PreferenceOptimization
from safety_subspaces.training.modules.supervised import SupervisedFineTuning

__all__ = ["FrozenBasisSettings", "LoraSettings", "PreferenceOptimization", "SupervisedFineTuning"]
