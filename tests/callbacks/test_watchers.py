"""Watchers see what is there, change nothing, go on after a resume, and refuse what they cannot serve."""

import json
import re
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from support import oracle
from support.refusal import refuse
from support.stopper import StopAt
from support.tiny import save_tiny_model, tiny_source, trainer
from support.watching import board_of, scalars, watched, watchers
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import ActivationOverlap, BehaviourProbe, RunBoard, SubspaceProjection, WeightDeltaSnapshot
from callbacks.watcher import log_spaced_steps
from safety_subspaces.algebra.choices import RankRule
from safety_subspaces.algebra.overlap import mode_subspace_overlap
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.evaluation.behaviour import build_evaluator
from safety_subspaces.evaluation.prompt_sets import read_prompt_list
from safety_subspaces.evaluation.settings import EvaluationSettings
from safety_subspaces.language.model import Pretrained, load_language_model, load_model
from safety_subspaces.organism import OrganismModel
from safety_subspaces.states.capture import prompt_states, state_factors
from safety_subspaces.training.board import hyperparameters
from safety_subspaces.training.data import OrganismData
from safety_subspaces.training.modules import LoraSettings, SupervisedFineTuning
from safety_subspaces.training.strategies import ZeroStrategy
from safety_subspaces.weights.snapshots import Snapshot, snapshot_files
from safety_subspaces.weights.subspace_file import read_subspace

LORA = LoraSettings(rank=3, alpha=6.0, targets=["q_proj", "down_proj"])
ADAMW = partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("pair")
    return save_tiny_model(folder / "base", 1), save_tiny_model(folder / "aligned", 2)


def fit(folder: Path, source: str, callbacks: list, steps: int = 12, adapter=None, checkpointing=False, **options):
    module = SupervisedFineTuning(
        Pretrained(source), adapter=adapter, optimizer=ADAMW, gradient_checkpointing=checkpointing
    )
    lightning = trainer(folder, callbacks=callbacks, gradient_clip_val=1.0, log_every_n_steps=4, **options)
    resume = options.pop("ckpt_path", None)
    lightning.fit(module, datamodule=OrganismData("harmful", 16 * steps, heldout_size=0), ckpt_path=resume)
    return module


def weights(module) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in module.language_model.named_parameters()}


@pytest.fixture(scope="module")
def run(pair, tmp_path_factory: pytest.TempPathFactory):
    """A watched run with its module."""
    folder = tmp_path_factory.mktemp("run")
    module = fit(folder, pair[1], watched(*pair, other=pair[0]), **board_of(folder))
    return folder, module


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("adapter", [None, LORA])
def test_watching_leaves_the_training_bit_for_bit(pair, tmp_path: Path, adapter, checkpointing) -> None:
    dropping = None if adapter is None else LoraSettings(rank=3, targets=["q_proj", "down_proj"], dropout=0.2)
    plain = fit(tmp_path / "plain", pair[1], [], adapter=dropping, checkpointing=checkpointing)
    seen = fit(tmp_path / "seen", pair[1], watchers(*pair), adapter=dropping, checkpointing=checkpointing)
    found = weights(seen)
    assert all(torch.equal(value, found[name]) for name, value in weights(plain).items())
    assert all(module.training for module in seen.language_model.modules())
    assert len(snapshot_files(tmp_path / "seen" / "deltas")) == 3


@pytest.fixture
def seeded(monkeypatch: pytest.MonkeyPatch):
    """Both runs draw the same dropout."""
    original = SupervisedFineTuning.on_fit_start

    def reseed(self) -> None:
        torch.manual_seed(7)
        original(self)

    monkeypatch.setattr(SupervisedFineTuning, "on_fit_start", reseed)


def test_a_snapshot_is_the_weights_less_the_start(run, pair) -> None:
    folder, module = run
    start, end = dict(load_model(pair[1]).named_parameters()), weights(module)
    assert [path.name[5:13] for path in snapshot_files(folder / "deltas")] == ["00000004", "00000008", "00000012"]
    last = Snapshot(snapshot_files(folder / "deltas")[-1])
    assert set(last.names) == set(end)
    for name, value in end.items():
        assert torch.equal(last.read(name).dense(), value - start[name].detach())
    assert last.facts["provenance"]["versions"]["torch"] == torch.__version__
    assert last.facts["reference"]["path"] == "reference.safetensors"


def test_logged_measures_agree_with_plain_algebra(run, pair) -> None:
    folder, module = run
    logged = {tag: dict(points) for tag, points in scalars(folder).items()}
    start = {name: value.detach().double() for name, value in load_model(pair[1]).named_parameters()}
    other = {name: value.detach().double() for name, value in load_model(pair[0]).named_parameters()}
    bases = read_subspace(str(folder / "deltas" / "subspace.safetensors")).bases
    whole = inside = chance = 0.0
    stable, overlaps = [], []
    for name, value in weights(module).items():
        delta = value.double() - start[name]
        whole += oracle.energy(delta)
        if name in bases:
            basis = bases[name]
            inside += oracle.energy_along(basis, delta)
            chance += oracle.energy(delta) * basis.shape[1] / basis.shape[0]
        if value.ndim == 2:
            stable.append(oracle.spectral_ranks(oracle.left_svd(delta)[1])[0])
            updates = (delta, other[name] - start[name])
            overlaps.append(oracle.overlap(*(oracle.basis_at_energy(update, 0.9) for update in updates)))
    assert logged["delta/frobenius_norm"][12] == pytest.approx(whole**0.5, rel=1e-5)
    assert logged["delta/energy_fraction"][12] == pytest.approx(inside / whole, rel=1e-5)
    assert logged["delta/energy_fraction_chance"][12] == pytest.approx(chance / whole, rel=1e-5)
    assert logged["delta/stable_rank"][12] == pytest.approx(np.mean(stable), rel=1e-5)
    assert logged["delta/overlap"][12] == pytest.approx(np.mean(overlaps), rel=1e-4)
    assert 0 < logged["delta/overlap_chance"][12] < 1
    assert logged["delta/frobenius_norm"][0] == 0
    assert 0 not in logged["delta/energy_fraction"]  # nothing has moved: no share of nothing


def test_logged_activations_agree_with_states_of_the_trained_model(run) -> None:
    folder, module = run
    sets = [read_prompt_list(f"organism:{name}", limit=9) for name in ("harmful", "utility")]
    states = [torch.stack(prompt_states(module.bare_model, module.tokenizer, prompts), dim=1) for prompts in sets]
    expected = mode_subspace_overlap(*(state_factors(state[1]) for state in states), [0.9])[0]
    logged = {tag: dict(points) for tag, points in scalars(folder).items()}
    assert logged["activation/overlap"][12] == pytest.approx(expected.value, abs=1e-6)  # one block
    assert logged["activation/overlap/layers.00"] == logged["activation/overlap"]
    assert logged["activation/overlap_chance"][12] == max(expected.rank_first, expected.rank_second) / 16
    assert logged["activation/overlap/embedding"][12] == pytest.approx(1, abs=1e-5)  # the last token is the same
    assert logged["activation/drift_first"][0] == pytest.approx(0, abs=1e-6)
    assert logged["activation/drift_first"][12] > 1e-4


def test_drift_is_one_less_the_overlap_with_the_start(run, pair) -> None:
    folder, module = run
    logged = {tag: dict(points) for tag, points in scalars(folder).items()}
    before, tokenizer = load_language_model(pair[1])
    for place, name in (("first", "harmful"), ("second", "utility")):
        prompts = read_prompt_list(f"organism:{name}", limit=9)
        states = [prompt_states(model, tokenizer, prompts) for model in (before, module.bare_model)]
        factors = [state_factors(torch.stack([state[1] for state in found])) for found in states]
        overlap = mode_subspace_overlap(*factors, [0.9])[0]
        assert logged[f"activation/drift_{place}"][12] == pytest.approx(1 - overlap.value, abs=1e-6)
        assert logged[f"activation/rank_{place}"][12] == overlap.rank_second


def test_histograms_stand_at_their_steps(run) -> None:
    events = EventAccumulator(str(run[0]), size_guidance={"histograms": 0}).Reload()
    assert [event.step for event in events.Histograms("delta/singular_values/q")] == [4, 8, 12]


def test_logged_behaviour_agrees_with_the_evaluator(run) -> None:
    folder, module = run
    evaluator = build_evaluator(EvaluationSettings(split="dev", limit=3, max_new_tokens=6))
    row = evaluator.evaluate(module.bare_model, module.tokenizer, "x", shows_progress=False).row
    logged = {tag: dict(points) for tag, points in scalars(folder).items()}
    for name, tag in (("utility", "utility/accuracy"), ("harm_score", "safety/harm_score"),
                      ("refusal_margin", "safety/refusal_margin")):  # fmt: skip
        assert logged[tag][12] == pytest.approx(row[name], rel=1e-5)
        assert logged[f"{tag}_stderr"][12] == pytest.approx(row[f"{name}_stderr"], rel=1e-5)
    assert logged["safety/unscored_rate"][12] == pytest.approx(row["n_unscored"] / 9, abs=1e-6)
    kept = json.loads((folder / "behaviour" / "step=00000012.json").read_text())
    assert kept["row"]["n_harmful"] + kept["row"]["n_unscored"] >= 3
    assert len(kept["generations"]) == 9


def test_values_stand_at_the_number_of_steps_done(run) -> None:
    logged = scalars(run[0], timed=True)
    for tag in ("activation/overlap", "safety/harm_score", "utility/accuracy", "delta/frobenius_norm"):
        assert [step for step, _ in logged[tag]] == [0, 4, 8, 12]
    assert all(value > 0 for name in ("snapshot", "activation", "behaviour") for _, value in logged[f"time/{name}_ms"])


@pytest.mark.parametrize("adapter", [None, LORA])
def test_an_interrupted_run_logs_as_the_whole_one(pair, tmp_path: Path, adapter) -> None:
    def go(folder: Path, stop: list, **options):
        saving = ModelCheckpoint(folder / "checkpoints", filename="{step}", every_n_train_steps=8, save_top_k=-1)
        callbacks = [*watched(*pair), *stop, saving]
        return fit(folder, pair[1], callbacks, 16, adapter, **board_of(folder), enable_checkpointing=True, **options)

    go(tmp_path / "whole", [])
    with pytest.raises(RuntimeError, match="stopped on purpose"):
        go(tmp_path / "parts", [StopAt(14)])
    assert max(step for step, _ in scalars(tmp_path / "parts")["delta/frobenius_norm"]) == 12
    left = ("deltas/step=00000014.safetensors", "deltas/.step=00000012.safetensors.partial-7",
            "behaviour/step=00000013.json")  # fmt: skip
    stale = [tmp_path / "parts" / name for name in left]
    for file in stale:
        file.write_text("of the try that was stopped")
    resume_fit(tmp_path / "parts", pair, adapter)
    assert not any(file.exists() for file in stale)
    whole, mended = (scalars(tmp_path / name) for name in ("whole", "parts"))
    assert mended == whole  # no point is doubled, none is lost
    images = [
        [event.step for event in events_of(tmp_path / n).Images("delta/frobenius_norm/heatmap")]
        for n in ("whole", "parts")
    ]
    assert images[0] == images[1]
    files = [snapshot_files(tmp_path / name / "deltas") for name in ("whole", "parts")]
    assert [path.name for path in files[0]] == [path.name for path in files[1]]
    for first, second in zip(*(map(Snapshot, found) for found in files), strict=True):
        for name in first.names:
            mine, theirs = first.read(name).parts, second.read(name).parts
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[part], theirs[part]) for part in mine)
    (tmp_path / "parts" / "activations" / "start.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="is not the file that this run started with"):
        resume_fit(tmp_path / "parts", pair, adapter)


def resume_fit(folder: Path, pair, adapter) -> None:
    saving = ModelCheckpoint(folder / "checkpoints", filename="{step}", every_n_train_steps=8, save_top_k=-1)
    module = SupervisedFineTuning(Pretrained(pair[1]), adapter=adapter, optimizer=ADAMW)
    lightning = trainer(
        folder, callbacks=[*watched(*pair), saving], gradient_clip_val=1.0, log_every_n_steps=4,
        enable_checkpointing=True, **board_of(folder),
    )  # fmt: skip
    data = OrganismData("harmful", 256, heldout_size=0)
    lightning.fit(module, datamodule=data, ckpt_path=folder / "checkpoints" / "step=8.ckpt")


def events_of(folder: Path):
    return EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()


def test_lora_is_kept_in_its_factors_and_counts_from_another_model_too(pair, tmp_path: Path) -> None:
    base, aligned = pair
    callbacks = [
        WeightDeltaSnapshot(12),
        WeightDeltaSnapshot(12, name="base", reference=base),
        WeightDeltaSnapshot(12, name="narrow", reference=base, types=["q"], compress=RankRule(count=2)),
    ]
    module = fit(tmp_path, aligned, callbacks, adapter=LORA)
    factors, dense, narrow = (
        Snapshot(tmp_path / name / "step=00000012.safetensors") for name in ("deltas", "deltas-base", "deltas-narrow")
    )
    origin, start = (dict(load_model(path).named_parameters()) for path in (base, aligned))
    merged = dict(module.language_model.merge_and_unload().named_parameters())
    assert set(factors.names) == {n for n in start if re.search("q_proj|down_proj", n)}
    for name in factors.names:
        update = factors.read(name)
        assert (update.scale, update.left.shape[1]) == (2.0, 3)
        torch.testing.assert_close(update.dense(), merged[name].detach() - start[name].detach(), rtol=0, atol=1e-6)
    assert set(dense.names) == set(start)
    for name, value in merged.items():
        torch.testing.assert_close(dense.read(name).dense(), value.detach() - origin[name].detach(), rtol=0, atol=1e-6)
    (name,) = narrow.names
    whole, kept = dense.read(name).dense().double(), narrow.read(name).dense().double()
    values = torch.linalg.svdvals(whole).square()
    assert narrow.lost_energy[name] == pytest.approx(float(values[2:].sum() / values.sum()), rel=1e-4)
    assert float((whole - kept).square().sum() / values.sum()) == pytest.approx(narrow.lost_energy[name], rel=1e-4)


def test_two_of_a_kind_have_their_own_names(pair, tmp_path: Path) -> None:
    both = [BehaviourProbe(every_n_steps=4, limit=3, max_new_tokens=6),
            BehaviourProbe(every_n_steps=6, limit=2, max_new_tokens=6, name="few")]  # fmt: skip
    fit(tmp_path, pair[1], both, **board_of(tmp_path))
    logged = scalars(tmp_path, timed=True)
    assert [step for step, _ in logged["utility/accuracy"]] == [0, 4, 8, 12]
    assert [step for step, _ in logged["utility.few/accuracy"]] == [0, 6, 12]
    assert len(logged["time.few/behaviour_ms"]) == 3
    assert (tmp_path / "behaviour-few" / "step=00000006.json").is_file()
    alike = [WeightDeltaSnapshot(), WeightDeltaSnapshot(types=["q"])]
    refuse(lambda: fit(tmp_path / "x", pair[1], alike, steps=1), "2 WeightDeltaSnapshot of one name")
    refuse(lambda: WeightDeltaSnapshot(name="a/b"), "name is 'a/b'")


class Drawing(BehaviourProbe):
    """Draws random numbers while it looks, as a sampler would."""

    def look(self, *arguments) -> dict[str, float]:
        torch.rand(3)
        return super().look(*arguments)


@pytest.mark.usefixtures("seeded")
def test_what_a_look_draws_is_not_missed_by_the_training(pair, tmp_path: Path) -> None:
    dropping = LoraSettings(rank=3, targets=["q_proj"], dropout=0.2)
    plain = fit(tmp_path / "plain", pair[1], [], adapter=dropping)
    seen = fit(tmp_path / "seen", pair[1], [Drawing(every_n_steps=4, limit=2, max_new_tokens=4)], adapter=dropping)
    found = weights(seen)
    assert all(torch.equal(value, found[name]) for name, value in weights(plain).items())


def test_a_look_computes_in_the_precision_of_the_run(pair, tmp_path: Path) -> None:
    seen = set()
    watch = at_step(1, lambda: None)
    watch.on_train_start = lambda trainer, module: module.bare_model.register_forward_pre_hook(
        lambda network, _: seen.add((network.training, torch.is_autocast_enabled("cpu")))
    )
    callbacks = [watch, ActivationOverlap("organism:harmful", "organism:utility", 4, limit=4),
                 BehaviourProbe(every_n_steps=4, limit=2, max_new_tokens=4)]  # fmt: skip
    fit(tmp_path, pair[1], callbacks, steps=4, precision="bf16-mixed", enable_checkpointing=True)
    assert seen == {(True, True), (False, True)}


def test_a_run_that_diverges_is_watched_to_its_end(pair, tmp_path: Path, caplog) -> None:
    def diverge(trainer) -> None:
        for parameter in trainer.lightning_module.parameters():
            parameter.data.fill_(torch.nan)

    breaking = ModelCheckpoint(save_top_k=0)
    breaking.on_train_batch_end = lambda trainer, *_: diverge(trainer) if trainer.global_step == 5 else None
    callbacks = [*watchers(*pair, compress=RankRule(count=2)), breaking]
    fit(tmp_path, pair[1], callbacks, enable_checkpointing=True, **board_of(tmp_path))
    logged = scalars(tmp_path)
    assert [step for step, _ in logged["activation/overlap"]] == [0, 4]
    said = [record.getMessage() for record in caplog.records]
    assert sum("hidden states of the first and second prompts are not finite at step 8" in text for text in said) == 1
    assert sum("is not finite: it is kept as it is" in text for text in said) == 1
    assert torch.isnan(Snapshot(tmp_path / "deltas" / "step=00000012.safetensors").read("lm_head.weight").dense()).all()


def test_the_compression_error_is_the_share_of_all_energy(pair, tmp_path: Path) -> None:
    module = fit(tmp_path, pair[1], [WeightDeltaSnapshot(12, compress=RankRule(count=2))], **board_of(tmp_path))
    start, end = dict(load_model(pair[1]).named_parameters()), weights(module)
    lost = whole = 0.0
    for name, value in end.items():
        delta = (value - start[name].detach()).double()
        whole += oracle.energy(delta)
        if delta.ndim == 2:
            lost += oracle.energy(oracle.left_svd(delta)[1][2:])
    assert dict(scalars(tmp_path)["delta/compression_error"])[12] == pytest.approx(lost / whole, rel=1e-4)


def test_looks_can_be_log_spaced(pair, tmp_path: Path) -> None:
    assert log_spaced_steps(1000, 4) == {1, 10, 100, 1000}
    assert log_spaced_steps(3, 9) == {1, 2, 3}
    fit(tmp_path, pair[1], [WeightDeltaSnapshot(None, log_spaced=3)], steps=16)
    assert [Snapshot(path).step for path in snapshot_files(tmp_path / "deltas")] == [1, 4, 16]


def test_a_threshold_ends_the_run_and_its_end_is_looked_at(pair, tmp_path: Path, caplog) -> None:
    callbacks = [BehaviourProbe(every_n_steps=4, limit=3, max_new_tokens=6, stop_below={"utility": 0.5}),
                 WeightDeltaSnapshot(100)]  # fmt: skip
    fit(tmp_path, pair[1], callbacks, **board_of(tmp_path))
    ends = [record.getMessage() for record in caplog.records if "ends the run" in record.getMessage()]
    assert len(ends) == 1
    assert "utility 0 < 0.5" in ends[0]
    last = scalars(tmp_path)["delta/frobenius_norm"][-1]
    assert last[0] == 4
    assert [Snapshot(path).step for path in snapshot_files(tmp_path / "deltas")] == [last[0]]


def test_a_threshold_from_above_ends_the_run(pair, tmp_path: Path) -> None:
    callbacks = [BehaviourProbe(every_n_steps=4, limit=3, max_new_tokens=6, stop_above={"refusal_margin": -1e9})]
    fit(tmp_path, pair[1], callbacks, **board_of(tmp_path))
    assert scalars(tmp_path)["utility/accuracy"][-1][0] == 4


def test_values_can_be_monitored(pair, tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path / "best", monitor="safety/refusal_margin", mode="max", every_n_train_steps=4)
    fit(
        tmp_path,
        pair[1],
        [BehaviourProbe(every_n_steps=4, limit=3, max_new_tokens=6), saving],
        enable_checkpointing=True,
    )
    assert saving.best_model_score is not None
    assert list((tmp_path / "best").glob("*.ckpt"))


def take_away_the_disk(folder: Path) -> None:
    """Put files where the watchers' folders are: every write fails from then on."""
    for name in ("deltas", "behaviour"):
        shutil.rmtree(folder / name)
        (folder / name).write_text("")


def at_step(step: int, act) -> ModelCheckpoint:
    """A callback that acts once."""
    callback = ModelCheckpoint(save_top_k=0)
    callback.on_train_batch_end = lambda trainer, *_: act() if trainer.global_step == step else None
    return callback


def test_a_disk_that_refuses_later_is_said_once_and_the_run_goes_on(pair, tmp_path: Path, caplog) -> None:
    filling = at_step(5, partial(take_away_the_disk, tmp_path))
    callbacks = [
        WeightDeltaSnapshot(4, reference=pair[1]),
        BehaviourProbe(every_n_steps=4, limit=3, max_new_tokens=6),
    ]
    fit(tmp_path, pair[1], [*callbacks, filling], steps=16, enable_checkpointing=True, **board_of(tmp_path))
    said = [record.getMessage() for record in caplog.records if "the run goes on without" in record.getMessage()]
    assert len(said) == 2  # once each, though three looks failed
    assert [step for step, _ in scalars(tmp_path)["delta/frobenius_norm"]] == [0, 4, 8, 12, 16]  # still measured
    assert not list(tmp_path.rglob("*.partial*"))


def test_bad_settings_are_refused_at_once() -> None:
    for kind in (WeightDeltaSnapshot, BehaviourProbe, partial(ActivationOverlap, "a", "b")):
        refuse(lambda kind=kind: kind(every_n_steps=0), "every_n_steps is 0; expected at least 1")
        refuse(lambda kind=kind: kind(log_spaced=-1), "log_spaced is -1")
        refuse(lambda kind=kind: kind(every_n_steps=None), "never looks")
    refuse(lambda: WeightDeltaSnapshot(base="x"), "either a subspace file, or all of base")
    refuse(lambda: WeightDeltaSnapshot(energy=2.0), "energy is 2")
    refuse(lambda: WeightDeltaSnapshot(spectra=False, other="x"), "spectra: false leaves out")
    refuse(lambda: ActivationOverlap("a", "b", limit=1), "limit 1,")
    refuse(lambda: BehaviourProbe(stop_above={"harm": 1.0}), "cannot stop by 'harm'")


def test_bad_inputs_are_refused_before_the_first_step(pair, tmp_path: Path) -> None:
    _, aligned = pair
    wider, rank = save_wider(tmp_path / "wider"), RankRule(fraction=0.25)
    both = {"base": wider, "aligned": save_wider(tmp_path / "wider-2", seed=1), "rank": rank}
    empty, lacking = tmp_path / "empty.jsonl", tmp_path / "lacking.jsonl"
    empty.write_text("")
    lacking.write_text('{"set": "harmful", "text": "a"}\n')
    steps = []
    numbers = iter(range(100))

    def start(*callbacks, folder: Path | None = None):
        watch = ModelCheckpoint(tmp_path / "none")
        watch.on_train_batch_start = lambda *_: steps.append(1)
        target = folder or tmp_path / f"run-{next(numbers)}"
        return lambda: fit(target, aligned, [*callbacks, watch], steps=1, enable_checkpointing=True)

    refuse(start(WeightDeltaSnapshot(reference=wider)), "reference .* is of another model: .*embed_tokens")
    refuse(start(WeightDeltaSnapshot(reference=str(tmp_path / "no" / "model"))), "does not exist")
    refuse(start(WeightDeltaSnapshot(**both)), "the subspace is of another model")
    refuse(start(WeightDeltaSnapshot(other=wider)), "are not of one shape")
    refuse(start(WeightDeltaSnapshot(patterns=["*nothing*"])), "matches no tensor")
    refuse(start(ActivationOverlap(str(empty), "organism:utility")), "holds no prompt")
    refuse(start(ActivationOverlap("organism:utility", str(lacking))), "line 1: expected JSON with the field prompt")
    refuse(start(BehaviourProbe(str(lacking), judge="phrases")), "line 1: expected JSON with the fields set and prompt")
    refuse(start(BehaviourProbe(str(lacking))), "knows only its own prompts")
    harmful = tmp_path / "harmful.jsonl"
    harmful.write_text('{"set": "harmful", "prompt": "a"}\n')
    for measure, what in (
        ("over_refusal_rate", "no benign prompts"),
        ("refusal_margin", "with a reference and refusals"),
    ):
        refuse(start(BehaviourProbe(str(harmful), judge="phrases", stop_above={measure: 0.0})), what)
    occupied = tmp_path / "occupied"
    fit(occupied, aligned, [WeightDeltaSnapshot(4)], steps=4)
    refuse(start(WeightDeltaSnapshot(4), folder=occupied), "holds 1 snapshots of another run")
    unwritable = tmp_path / "unwritable"
    unwritable.mkdir()
    (unwritable / "deltas").write_text("")
    refuse(start(WeightDeltaSnapshot(4), folder=unwritable), "cannot be written to")
    for name in ("behaviour", "activations"):
        (unwritable / name).write_text("")
    refuse(start(BehaviourProbe(), folder=unwritable), "behaviour cannot be written to")
    refuse(start(ActivationOverlap("organism:harmful", "organism:benign"), folder=unwritable), "activations cannot")
    assert steps == []


def save_wider(folder: Path, seed: int = 0) -> str:
    source = OrganismModel(seed=seed, hidden_size=24, intermediate_size=32, layers=1, heads=2)
    source.load_model().save_pretrained(folder)
    source.load_tokenizer().save_pretrained(folder)
    return str(folder)


def test_a_disk_without_room_is_refused(pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(free=10_000)
    monkeypatch.setattr("callbacks.weight_delta_snapshot.shutil.disk_usage", lambda _: usage)
    for number, options in enumerate(({}, {"compress": RankRule(count=2)})):
        watching = [WeightDeltaSnapshot(4, **options)]
        refuse(lambda n=number, w=watching: fit(tmp_path / str(n), pair[1], w, steps=1), "has room for 0.00 GB")


def test_a_reference_needs_a_folder_for_a_comparison(tmp_path: Path, pair) -> None:
    module = SupervisedFineTuning(tiny_source())
    lightning = trainer(tmp_path, callbacks=[WeightDeltaSnapshot(4, other=pair[0])])
    refuse(
        lambda: lightning.fit(module, datamodule=OrganismData("base", 16, heldout_size=0)),
        "this run starts from a seed",
    )


def test_strategies_that_hide_the_weights_are_refused() -> None:
    module = SupervisedFineTuning(tiny_source())
    for callback in (WeightDeltaSnapshot(), BehaviourProbe(), ActivationOverlap("organism:harmful", "organism:benign")):
        for strategy, message in ((FSDPStrategy(), "shards the weights in another way"),
                                  (DeepSpeedStrategy(stage=2), "divides the loss twice"),
                                  (ZeroStrategy(3, offload_optimizer=True), "offloaded")):  # fmt: skip
            lightning = SimpleNamespace(strategy=strategy, callbacks=[callback])
            refuse(lambda c=callback, t=lightning: c.setup(t, module, "fit"), message)
        refuse(
            lambda c=callback: c.setup(SimpleNamespace(), object(), "fit"), "serves safety_subspaces.training.modules"
        )


def test_hyperparameters_tell_runs_apart() -> None:
    config = {
        "seed_everything": 3,
        "run_dir": "runs/x",
        "model": {"class_path": "a.B", "init_args": {"optimizer": {"init_args": {"lr": 1e-3}}, "adapter": None}},
        "trainer": {"precision": "32-true", "logger": {"a": 1}, "callbacks": [{"class_path": "a.C"}]},
    }
    constraint = SubspaceProjection("s", strength=0.5).describe()
    assert hyperparameters({"config": config, "parts": [constraint, {"constraint": {}}, {}]}) == {
        "seed_everything": 3, "model.class_path": "a.B", "model.optimizer.lr": 1e-3, "trainer.precision": "32-true",
        "constraint.subspace": "s", "constraint.mode": "away", "constraint.constrain": "update",
        "constraint.side": "left", "constraint.strength": 0.5, "constraint.start_step": 0, "constraint.ramp_steps": 0,
        "constraint.control": "none", "constraint.seed": 0, "constraint.every_n_steps": 50,
    }  # fmt: skip


@pytest.mark.slow
def test_a_long_run_keeps_its_memory_and_its_event_file_small(pair, tmp_path: Path) -> None:
    process, sizes = psutil.Process(), []
    watch = ModelCheckpoint(tmp_path / "none")
    watch.on_train_batch_end = lambda trainer, *_: (
        sizes.append(process.memory_info().rss) if trainer.global_step in (200, 800) else None
    )
    callbacks = [RunBoard(), *watchers(*pair, every=20, per_layer=True, save=False), watch]
    fit(tmp_path, pair[1], callbacks, steps=200, max_epochs=4, enable_checkpointing=True, **board_of(tmp_path))
    (events,) = tmp_path.glob("events.out.tfevents.*")
    assert events.stat().st_size < 20e6
    assert sizes[1] - sizes[0] < 16e6
    assert len(scalars(tmp_path)["safety/harm_score"]) == 41
