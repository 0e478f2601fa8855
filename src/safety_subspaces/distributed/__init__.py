"""Training on several processes: DeepSpeed's ZeRO, and the float32 weights under any strategy.

Whatever reaches into DeepSpeed's internals is in this package alone, tested on deepspeed 0.19.8 with lightning 2.6.6.
"""

from safety_subspaces.distributed.collectives import gather_objects, keep_step, sum_over_ranks
from safety_subspaces.distributed.master import MasterWeight, open_master, optimizer_of, shape_of, stepped_by
from safety_subspaces.distributed.sharing import map_over_ranks
from safety_subspaces.distributed.strategy import CPUZeroStrategy, ZeroStrategy, check_strategy

__all__ = [
    "CPUZeroStrategy",
    "MasterWeight",
    "ZeroStrategy",
    "check_strategy",
    "gather_objects",
    "keep_step",
    "map_over_ranks",
    "open_master",
    "optimizer_of",
    "shape_of",
    "stepped_by",
    "sum_over_ranks",
]
