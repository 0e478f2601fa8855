"""Work on a list that the ranks share out: each does its part, and all get the whole."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch.distributed

from safety_subspaces.constraint.collectives import gather_objects, is_running

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_over_ranks(items: Sequence[Item], compute: Callable[[list[Item]], list[Result]]) -> list[Result]:
    """Compute a result for each item on one of the ranks, and return all of them in order, on every rank.

    Every rank gets equally many items (the last ones may repeat an item, whose result is dropped), so that collectives
    inside ``compute``, as under ZeRO-3, meet on all ranks. All ranks must call it together.

    Args:
        items: The same list on all ranks.
        compute: Results for a rank's items, in their order.
    """
    world = torch.distributed.get_world_size() if is_running() else 1
    if world == 1 or not items:
        return compute(list(items))
    rank = torch.distributed.get_rank()
    share = -(-len(items) // world)
    mine = [items[min(rank + world * index, len(items) - 1)] for index in range(share)]
    parts = gather_objects(compute(mine))
    return [parts[index % world][index // world] for index in range(len(items))]
