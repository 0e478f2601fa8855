"""The constraint holds: measured in float64 on the trained weights, against the float32 rounding floor."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, SingleDeviceStrategy
from safetensors.torch import load_file
from support import oracle
from support.refusal import refuse
from support.stopper import StopAt
from support.tiny import ROOT, TRAIN, run_command, save_tiny_model, tiny_source, trainer

from callbacks import ModelExport, SubspaceProjection
from safety_subspaces.algebra.choices import RankRule
from safety_subspaces.algebra.factors import haar_basis
from safety_subspaces.analysis.subspace.command import subspace as make_subspace
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.constraint.matrix import MatrixConstraint, Piece, hold_all, rounding_floor, schedule_strength
from safety_subspaces.language.model import Pretrained, load_model
from safety_subspaces.organism import OrganismModel
from safety_subspaces.training.data import OrganismData
from safety_subspaces.training.modules import LoraSettings, SupervisedFineTuning
from safety_subspaces.training.strategies import CPUZeroStrategy, ZeroStrategy
from safety_subspaces.weights.subspace_file import Subspace, read_subspace, write_subspace

LORA = LoraSettings(rank=3, alpha=6.0, targets=["q_proj", "down_proj"])
FRACTION = RankRule(fraction=0.25)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A base and an aligned model of one block, unrelated."""
    folder = tmp_path_factory.mktemp("pair")
    return save_tiny_model(folder / "base", 1), save_tiny_model(folder / "aligned", 2)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1)


def train(folder: Path, aligned: str, callback: SubspaceProjection, optimizer=adamw, adapter=None, steps=20, **options):
    module = SupervisedFineTuning(Pretrained(aligned), adapter=adapter, optimizer=optimizer)
    data = OrganismData("harmful", 16 * steps, heldout_size=0)
    trainer(folder, callbacks=[callback], gradient_clip_val=1.0, **options).fit(module, datamodule=data)
    return module


def measured_leak(module, aligned: str, bases: dict, mode: str, side: str = "left") -> tuple[float, float]:
    """The oracle: whole weights in float64, full projectors, nothing of the callback's own."""
    start = dict(load_model(aligned).named_parameters())
    merged = module.language_model
    if hasattr(merged, "merge_and_unload"):
        updates = oracle.lora_updates(merged)
    else:
        updates = {name: (value.double() - start[name]).detach() for name, value in merged.named_parameters()}
    # The norms did not change from base to aligned: their subspace is empty.
    leak, whole = oracle.forbidden_energy(updates, bases, mode, side)
    weight = sum(oracle.energy(start[name].detach()) for name in updates if mode == "onto" or name in bases)
    return leak / whole, rounding_floor(weight**0.5, whole**0.5)


@pytest.mark.parametrize(
    ("mode", "optimizer", "accumulate"), [("away", sgd, 1), ("away", adamw, 2), ("onto", sgd, 2), ("onto", adamw, 1)]
)
def test_full_training_leaks_no_more_than_rounding(pair, tmp_path: Path, mode, optimizer, accumulate) -> None:
    base, aligned = pair
    callback = SubspaceProjection(base=base, aligned=aligned, rank=FRACTION, mode=mode)
    module = train(tmp_path, aligned, callback, optimizer, accumulate_grad_batches=accumulate)
    bases = read_subspace(str(tmp_path / "constraint" / "subspace.safetensors")).bases
    leak, floor = measured_leak(module, aligned, bases, mode)
    assert leak <= 10 * floor
    assert callback.measure().leakage <= 10 * floor
    assert callback.measure().whole > 1e-3  # something was learnt


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("mode", ["away", "onto"])
def test_lora_holds_on_either_side(pair, tmp_path: Path, side, mode) -> None:
    base, aligned = pair
    callback = SubspaceProjection(base=base, aligned=aligned, rank=FRACTION, mode=mode, side=side)
    module = train(tmp_path, aligned, callback, adapter=LORA)
    assert {target.name.split(".")[-2] for target in callback.targets} == set(LORA.targets)
    bases = read_subspace(str(tmp_path / "constraint" / "subspace.safetensors")).bases
    leak, _ = measured_leak(module, aligned, bases, mode, side)
    assert leak < 1e-11  # the factor starts at zero, so there is no weight whose rounding could leak


def test_an_unconstrained_run_is_the_positive_control(pair, tmp_path: Path) -> None:
    base, aligned = pair
    callback = SubspaceProjection(base=base, aligned=aligned, rank=FRACTION, mode="observe")
    module = train(tmp_path / "a", aligned, callback)
    bases = read_subspace(str(tmp_path / "a" / "constraint" / "subspace.safetensors")).bases
    leak, _ = measured_leak(module, aligned, bases, "away")
    assert leak > 0.05  # a random quarter of the directions would hold a quarter; away would remove this
    assert callback.measure().leakage == pytest.approx(leak, rel=1e-6)
    plain = SupervisedFineTuning(Pretrained(aligned), optimizer=adamw)
    trainer(tmp_path / "b", gradient_clip_val=1.0).fit(plain, datamodule=OrganismData("harmful", 320, heldout_size=0))
    observed = dict(module.language_model.named_parameters())
    assert all(torch.equal(value, observed[name]) for name, value in plain.language_model.named_parameters())


def test_constrained_training_equals_a_plain_loop(pair, tmp_path: Path) -> None:
    base, aligned = pair
    callback = SubspaceProjection(base=base, aligned=aligned, rank=FRACTION, mode="away")
    module = SupervisedFineTuning(Pretrained(aligned), optimizer=adamw)
    rates = []
    module.on_before_optimizer_step = lambda optimizer: rates.append(optimizer.param_groups[0]["lr"])
    data = OrganismData("harmful", 320, heldout_size=0)
    lightning = trainer(tmp_path, callbacks=[callback])
    lightning.fit(module, datamodule=data)
    bases = read_subspace(str(tmp_path / "constraint" / "subspace.safetensors")).bases
    model = load_model(aligned).train()
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = adamw(model.parameters())
    for rate, batch in zip(rates, data.train_dataloader(), strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        logits = model(input_ids=batch["input_ids"]).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten()).backward()
        optimizer.step()
        for name, value in model.named_parameters():
            delta = (value.data - start[name]).reshape(value.shape[0], -1)
            basis = bases.get(name, torch.zeros(delta.shape[0], 0))
            value.data = (start[name].reshape(delta.shape) + delta - basis @ (basis.T @ delta)).reshape(value.shape)
    trained = dict(module.language_model.named_parameters())
    assert all(torch.allclose(value, trained[name], atol=1e-6) for name, value in model.named_parameters())


def test_projected_gradients_leak_under_adam_and_say_so(pair, tmp_path: Path, caplog) -> None:
    base, aligned = pair
    settings = {"base": base, "aligned": aligned, "rank": FRACTION, "constrain": "gradient"}
    leaks = {}
    for optimizer in (adamw, lambda p: torch.optim.SGD(p, lr=0.05)):
        caplog.clear()
        callback = SubspaceProjection(**settings)
        train(tmp_path / str(len(leaks)), aligned, callback, optimizer)
        leaks[len(leaks)] = callback.measure().leakage
        warned = [record for record in caplog.records if "not projected updates" in record.getMessage()]
        assert len(warned) == (1 if len(leaks) == 1 else 0)
    assert leaks[0] > 0.01
    assert leaks[1] < 1e-8


def test_strength_neither_compounds_nor_jumps() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(12, 7, generator=generator)
    basis = haar_basis(12, 4, generator)
    for mode in ("away", "onto"):
        weight, expected = start.clone(), start.double().clone()
        constraint = MatrixConstraint(basis, mode, start.flatten(), Piece((12, 7), 0, 84), weakens=True)
        wide = basis.double() @ basis.double().T
        projector = wide if mode == "away" else torch.eye(12, dtype=torch.float64) - wide
        for step in range(1, 30):
            strength = schedule_strength(step, 0.8, start_step=5, ramp_steps=10)
            increment = 0.01 * torch.randn(12, 7, generator=generator)
            weight += increment
            hold_all([constraint], [weight.view(-1)], strength, list)
            expected += increment - strength * (projector @ increment.double())
        assert torch.allclose(weight.double(), expected, atol=1e-5)


def test_schedules_are_constant_linear_or_from_a_step() -> None:
    assert [schedule_strength(step, 0.5, 0, 0) for step in (1, 9)] == [0.5, 0.5]
    assert [schedule_strength(step, 1.0, 3, 0) for step in (2, 3)] == [0.0, 1.0]
    assert [schedule_strength(step, 1.0, 1, 4) for step in range(1, 6)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert [schedule_strength(step, 1.0, 0, 2) for step in (1, 2, 3)] == [0.5, 1.0, 1.0]


@pytest.mark.parametrize("start_step", [0, 1, 2, 7])
@pytest.mark.parametrize("ramp_steps", [0, 1, 2, 3, 8])
def test_a_ramp_has_its_length_wherever_it_starts(start_step, ramp_steps) -> None:
    strengths = [schedule_strength(step, 0.8, start_step, ramp_steps) for step in range(1, 25)]
    free, length = max(0, start_step - 1), max(1, ramp_steps)
    ramp = [0.8 * (index + 1) / length for index in range(length)]
    assert strengths == pytest.approx([0.0] * free + ramp + [0.8] * (24 - free - length))


@pytest.mark.parametrize("control", ["random", "random-energy"])
def test_control_subspaces_are_random_seeded_and_of_the_stated_size(pair, tmp_path: Path, control) -> None:
    base, aligned = pair
    finished = train(
        tmp_path / "free", aligned, SubspaceProjection(base=base, aligned=aligned, rank=FRACTION, mode="observe")
    )
    finished.language_model.save_pretrained(tmp_path / "finished")
    finished.tokenizer.save_pretrained(tmp_path / "finished")
    extra = {"unconstrained": str(tmp_path / "finished")} if control == "random-energy" else {}
    runs = []
    for number, seed in enumerate((0, 0, 1)):
        settings = {"base": base, "aligned": aligned, "rank": FRACTION, "control": control, "seed": seed}
        callback = SubspaceProjection(**settings, **extra)
        train(tmp_path / str(number), aligned, callback, steps=2)
        runs.append({target.name: target.basis for target in callback.targets})
        assert callback.measure().leakage <= 10 * callback.measure().rounding_floor
    top = read_subspace(str(tmp_path / "0" / "constraint" / "subspace.safetensors")).bases
    for name, basis in runs[0].items():
        assert torch.equal(basis, runs[1][name])
        assert basis.shape[1] == 0 or not torch.equal(basis, runs[2][name])
        if control == "random":
            assert basis.shape == top[name].shape
    if control == "random-energy":
        kept = json.loads((tmp_path / "0" / "constraint" / "control.json").read_text())
        start, end = load_file(Path(aligned) / "model.safetensors"), load_file(tmp_path / "finished/model.safetensors")
        for name, bases in (("subspace_energy", top), ("control_energy", runs[0])):
            inside = whole = 0.0
            for tensor, basis in bases.items():
                delta = (end[tensor].double() - start[tensor].double()).reshape(len(basis), -1)
                inside += float((basis.double().T @ delta).square().sum())
                whole += float(delta.square().sum())
            assert kept[name] == pytest.approx(inside / whole, rel=1e-6)
        assert kept["control_energy"] == pytest.approx(kept["subspace_energy"], abs=0.1)


def test_a_resumed_run_keeps_its_first_anchor_and_goes_on_with_its_ramp(pair, tmp_path: Path) -> None:
    base, aligned = pair
    settings = {"base": base, "aligned": aligned, "rank": FRACTION, "start_step": 0, "ramp_steps": 12}

    def run(folder: Path, stop: list, resume: Path | None = None):
        callback = SubspaceProjection(**settings)
        module = SupervisedFineTuning(Pretrained(aligned), optimizer=adamw)
        saving = ModelCheckpoint(folder / "checkpoints", filename="{step}", every_n_train_steps=9, save_top_k=-1)
        lightning = trainer(folder, callbacks=[callback, *stop, saving], enable_checkpointing=True)
        lightning.fit(module, datamodule=OrganismData("harmful", 320, heldout_size=0), ckpt_path=resume)
        return dict(module.language_model.named_parameters()), callback

    whole, first = run(tmp_path / "whole", [])
    with pytest.raises(RuntimeError, match="stopped on purpose"):
        run(tmp_path / "parts", [StopAt(13)])
    checkpoint = tmp_path / "parts" / "checkpoints" / "step=9.ckpt"
    mended, second = run(tmp_path / "parts", [], checkpoint)
    assert all(torch.equal(value, mended[name]) for name, value in whole.items())
    assert first.measure() == second.measure()
    assert first.measure().forbidden > 0  # what the first steps let through stays
    reference = tmp_path / "parts" / "constraint" / "held-away.safetensors"
    reference.write_bytes(reference.read_bytes() + b" ")
    with pytest.raises(InputError, match="is not the file that this run started with"):
        run(tmp_path / "parts", [], checkpoint)


@pytest.mark.distributed
def test_two_processes_hold_the_constraint_and_agree(pair, tmp_path: Path) -> None:
    base, aligned = pair
    done = run_command(
        TRAIN, "fit", "--config", ROOT / "configs" / "organism" / "harmful.yaml", f"--run_dir={tmp_path / 'run'}",
        f"--model.init_args.source.init_args.path={aligned}", "--data.init_args.size=160",
        "--data.init_args.heldout_size=4", "--data.init_args.batch_size=8", "--trainer.devices=2",
        "--trainer.strategy=ddp", "--trainer.callbacks+=callbacks.SubspaceProjection",
        f"--trainer.callbacks.base={base}", f"--trainer.callbacks.aligned={aligned}",
        "--trainer.callbacks.rank.fraction=0.25", "--trainer.callbacks.mode=onto",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = json.loads((tmp_path / "run" / "manifest.json").read_text())["metrics"]
    trained, start = (load_file(Path(folder) / "model.safetensors") for folder in (tmp_path / "run" / "model", aligned))
    bases = read_subspace(str(tmp_path / "run" / "constraint" / "subspace.safetensors")).bases
    updates = {name: value.double() - start[name].double() for name, value in trained.items()}
    leak, whole = oracle.forbidden_energy(updates, bases, "onto")
    weight = sum(map(oracle.energy, trained.values()))
    assert leak / whole <= 10 * rounding_floor(weight**0.5, whole**0.5)
    assert metrics["projection/leakage"] == pytest.approx(leak / whole, rel=0.5)
    assert metrics["time/projection_ms"] > 0


def test_bad_constraints_are_refused_before_the_first_step(pair, tmp_path: Path) -> None:
    base, aligned = pair
    good = {"base": base, "aligned": aligned, "rank": FRACTION}

    def fit(**changes):
        return lambda: train(tmp_path / "x", aligned, SubspaceProjection(**{**good, **changes}), steps=1)

    refuse(lambda: SubspaceProjection(base=base), "either a subspace file, or all of base")
    refuse(lambda: SubspaceProjection(**good, strength=2.0), "strength 2")
    refuse(lambda: SubspaceProjection(**good, control="random-energy"), "go together")
    refuse(fit(patterns=["*nothing*"]), "pattern '.*nothing.*' matches no tensor")
    refuse(fit(layers=[7]), "layer 7 matches no tensor")
    refuse(fit(start_step=2), "start_step 2 lies behind the last of 1 steps")
    refuse(fit(rank=RankRule(count=16)), "whole|rank of 0 or|constrains nothing or all")
    refuse(fit(base=None, aligned=None, rank=None, subspace=str(tmp_path / "no.safetensors")), "does not exist")
    crooked = tmp_path / "crooked.safetensors"
    name = "model.layers.0.mlp.up_proj.weight"
    write_subspace(crooked, Subspace({name: torch.ones(32, 2)}, {}, "left", {}))
    refuse(fit(base=None, aligned=None, rank=None, subspace=str(crooked)), "not orthonormal")
    other = tmp_path / "other.safetensors"
    write_subspace(other, Subspace({name: torch.eye(24)[:, :2]}, {}, "left", {}))
    refuse(fit(base=None, aligned=None, rank=None, subspace=str(other)), "has 32 rows on the left, its basis 24")
    write_subspace(other, Subspace({"model.other.weight": torch.eye(24)[:, :2]}, {}, "left", {}))
    refuse(fit(base=None, aligned=None, rank=None, subspace=str(other)), "1 tensors that the model lacks")
    frozen = {"patterns": ["*up_proj*"]}
    refuse(lambda: train(tmp_path / "y", aligned, SubspaceProjection(**good, **frozen), adapter=LORA), "frozen tensors")
    module = SupervisedFineTuning(Pretrained(aligned))
    twice = [SubspaceProjection(**good), SubspaceProjection(**good, types=["q"])]
    data = OrganismData("harmful", 16, heldout_size=0)
    refuse(lambda: trainer(tmp_path / "z", callbacks=twice).fit(module, datamodule=data), "under two constraints")
    narrow = trainer(tmp_path / "w", callbacks=[SubspaceProjection(**good)], precision="bf16-true")
    refuse(lambda: narrow.fit(SupervisedFineTuning(tiny_source()), datamodule=data), "precision bf16-true")


def test_strategies_and_precisions_that_cannot_be_held_are_refused(pair, tmp_path: Path) -> None:
    base, aligned = pair
    callback = SubspaceProjection(base=base, aligned=aligned, rank=FRACTION)
    module = SupervisedFineTuning(Pretrained(aligned))

    def setup(strategy, precision="32-true"):
        return lambda: callback.setup(SimpleNamespace(strategy=strategy, precision=precision), module, "fit")

    setup(CPUZeroStrategy(2), "bf16-true")()  # held there: float32 masters
    refuse(setup(DeepSpeedStrategy(stage=2)), "divides the loss twice")
    refuse(setup(ZeroStrategy(3, offload_optimizer=True)), "offload")
    refuse(setup(ZeroStrategy(3, offload_parameters=True)), "offload")
    refuse(setup(FSDPStrategy()), "shards the weights in another way")
    refuse(setup(SingleDeviceStrategy(), "16-mixed"), "precision 16-mixed")
    refuse(setup(SingleDeviceStrategy(), "16-true"), "precision 16-true")
    refuse(setup(CPUZeroStrategy(2), "16-mixed"), "precision 16-mixed")
    refuse(lambda: ZeroStrategy(0), "ZeRO stage 0")
    refuse(lambda: ModelExport().setup(SimpleNamespace(strategy=FSDPStrategy()), module, "fit"), "ModelExport gathers")


def test_models_and_constraints_that_contradict_each_other_are_refused(pair, tmp_path: Path) -> None:
    base, aligned = pair
    good = {"base": base, "aligned": aligned, "rank": FRACTION}
    wider = save_wider_model(tmp_path / "wider")
    data = OrganismData("harmful", 16, heldout_size=0)
    refuse(lambda: train(tmp_path / "a", aligned, SubspaceProjection(**{**good, "base": wider}), steps=1), "wider")
    # Bases of another model, both of its checkpoints alike, do not fit the one that is trained.
    foreign = SubspaceProjection(base=save_wider_model(tmp_path / "more", seed=1), aligned=wider, rank=FRACTION)
    refuse(lambda: train(tmp_path / "b", aligned, foreign, steps=1), "does not fit the model: .*rows on the left")
    both = [SubspaceProjection(**good, mode="away"), SubspaceProjection(**good, mode="onto")]
    module = SupervisedFineTuning(Pretrained(aligned))
    refuse(lambda: trainer(tmp_path / "c", callbacks=both).fit(module, datamodule=data), "under two constraints")
    watching = [SubspaceProjection(**good, mode="away"), SubspaceProjection(**good, mode="observe")]
    trainer(tmp_path / "d", callbacks=watching).fit(SupervisedFineTuning(Pretrained(aligned)), datamodule=data)
    assert watching[1].measure().leakage == pytest.approx(watching[0].measure().leakage, rel=1e-6)


def save_wider_model(folder: Path, seed: int = 0) -> str:
    source = OrganismModel(seed=seed, hidden_size=24, intermediate_size=32, layers=1, heads=2)
    source.load_model().save_pretrained(folder)
    source.load_tokenizer().save_pretrained(folder)
    return str(folder)


def test_two_constraints_on_different_tensors_keep_their_own_files(pair, tmp_path: Path) -> None:
    base, aligned = pair
    good = {"base": base, "aligned": aligned, "rank": FRACTION}
    both = [SubspaceProjection(**good, types=["q"]), SubspaceProjection(**good, types=["v", "up"], mode="onto")]
    data = OrganismData("harmful", 160, heldout_size=0)
    module = SupervisedFineTuning(Pretrained(aligned), optimizer=adamw)
    trainer(tmp_path, callbacks=[*both, ModelExport()]).fit(module, datamodule=data)
    leaks = json.loads((tmp_path / "model" / "leakage.json").read_text())
    assert {leak["mode"] for leak in leaks} == {"away", "onto"}
    for callback, leak in zip(both, leaks, strict=True):
        assert callback.mode == leak["mode"]
        assert leak["leakage"] == pytest.approx(callback.measure().leakage, rel=1e-6)
        assert leak["leakage"] <= 10 * leak["rounding_floor"]


def test_subspace_files_round_trip_and_refuse_what_is_in_the_way(pair, tmp_path: Path) -> None:
    base, aligned = pair
    out = tmp_path / "s.safetensors"
    table = make_subspace(base, aligned, str(out), FRACTION, side="right")
    stored = read_subspace(str(out))
    assert stored.side == "right"
    assert stored.provenance["inputs"][0]["path"] == base
    chosen = dict(zip(table["tensor"], table["rank"], strict=True))
    start, end = (load_file(Path(path) / "model.safetensors") for path in pair)
    for name, basis in stored.bases.items():
        assert basis.shape[1] == chosen[name]
        if end[name].ndim == 2:
            right = oracle.left_svd((end[name] - start[name]).T)[0][:, : basis.shape[1]]
            assert oracle.energy_along(basis, right) == pytest.approx(basis.shape[1], abs=1e-5)
    refuse(lambda: make_subspace(base, aligned, str(out), FRACTION), "exists and is not written over")
    refuse(lambda: make_subspace(base, aligned, str(tmp_path / "s.pt"), FRACTION), "ends in .safetensors")
