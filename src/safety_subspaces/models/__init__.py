"""LightningModules that train any causal language model, in full or through an adapter."""

from safety_subspaces.models.adapter import LoraSettings
from safety_subspaces.models.frozen_basis import FrozenBasisSettings
from safety_subspaces.models.preference import PreferenceOptimization
from safety_subspaces.models.supervised import SupervisedFineTuning

__all__ = ["FrozenBasisSettings", "LoraSettings", "PreferenceOptimization", "SupervisedFineTuning"]
