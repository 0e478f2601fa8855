"""What was run: every training run with its examples, steps, time, speed, losses, status and seed."""

from typing import Final

from safety_subspaces.findings.stages import trained_stages
from safety_subspaces.report.parts.columns import Cell, counts, numbers, table_of, text
from safety_subspaces.report.parts.section import Part, Section
from safety_subspaces.report.parts.table import duration, memory

FIRST_STAGE: Final = "python train.py fit --config configs/organism/pretrain.yaml"
NOTE: Final = (
    "Examples are steps x batch size x accumulation x processes, an upper bound where a last batch was short; - where "
    "the number of processes was left to the machine."
)


def runs(part: Part) -> Section | None:
    """Show what was run, and where nothing was, the command that trains the first stage."""
    stages = trained_stages(part.studies)
    if stages.empty and (not part.is_single or part.studies.studies[0].results):
        return None  # analyses of models that were trained elsewhere
    study: dict[str, Cell] = {} if part.is_single else {"study": text("seed")}
    columns: dict[str, Cell] = {
        **study,
        "stage": text("stage"),
        "status": text("status"),
        "seed": numbers("own_seed", 0),
        "steps": counts("steps"),
        "examples": counts("examples"),
        "time": lambda row: duration(row["seconds"]),
        "tokens/s": counts("tokens_per_second"),
        "train loss": numbers("train_loss", 3),
        "val loss": numbers("val_loss", 3),
        "memory": lambda row: memory(row["memory_bytes"]),
    }
    table = table_of(stages, columns, len(study) + 2, NOTE)
    lacking = [] if len(stages) else [("No stage is in this folder.", FIRST_STAGE)]
    return Section("runs", "What was run", tables={"Every run": table}, missing=lacking, place=10)
