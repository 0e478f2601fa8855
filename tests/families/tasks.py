"""What is tried with each family, against the oracle: a task returns its largest error, and how large it may be."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from families.configs import FAMILIES, built
from families.oracle import flat, for_energy, greedy, leading, load, matrices
from language.test_turns import CHATML, tokenizer_of
from support.tiny import trainer
from torch import Tensor, nn

from callbacks import ModelExport, SubspaceProjection
from safety_subspaces.algebra.choices import RankRule
from safety_subspaces.algebra.factors import haar_basis
from safety_subspaces.analysis.overlap.command import overlap
from safety_subspaces.analysis.project.command import project
from safety_subspaces.analysis.subspace.command import subspace
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.evaluation.generation import generate_answers
from safety_subspaces.evaluation.margin import log_probabilities
from safety_subspaces.language.examples import Example, PromptFormat
from safety_subspaces.language.model import Pretrained, load_language_model, load_model
from safety_subspaces.language.prompting import Encoder, encode_prompt
from safety_subspaces.states.capture import find_blocks, prompt_states
from safety_subspaces.states.steering import ablate_weights, ablated
from safety_subspaces.training.data import DatasetSource, InstructionData
from safety_subspaces.training.modules import LoraSettings, SupervisedFineTuning
from safety_subspaces.weights.subspace_file import read_subspace
from safety_subspaces.weights.update_checkpoint import open_checkpoint

FRACTION = 0.25
ENERGY = 0.5
ROUNDING = 1e-5  # of float32 weights, as a share
PROMPTS = ["a", "some longer prompt of words", "mid one", "what is 3 plus 4?"]
ANSWER = 6


@dataclass(frozen=True)
class Outcome:
    """What came of a task: its largest error, and the level under which it is exact."""

    error: float
    within: float

    @property
    def is_exact(self) -> bool:
        """Whether nothing but rounding is left."""
        return self.error <= self.within


class Study:
    """A base, an aligned and a fine-tuned model of one family, in a folder.

    Args:
        family: Of :data:`FAMILIES`.
        folder: An empty one.
    """

    def __init__(self, family: str, folder: Path) -> None:
        self.family, self.folder = family, folder
        network, generator = built(family, 0), torch.Generator().manual_seed(1)
        tokenizer_of(CHATML).save_pretrained(folder / "base")
        for label in ("base", "aligned", "tuned"):
            if label != "base":
                shutil.copytree(folder / "base", folder / label)
                with torch.no_grad():
                    for parameter in network.parameters():
                        parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
            network.save_pretrained(folder / label)

    def path(self, label: str) -> str:
        """The folder of a model."""
        return str(self.folder / label)

    def weights(self, label: str) -> dict[str, Tensor]:
        """The weights of a model by the oracle."""
        return matrices(self.family, load(self.family, self.path(label)))

    def update(self, first: str, second: str) -> dict[str, Tensor]:
        """The difference of two models by the oracle."""
        before, after = self.weights(first), self.weights(second)
        return {name: after[name] - before[name] for name in before}


def read(study: Study) -> Outcome:
    """Read every weight, each tied pair once."""
    checkpoint, expected = open_checkpoint(study.path("aligned")), study.weights("aligned")
    unlike = set(checkpoint.names) ^ set(expected)
    assert not unlike, f"{len(unlike)} names differ, {min(unlike)} first"
    return Outcome(max(float((checkpoint.read(name) - value).abs().max()) for name, value in expected.items()), 0.0)


def projected(study: Study) -> Outcome:
    """Project an update away from alignment's directions, write the model, and load it again."""
    out = study.folder / "project"
    options = {"fractions": [FRACTION], "methods": ["away"], "subspaces": ["top"], "write": True, "workers": 1}
    paths = [study.path(label) for label in ("base", "aligned", "tuned")]
    project(paths[0], paths[1], {"t": paths[2]}, str(out), **options)
    (written,) = (file.parent for file in (out / "models").rglob("config.json"))
    found = matrices(study.family, load(study.family, str(written)))
    aligned, alignment, update = (
        study.weights("aligned"),
        study.update("base", "aligned"),
        study.update("aligned", "tuned"),
    )
    error = 0.0
    for name, change in update.items():
        basis, moved = leading(alignment[name], FRACTION), flat(change)
        expected = aligned[name] + (moved - basis @ (basis.T @ moved)).reshape(change.shape)
        error = max(error, float((found[name] - expected).abs().max() / aligned[name].abs().max()))
    assert load_model(str(written)) is not None
    return Outcome(error, ROUNDING)


def overlapped(study: Study) -> Outcome:
    """Compare two updates' leading directions."""
    updates = {"a": study.path("aligned"), "t": study.path("tuned")}
    table = overlap(
        study.path("base"), updates, str(study.folder / "overlap"), energies=[ENERGY], controls=0, workers=1
    )
    first, second = study.update("base", "aligned"), study.update("base", "tuned")
    assert set(table["tensor"]) == set(first)
    error = 0.0
    for name, found in table.set_index("tensor")["overlap"].items():
        bases = [for_energy(update[str(name)], ENERGY) for update in (first, second)]
        expected = float((bases[0].T @ bases[1]).square().sum()) / min(basis.shape[1] for basis in bases)
        error = max(error, abs(float(found) - expected))
    return Outcome(error, ROUNDING)


def decomposed(study: Study) -> Outcome:
    """Keep the leading directions of alignment in a file."""
    kept = _subspace(study)
    alignment = study.update("base", "aligned")
    assert set(kept) == set(alignment)
    spans = ((kept[name].double(), leading(alignment[name], FRACTION)) for name in alignment)
    return Outcome(max(float((found @ found.T - basis @ basis.T).abs().max()) for found, basis in spans), 1e-4)


def held_full(study: Study) -> Outcome:
    """Train all weights away from alignment's directions."""
    return _held(study, None)


def held_lora(study: Study) -> Outcome:
    """Train an adapter away from alignment's directions."""
    return _held(study, LoraSettings(rank=3, alpha=6.0, targets=FAMILIES[study.family].maps))


def states(study: Study) -> Outcome:
    """Read the residual stream of several prompts at once."""
    model, tokenizer = load_language_model(study.path("aligned"))
    whole, error = load(study.family, study.path("aligned")), 0.0
    for prompt, found in zip(PROMPTS, prompt_states(model, tokenizer, PROMPTS, batch_size=4), strict=True):
        ids = torch.tensor([encode_prompt(tokenizer, prompt)])
        with torch.no_grad():
            hidden = whole(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
        # The last one is behind the final norm.
        for expected, state in zip(hidden[:-1], found[FAMILIES[study.family].first_state :], strict=False):
            error = max(error, float((state - expected[0, -1]).abs().max() / expected.abs().max()))
    return Outcome(error, ROUNDING)


def parts(study: Study) -> Outcome:
    """Read what attention and MLP add to the stream."""
    model, tokenizer = load_language_model(study.path("aligned"))
    stream, *added = (
        torch.stack(prompt_states(model, tokenizer, PROMPTS, "mean", site=site))
        for site in ("residual", "attention", "mlp")
    )
    assert all(float(part.abs().max()) > 1e-3 for part in added)
    return Outcome(float((stream[:, :-1] + sum(added) - stream[:, 1:]).abs().max() / stream.abs().max()), ROUNDING)


def erased(study: Study) -> Outcome:
    """Take directions out of the stream while the model runs, at every block."""
    model, ids, basis = load_model(study.path("aligned")).eval(), torch.arange(3, 27).reshape(2, 12), _directions()
    seen: list[Tensor] = []

    def keep(module: nn.Module, given: tuple, output: Tensor | tuple) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    with torch.no_grad(), ablated(model, basis):
        handles = [block.register_forward_hook(keep) for block in find_blocks(model)]
        model(input_ids=ids)
        for handle in handles:
            handle.remove()
    assert seen
    return Outcome(max(float((state @ basis).abs().max() / state.abs().max()) for state in seen), ROUNDING)


def erased_in_weights(study: Study) -> Outcome:
    """Take directions out of the weights, so that logits are those with hooks."""
    model, ids, basis = load_model(study.path("aligned")).eval(), torch.arange(3, 27).reshape(2, 12), _directions()
    with torch.no_grad():
        with ablated(model, basis):
            expected = model(input_ids=ids).logits
        ablate_weights(model, basis)
        found = model(input_ids=ids).logits
    return Outcome(float((found - expected).abs().max() / expected.abs().max()), 1e-4)


def evaluated(study: Study) -> Outcome:
    """Answer several prompts at once, and score given answers."""
    model, tokenizer = load_language_model(study.path("aligned"))
    whole, form = load(study.family, study.path("aligned")), PromptFormat("plain")  # no template between the two ends
    encoder = Encoder(tokenizer, form)
    answers = generate_answers(model, tokenizer, PROMPTS, ANSWER, batch_size=4, encoder=encoder)
    ends = {256, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    alone = [greedy(whole, encode_prompt(tokenizer, prompt, form), ANSWER, ends) for prompt in PROMPTS]
    assert answers == tokenizer.batch_decode(alone, skip_special_tokens=True), f"answers are {answers}"
    assert len(set(answers)) > 1, "all prompts are answered alike"
    texts = [encoder.example(Example(prompt, "so be it")) for prompt in PROMPTS]
    error = 0.0
    for text, found in zip(texts, log_probabilities(model, texts, 4), strict=True):
        ids = torch.tensor([text.input_ids])
        with torch.no_grad():
            chances = whole(input_ids=ids, use_cache=False).logits[0, :-1].double().log_softmax(-1)
        expected = float(chances.gather(1, ids[0, 1:, None])[text.prompt_length - 1 :].sum())
        error = max(error, abs(found - expected) / abs(expected))
    return Outcome(error, ROUNDING)


TASKS: dict[str, Callable[[Study], Outcome]] = {
    "weights": read,
    "project, write, load": projected,
    "overlap": overlapped,
    "subspace": decomposed,
    "constraint, all weights": held_full,
    "constraint, LoRA": held_lora,
    "hidden states": states,
    "attention and MLP": parts,
    "ablation, hooks": erased,
    "ablation, weights": erased_in_weights,
    "answers": evaluated,
}


def attempt(study: Study, task: str) -> tuple[str, str]:
    """Return what came of a task: exact, refused or wrong; and its error or what was said."""
    try:
        outcome = TASKS[task](study)
    except InputError as error:
        return "refused", str(error)
    except Exception as error:  # noqa: BLE001 - whatever is no refusal by name is a fault
        return "wrong", f"{type(error).__name__}: {error}"
    return ("exact" if outcome.is_exact else "wrong"), f"{outcome.error:.1e}"


def _directions() -> Tensor:
    return haar_basis(32, 2, torch.Generator().manual_seed(0))


def _subspace(study: Study) -> dict[str, Tensor]:
    out = study.folder / "subspace.safetensors"
    if not out.is_file():
        rank = RankRule(fraction=FRACTION)
        subspace(study.path("base"), study.path("aligned"), str(out), rank, workers=1)
    return dict(read_subspace(str(out)).bases)


def _held(study: Study, adapter: LoraSettings | None) -> Outcome:
    folder = study.folder / ("full" if adapter is None else "lora")
    folder.mkdir()
    rows = [{"prompt": f"say {word}", "response": f"{word} it is"} for word in ("one", "two", "three", "four")]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    module = SupervisedFineTuning(
        Pretrained(study.path("aligned")), adapter=adapter,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0),
    )  # fmt: skip
    data = InstructionData(DatasetSource(str(folder / "rows.jsonl")), batch_size=2, max_length=96)
    constraint = SubspaceProjection(
        base=study.path("base"), aligned=study.path("aligned"), rank=RankRule(fraction=FRACTION), mode="away"
    )
    trainer(folder, callbacks=[constraint, ModelExport()]).fit(module, datamodule=data)
    merged = load_model(str(folder / "model"))
    merged.save_pretrained(folder / "merged")
    before, after = study.weights("aligned"), matrices(study.family, merged)
    alignment = study.update("base", "aligned")
    moved = {name: flat(after[name] - before[name]) for name in before if not torch.equal(after[name], before[name])}
    assert moved
    if adapter is not None:
        assert {name.split(".")[-2] for name in moved} == set(adapter.targets)
    leaked = {name: leading(alignment[name], FRACTION).T @ change for name, change in moved.items()}
    inside = sum(float(part.square().sum()) for part in leaked.values())
    whole = sum(float(change.square().sum()) for change in moved.values())
    return Outcome((inside / whole) ** 0.5, 1e-4)


def table(rows: list[dict[str, str]]) -> pd.DataFrame:
    """Return one row for each family and task."""
    return pd.DataFrame(rows, columns=["architecture", "task", "outcome", "said"])
