"""What the tests of the watchers share: all three on a short run, and reading back what they logged."""

from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import ActivationOverlap, BehaviourProbe, RunBoard, WeightDeltaSnapshot
from callbacks.watcher import Watcher
from safety_subspaces.algebra.choices import RankRule

EVERY = 4


def watchers(base: str, aligned: str, every: int = EVERY, **snapshot: object) -> list[Watcher]:
    """All three, on few prompts and short answers."""
    subspace = {"base": base, "aligned": aligned, "rank": RankRule(fraction=0.25)}
    return [
        WeightDeltaSnapshot(every, **{**subspace, **snapshot}),
        ActivationOverlap("organism:harmful", "organism:utility", every, limit=9, per_layer=True),
        BehaviourProbe(every_n_steps=every, limit=3, max_new_tokens=6),
    ]


def board_of(folder: Path) -> dict[str, object]:
    """Options of a Trainer that logs to TensorBoard in its run folder."""
    return {"logger": TensorBoardLogger(folder, name="", version="")}


def watched(base: str, aligned: str, **snapshot: object) -> list:
    """The watchers, and what writes the rest of the board."""
    return [RunBoard(), *watchers(base, aligned, **snapshot)]


def scalars(folder: Path, timed: bool = False) -> dict[str, list[tuple[int, float]]]:
    """Every scalar that was logged, as TensorBoard shows it: tag to steps and values."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    kept = [tag for tag in events.Tags()["scalars"] if timed or not tag.startswith(("time/", "time."))]
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in kept}
    for tag, points in found.items():  # Lightning itself repeats `epoch` at the end
        assert tag == "epoch" or len({step for step, _ in points}) == len(points), f"{tag} has a step twice"
    return found
