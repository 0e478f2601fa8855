"""Trains cases on several ranks: every rank runs this file; rank zero writes ``results.json``."""

import gc
import json
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks import BehaviourProbe, ModelExport, RunBoard, RunRecord, WeightDeltaSnapshot
from safety_subspaces.constraint.collectives import gather_objects
from safety_subspaces.constraint.master import open_master
from support.cases import GLOBAL_BATCH, constraint_of, data_of, module_of, strategy_of
from support.stopper import StopAt
from support.tiny import trainer
from support.watching import board_of, watchers

warnings.filterwarnings("ignore")


def train(folder: Path, case: dict, devices: int, base: str, aligned: str, extra=(), **options):
    """Run one fit, and return the trainer, the module and the constraint."""
    module, constraint = module_of(case, aligned), constraint_of(case, base, aligned)
    accumulate = case.get("accumulate", 2)
    lightning = trainer(
        folder, callbacks=[constraint, ModelExport(), RunRecord(), *extra], strategy=strategy_of(case["kind"]),
        devices=devices, accumulate_grad_batches=accumulate, gradient_clip_val=case.get("clip", 0.5),
        precision=case.get("precision", "32-true"), enable_checkpointing=bool(extra),
        max_epochs=case.get("epochs", 1),
    )  # fmt: skip
    data = data_of(GLOBAL_BATCH // devices // accumulate, case.get("steps", 20))
    lightning.fit(module, datamodule=data, **options)
    return lightning, module, constraint


def working_weights(module) -> dict[str, torch.Tensor]:
    """What this rank computes with."""
    weights = {}
    for name, parameter in module.language_model.named_parameters():
        if hasattr(parameter, "ds_id"):
            import deepspeed

            with deepspeed.zero.GatheredParameters([parameter]):
                weights[name] = parameter.detach().clone()
        else:
            weights[name] = parameter.detach().clone()
    return weights


def ranks_agree(module) -> bool:
    """Whether all ranks hold the same working weights, bit for bit."""
    sums = gather_objects({name: value.float().numpy().tobytes() for name, value in working_weights(module).items()})
    return all(other == sums[0] for other in sums)


def masters(module) -> dict[str, torch.Tensor]:
    """All masters, whole."""
    return {name: open_master(p).whole().clone() for name, p in module.language_model.named_parameters()}


def straight(folder: Path, case: dict, devices: int, base: str, aligned: str) -> dict:
    """A run from start to end."""
    lightning, module, constraint = train(folder, case, devices, base, aligned)
    update = constraint.measure()
    return {"leakage": update.leakage, "floor": update.rounding_floor, "steps": lightning.global_step,
            "agree": ranks_agree(module)}  # fmt: skip


def interrupted(folder: Path, case: dict, devices: int, base: str, aligned: str) -> dict:
    """The same run whole, and stopped in the middle of an epoch and resumed."""
    ends = []
    for name, stop in (("whole", []), ("parts", [StopAt(case["stop"])]), ("parts", [])):
        saving = ModelCheckpoint(folder / name / "checkpoints", filename="{step}", every_n_train_steps=9, save_top_k=-1)
        checkpoint = folder / "parts" / "checkpoints" / f"step={case['from']}.ckpt" if name == "parts" else None
        options = {"ckpt_path": checkpoint} if checkpoint and not stop else {}
        with pytest.raises(RuntimeError, match="stopped on purpose") if stop else nullcontext():
            _, module, constraint = train(folder / name, case, devices, base, aligned, [*stop, saving], **options)
            ends.append((masters(module), constraint.measure()))
    (whole, first), (mended, second) = ends
    return {"equal": all(torch.equal(whole[name], mended[name]) for name in whole),
            "same_measure": first == second, "forbidden": first.forbidden}  # fmt: skip


def watched(folder: Path, case: dict, devices: int, base: str, aligned: str) -> dict:
    """A run without watchers, the same watched, and the same watched, stopped and resumed."""
    ends = {}
    for name, stop in (("plain", []), ("whole", []), ("parts", [StopAt(case["stop"])]), ("parts", [])):
        saving = ModelCheckpoint(folder / name / "checkpoints", filename="{step}", every_n_train_steps=4, save_top_k=-1)
        looking = [] if name == "plain" else [RunBoard(), *watchers(base, aligned), *more_watchers(folder, base)]
        options = {} if name == "plain" else board_of(folder / name)
        again = name in ends or (name == "parts" and not stop)
        checkpoint = {"ckpt_path": folder / "parts" / "checkpoints" / f"step={case['from']}.ckpt"}
        with pytest.raises(RuntimeError, match="stopped on purpose") if stop else nullcontext():
            lightning, module = fit(folder / name, case, devices, aligned, [*looking, *stop, saving], options,
                                    **(checkpoint if again else {}))  # fmt: skip
            ends[name] = masters(module)
    return {"same": all(torch.equal(value, ends["whole"][name]) for name, value in ends["plain"].items()),
            "resumed": all(torch.equal(value, ends["parts"][name]) for name, value in ends["plain"].items()),
            "agree": ranks_agree(module), "steps": lightning.global_step}  # fmt: skip


def more_watchers(folder: Path, base: str) -> list:
    """One that counts from another model, and one whose prompts differ in their refusals: unlike work on each rank."""
    ragged = {"judge": "phrases", "every_n_steps": 12, "limit": 5, "max_new_tokens": 4, "name": "ragged"}
    return [
        WeightDeltaSnapshot(12, name="base", reference=base),
        BehaviourProbe(str(folder.parent / "ragged.jsonl"), **ragged),
    ]


def fit(folder: Path, case: dict, devices: int, aligned: str, callbacks: list, trainer_options: dict, **options):
    """Run one fit without a constraint, and return the trainer and the module."""
    module = module_of(case, aligned)
    lightning = trainer(
        folder, callbacks=[*callbacks, ModelExport(), RunRecord()], strategy=strategy_of(case["kind"]), devices=devices,
        accumulate_grad_batches=2, precision=case.get("precision", "32-true"), enable_checkpointing=True,
        log_every_n_steps=4, **trainer_options,
    )  # fmt: skip
    lightning.fit(module, datamodule=data_of(GLOBAL_BATCH // devices // 2, case["steps"]), **options)
    return lightning, module


def main() -> None:
    folder = Path(sys.argv[1])
    plan = json.loads((folder / "cases.json").read_text())
    results = []
    gc.collect()
    gc.freeze()  # ZeRO-3 collects in each fit, which would walk all that was imported
    for number, case in enumerate(plan["cases"]):
        run = watched if "watched" in case else interrupted if "stop" in case else straight
        models = [str(folder / name) for name in ("base", "aligned")]
        results.append(run(folder / f"run-{number}", case, plan["devices"], *models))
    if torch.distributed.get_rank() == 0:
        (folder / "results.json").write_text(json.dumps(results))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
