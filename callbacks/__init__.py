"""Lightning callbacks, by ``class_path: callbacks.<Name>``. They decide *when*; ``safety_subspaces`` decides *what*."""

from callbacks.model_export import ModelExport
from callbacks.run_record import RunRecord
from callbacks.stage_progress import StageProgress
from callbacks.subspace_projection import SubspaceProjection
from callbacks.token_throughput import TokenThroughput

__all__ = ["ModelExport", "RunRecord", "StageProgress", "SubspaceProjection", "TokenThroughput"]
