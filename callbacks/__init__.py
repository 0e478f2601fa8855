"""Lightning callbacks, by ``class_path: callbacks.<Name>``. They decide *when*; ``safety_subspaces`` decides *what*."""

from callbacks.activation_overlap import ActivationOverlap
from callbacks.behaviour_probe import BehaviourProbe
from callbacks.model_export import ModelExport
from callbacks.run_board import RunBoard
from callbacks.run_guard import RunGuard
from callbacks.run_record import RunRecord
from callbacks.stage_progress import StageProgress
from callbacks.subspace_projection import SubspaceProjection
from callbacks.token_throughput import TokenThroughput
from callbacks.weight_delta_snapshot import WeightDeltaSnapshot

__all__ = [
    "ActivationOverlap",
    "BehaviourProbe",
    "ModelExport",
    "RunBoard",
    "RunGuard",
    "RunRecord",
    "StageProgress",
    "SubspaceProjection",
    "TokenThroughput",
    "WeightDeltaSnapshot",
]
