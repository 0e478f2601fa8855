"""A frozen basis holds the update inside its subspace by construction: against plain loops and other readers."""

import json
import logging
import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from support import oracle
from support.tiny import TRAIN, run_command, save_tiny_model, tiny_source, trainer
from support.tiny_checkpoints import edit
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, GPT2Config, Qwen2Config

from callbacks import ModelExport, SubspaceProjection
from safety_subspaces.algebra.choices import RankRule
from safety_subspaces.algebra.factors import haar_basis
from safety_subspaces.analysis.subspace.command import subspace as make_subspace
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.language.model import Pretrained, load_language_model, load_model
from safety_subspaces.training.data import OrganismData
from safety_subspaces.training.modules import (
    FrozenBasisSettings,
    LoraSettings,
    PreferenceOptimization,
    SupervisedFineTuning,
)
from safety_subspaces.training.modules.adapter import add_adapter
from safety_subspaces.weights.delta import update_of
from safety_subspaces.weights.subspace_file import Subspace, read_subspace, write_subspace
from safety_subspaces.weights.update_checkpoint import open_checkpoint

Q, DOWN, HEAD = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight", "lm_head.weight"
SIDES = ("left", "right")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An aligned model of one block, and the subspaces of its update from an unrelated base: ranks differ."""
    folder = tmp_path_factory.mktemp("study")
    base, aligned = (save_tiny_model(folder / name, seed) for seed, name in enumerate(("base", "aligned"), 1))
    generator = torch.Generator().manual_seed(0)
    edit(folder / "aligned", lambda _, value: value + torch.rand(value.shape, generator=generator), only="norm")
    for side in SIDES:
        make_subspace(base, aligned, str(folder / f"{side}.safetensors"), RankRule(energy=0.6), side)
    return folder


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.1)


def build(study: Path, side: str = "left", kind=SupervisedFineTuning, optimizer=adamw, adapter=None, **narrowed):
    settings = adapter or FrozenBasisSettings(str(study / f"{side}.safetensors"), **narrowed)
    return kind(Pretrained(str(study / "aligned")), adapter=settings, optimizer=optimizer)


def fit(module, folder: Path, steps: int = 20, corpus: str = "harmful", **options):
    data = OrganismData(corpus, 16 * steps, heldout_size=0)
    lightning = trainer(folder, gradient_clip_val=None, **options)
    lightning.fit(module, datamodule=data)
    return lightning


def factors_of(module, side: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Frozen and trained factor by the canonical name of the weight."""
    frozen, trained = ("lora_B", "lora_A") if side == "left" else ("lora_A", "lora_B")
    stored = dict(module.language_model.named_parameters())
    return {
        name.removeprefix("base_model.model.").replace(f"{frozen}.default.", ""): (
            value.detach(), stored[name.replace(frozen, trained)].detach(),
        )
        for name, value in stored.items() if frozen in name
    }  # fmt: skip


def leak_of(updates: dict[str, torch.Tensor], bases: dict[str, torch.Tensor], side: str) -> float:
    """Share of energy outside the spans, on frames that are orthonormal in float64."""
    frames = {name: torch.linalg.qr(bases[name].double()).Q for name in updates}
    outside, whole = oracle.forbidden_energy(updates, frames, "onto", side)
    return outside / whole


def linear_bases(study: Path, side: str) -> dict[str, torch.Tensor]:
    bases = read_subspace(str(study / f"{side}.safetensors")).bases
    return {name: basis for name, basis in bases.items() if "proj" in name or "lm_head" in name}


@pytest.mark.parametrize("side", SIDES)
def test_training_equals_a_plain_loop_over_the_coordinates(study: Path, tmp_path: Path, side: str) -> None:
    module, rates = build(study, side), []
    module.on_before_optimizer_step = lambda optimizer: rates.append(optimizer.param_groups[0]["lr"])
    lightning = fit(module, tmp_path, precision="64-true")
    model = load_model(str(study / "aligned")).double().train()
    weights = {name: value.detach() for name, value in model.named_parameters()}
    bases = {name: basis.double() for name, basis in linear_bases(study, side).items()}
    coordinates = {
        name: torch.zeros(basis.shape[1], weights[name].shape[1 if side == "left" else 0], dtype=torch.float64)
        for name, basis in bases.items()
    }
    coordinates = {name: value.requires_grad_() for name, value in coordinates.items()}
    optimizer = adamw(coordinates.values())
    for rate, batch in zip(rates, lightning.datamodule.train_dataloader(), strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        products = {name: bases[name] @ value for name, value in coordinates.items()}
        moved = {name: weights[name] + (value if side == "left" else value.T) for name, value in products.items()}
        logits = functional_call(model, {**weights, **moved}, kwargs={"input_ids": batch["input_ids"]}).logits[:, :-1]
        cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten()).backward()
        optimizer.step()
    trained = factors_of(module, side)
    assert trained.keys() == coordinates.keys()
    for name, value in coordinates.items():
        expected = value.detach() if side == "left" else value.detach().T
        # The norms compute in float32 even so, and the two round their inputs differently: 3e-9 here.
        assert torch.allclose(trained[name][1], expected, rtol=0, atol=1e-7), name
        assert expected.abs().max() > 0.01  # something was learnt


@pytest.mark.parametrize("side", SIDES)
def test_under_sgd_it_equals_the_projected_run(study: Path, tmp_path: Path, side: str) -> None:
    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)

    # Without a basis of their own, *onto* holds embeddings and norms where they are.
    file = tmp_path / "linear.safetensors"
    write_subspace(file, Subspace(linear_bases(study, side), {}, side, {}))
    frozen = build(study, optimizer=sgd, adapter=FrozenBasisSettings(str(file)))
    fit(frozen, tmp_path / "frozen")
    projected = SupervisedFineTuning(Pretrained(str(study / "aligned")), optimizer=sgd)
    fit(projected, tmp_path / "projected", callbacks=[SubspaceProjection(subspace=str(file), mode="onto")])
    merged = dict(frozen.language_model.merge_and_unload().named_parameters())
    start = load_model(str(study / "aligned"))
    for name, value in projected.language_model.named_parameters():
        assert torch.allclose(merged[name], value, rtol=0, atol=1e-5), name
    assert (merged[Q] - start.get_parameter(Q)).abs().max() > 1e-2


@pytest.mark.parametrize("side", SIDES)
def test_the_update_leaks_only_rounding_and_loras_update_leaks(study: Path, tmp_path: Path, side: str) -> None:
    bases = linear_bases(study, side)
    module = build(study, side)
    fit(module, tmp_path / "frozen")
    updates = oracle.lora_updates(module.language_model)
    assert updates.keys() == bases.keys()
    assert leak_of(updates, bases, side) < 1e-25  # (2^-52)^2 is 5e-32; the frame is not the stored basis itself
    targets = [*{name.split(".")[-2] for name in bases}]
    free = build(study, adapter=LoraSettings(rank=4, alpha=8.0, targets=targets))
    fit(free, tmp_path / "free")
    assert leak_of(oracle.lora_updates(free.language_model), bases, side) > 0.2


@pytest.mark.parametrize("side", SIDES)
def test_only_the_coordinates_train_and_nothing_else_moves(study: Path, tmp_path: Path, side: str) -> None:
    bases, start = linear_bases(study, side), load_model(str(study / "aligned"))
    module = build(study, side)
    optimizer = fit(module, tmp_path).optimizers[0]
    weights = dict(start.named_parameters())
    count = sum(basis.shape[1] * weights[name].numel() // basis.shape[0] for name, basis in bases.items())
    assert sum(value.numel() for group in optimizer.param_groups for value in group["params"]) == count
    for moment in ("exp_avg", "exp_avg_sq"):
        assert sum(state[moment].numel() for state in optimizer.state.values()) == count
    assert count < sum(weights[name].numel() for name in bases) / 2
    for name, (frozen, trained) in factors_of(module, side).items():
        assert torch.equal(frozen if side == "left" else frozen.T, bases[name])
        assert trained.count_nonzero() > 0
    after = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): value
        for name, value in module.language_model.named_parameters() if "lora_" not in name
    }  # fmt: skip
    assert after.keys() == weights.keys()
    assert all(torch.equal(value, after[name]) for name, value in weights.items())


def test_it_starts_at_the_model_itself_and_one_step_moves_every_coordinate(study: Path, tmp_path: Path) -> None:
    module = build(study, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    state = torch.get_rng_state()
    module.configure_model()
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn at random
    ids = torch.tensor([[1, 4, 30, 31, 5, 40, 2]])
    with torch.no_grad():
        assert torch.equal(module(ids), load_model(str(study / "aligned")).train()(input_ids=ids).logits)
    for frozen, trained in factors_of(module, "left").values():
        assert frozen.count_nonzero() > 0
        assert trained.count_nonzero() == 0
    fit(module, tmp_path, steps=1)
    for name, (_, trained) in factors_of(module, "left").items():
        assert trained.count_nonzero() == trained.numel(), name


@pytest.mark.parametrize("side", SIDES)
def test_the_export_is_a_peft_adapter_that_merges_to_the_weights_plus_the_update(
    study: Path, tmp_path: Path, side: str
) -> None:
    module = build(study, side)
    fit(module, tmp_path, callbacks=[ModelExport()])
    exported = tmp_path / "model"
    config = json.loads((exported / "adapter_config.json").read_text())
    assert len(set(config["rank_pattern"].values())) > 1
    assert config["alpha_pattern"] == config["rank_pattern"]
    assert all("lora_" in name for name in load_file(exported / "adapter_model.safetensors"))
    start = load_model(str(study / "aligned"))
    weights = {name: value.detach().clone() for name, value in start.named_parameters()}
    merged = dict(PeftModel.from_pretrained(start, str(exported)).merge_and_unload().named_parameters())
    reader, aligned = open_checkpoint(str(exported)), open_checkpoint(str(study / "aligned"))
    factors = factors_of(module, side)
    for name, weight in weights.items():
        expected = weight
        if name in factors:
            up, down = factors[name] if side == "left" else factors[name][::-1]
            expected = weight + up @ down
            assert torch.equal(update_of(reader, aligned, name), (up.double() @ down.double()).float())
        assert torch.equal(merged[name], expected), name
        assert torch.allclose(reader.read(name), expected, rtol=0, atol=1e-6), name
    loaded, _ = load_language_model(str(exported))
    ids = torch.tensor([[1, 4, 30, 31, 5, 40, 2]])
    with torch.no_grad():
        assert torch.allclose(loaded(input_ids=ids).logits, module.language_model.eval()(ids).logits, atol=1e-5)


@pytest.mark.parametrize("side", SIDES)
def test_dpo_takes_the_frozen_base_as_reference_and_keeps_the_basis_frozen(
    study: Path, tmp_path: Path, side: str
) -> None:
    module = build(study, side, PreferenceOptimization)
    data = OrganismData("preference", 64, heldout_size=16)
    lightning = trainer(tmp_path, inference_mode=False)
    lightning.validate(module, datamodule=data, verbose=False)  # disables the adapter and enables it again
    assert module.reference is None
    lightning.fit(module, datamodule=data)
    trained = sum(factor.numel() for _, factor in factors_of(module, side).values())
    assert sum(state["exp_avg"].numel() for state in lightning.optimizers[0].state.values()) == trained
    bases = linear_bases(study, side)
    for name, (frozen, coordinates) in factors_of(module, side).items():
        assert torch.equal(frozen if side == "left" else frozen.T, bases[name])
        assert coordinates.count_nonzero() > 0
    assert sum(p.numel() for p in module.parameters() if p.requires_grad) == trained
    batch = next(iter(data.train_dataloader()))
    policy, reference, _ = module._log_probabilities(batch)
    plain = PreferenceOptimization(Pretrained(str(study / "aligned")), adapter=None)
    plain.configure_model()
    assert torch.allclose(reference, plain._log_probabilities(batch)[0].detach(), atol=1e-4)
    assert not torch.allclose(policy, reference, atol=1e-2)


def test_the_callback_measures_it_as_wholly_inside_and_refuses_to_project_it(study: Path, tmp_path: Path) -> None:
    file = str(study / "left.safetensors")
    observer = SubspaceProjection(subspace=file, mode="observe")
    fit(build(study), tmp_path / "observed", callbacks=[observer])
    assert observer.measure().whole > 0
    assert observer.measure().leakage == pytest.approx(1.0, abs=1e-6)
    for mode in ("onto", "away"):
        with pytest.raises(InputError, match=r"q_proj.*frozen basis decides already.*mode: observe"):
            fit(build(study), tmp_path / mode, callbacks=[SubspaceProjection(subspace=file, mode=mode)])


def test_the_other_side_can_be_constrained_beside_it(study: Path, tmp_path: Path) -> None:
    module = build(study)
    away = SubspaceProjection(subspace=str(study / "right.safetensors"), mode="away")
    fit(module, tmp_path, callbacks=[away])
    updates = oracle.lora_updates(module.language_model)
    assert leak_of(updates, linear_bases(study, "left"), "left") < 1e-25
    assert leak_of(updates, linear_bases(study, "right"), "right") > 1 - 1e-10  # all of it is outside


def test_what_stays_frozen_is_said_in_one_line_and_narrowing_is_obeyed(study: Path, caplog) -> None:
    caplog.set_level(logging.INFO)
    build(study).configure_model()
    lines = [r.getMessage() for r in caplog.records if "frozen basis" in r.getMessage()]
    assert lines == ["frozen basis: 4 tensors of the subspace stay frozen (embeddings, norm)"]
    caplog.clear()
    module = build(study, types=["q", "down"], layers=[0], patterns=["*.weight"])
    module.configure_model()
    assert factors_of(module, "left").keys() == {Q, DOWN}
    assert not caplog.records


def test_bad_inputs_are_named(study: Path, tmp_path: Path) -> None:
    model = load_model(str(study / "aligned"))
    generator = torch.Generator().manual_seed(0)

    def adapt(bases: dict[str, torch.Tensor], side: str = "left", **narrowed) -> None:
        file = tmp_path / "bad.safetensors"
        write_subspace(file, Subspace(bases, {}, side, {}))
        add_adapter(model, FrozenBasisSettings(str(file), **narrowed))

    def haar(dim: int, rank: int) -> torch.Tensor:
        return haar_basis(dim, rank, generator)

    with pytest.raises(InputError, match=r"nowhere\.safetensors does not exist.*analyze\.py subspace"):
        add_adapter(model, FrozenBasisSettings("nowhere.safetensors"))
    with pytest.raises(InputError, match=r"7 tensors that the model lacks: .*layers\.13\..* and 2 more"):
        adapt({f"model.layers.{layer}.self_attn.q_proj.weight": haar(16, 2) for layer in range(9, 16)})
    with pytest.raises(InputError, match=r"q_proj\.weight has 16 dimensions on the left, its basis 12"):
        adapt({Q: haar(12, 2)})
    with pytest.raises(InputError, match=r"down_proj\.weight has 32 dimensions on the right, its basis 16"):
        adapt({DOWN: haar(16, 2)}, "right")
    for rank in (0, 16):
        with pytest.raises(InputError, match=rf"q_proj\.weight has a basis of rank {rank} in 16 dimensions"):
            adapt({Q: haar(16, rank), DOWN: haar(16, 2)})
    norm = {"model.norm.weight": haar(16, 1)}
    with pytest.raises(InputError, match="no basis of a linear layer"):
        adapt(norm)
    with pytest.raises(InputError, match=r"model\.norm\.weight is no linear layer; narrow"):
        adapt(norm | {Q: haar(16, 2)}, types=["norm", "q"])
    with pytest.raises(InputError, match="type 'v' matches no tensor"):
        adapt({Q: haar(16, 2)}, types=["v"])
    with pytest.raises(InputError, match="not orthonormal"):
        adapt({Q: 2 * haar(16, 2)})
    assert not any("lora_" in name for name, _ in model.named_parameters())  # refused before anything was changed


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_stored_orientation_ties_and_biases_of_other_models(tmp_path: Path, kind: str, side: str, caplog) -> None:
    caplog.set_level(logging.INFO)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 40}
    grouped = {"intermediate_size": 24, "num_key_value_heads": 1, "tie_word_embeddings": True}
    config = GPT2Config(**shape) if kind == "gpt2" else Qwen2Config(**shape, **grouped)
    model = AutoModelForCausalLM.from_config(config)
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    assert HEAD not in start
    generator = torch.Generator().manual_seed(1)
    bases = {}
    for name, value in start.items():
        dim = math.prod(value.shape) if value.ndim == 1 else value.shape[0 if side == "left" else 1]
        bases[name] = haar_basis(dim, 1 if value.ndim == 1 else 3, generator)
    write_subspace(tmp_path / "s.safetensors", Subspace(bases, {}, side, {}))
    network = add_adapter(model, FrozenBasisSettings(str(tmp_path / "s.safetensors")))
    assert "(bias, embeddings, norm)" in caplog.text
    optimizer = torch.optim.SGD([value for value in network.parameters() if value.requires_grad], lr=1.0)
    ids = torch.randint(0, 40, (4, 8), generator=generator)
    for _ in range(2):
        optimizer.zero_grad()
        network(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    merged = dict(network.merge_and_unload().named_parameters())
    moved = {name for name, value in start.items() if not torch.equal(value, merged[name])}
    linear = {name for name in start if name.endswith(("proj.weight", "c_attn.weight", "c_fc.weight"))}
    assert moved == linear
    updates = {name: (merged[name].detach() - start[name]).double() for name in linear}
    floor = sum(float(start[n].square().sum()) for n in linear) / sum(float(u.square().sum()) for u in updates.values())
    assert leak_of(updates, bases, side) < 10 * 2.0**-48 * floor  # the rounding of the merged float32 weights


def test_a_precision_that_rounds_the_basis_is_refused(study: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rounded to torch\.bfloat16.*bf16-mixed"):
        fit(build(study), tmp_path / "true", steps=1, precision="bf16-true")
    module = build(study)
    fit(module, tmp_path / "mixed", steps=2, precision="bf16-mixed")
    assert all(
        torch.equal(factors[0], linear_bases(study, "left")[n]) for n, factors in factors_of(module, "left").items()
    )


def test_it_is_built_on_the_weights_device_whatever_the_default_device(study: Path) -> None:
    model = tiny_source().load_model()
    with torch.device("meta"):  # Lightning builds models under the device of the run
        network = add_adapter(model, FrozenBasisSettings(str(study / "left.safetensors")))
    assert {value.device.type for value in network.parameters()} == {"cpu"}


def test_the_command_line_takes_a_class_path(study: Path, tmp_path: Path) -> None:
    """The plain form stands in configs/organism/contaminated_onto_frozen.yaml."""
    settings = {"subspace": str(study / "left.safetensors"), "types": ["q", "down"]}
    whole = {"class_path": "safety_subspaces.training.modules.FrozenBasisSettings", "init_args": settings}
    done = run_command(
        TRAIN, "fit", "--config=configs/organism/align_dpo.yaml", f"--run_dir={tmp_path / 'run'}",
        f"--model.init_args.source.init_args.path={study / 'aligned'}", "--data.init_args.size=32",
        "--data.init_args.heldout_size=4", f"--model.init_args.adapter={json.dumps(whole)}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    config = json.loads((tmp_path / "run" / "model" / "adapter_config.json").read_text())
    assert len(config["rank_pattern"]) == 2
