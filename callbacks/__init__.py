"""Lightning callbacks, by ``class_path: callbacks.<Name>``. They decide *when*; ``safety_subspaces`` decides *what*."""

from .activation_overlap import ActivationOverlap
from .behaviour_probe import BehaviourProbe
from .model_export import ModelExport
from .run_board import RunBoard
from .run_guard import RunGuard
from .run_record import RunRecord
from .stage_progress import StageProgress
from .subspace_projection import SubspaceProjection
from .token_throughput import TokenThroughput
from .weight_delta_snapshot import WeightDeltaSnapshot

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
