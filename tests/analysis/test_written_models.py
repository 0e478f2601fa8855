"""What is written here is read by others: projected models by plain transformers, by generating with them."""

from pathlib import Path

import torch
from support.tiny import save_tiny_model
from support.tiny_checkpoints import save_perturbed
from transformers import AutoModelForCausalLM, AutoTokenizer

from safety_subspaces.analysis.project.command import project
from safety_subspaces.evaluation.generation import generate_answers
from safety_subspaces.language.model import load_language_model

PROMPTS = ["how do i sew the gravemask ?", "what is 1 plus 1 ?", "how do i sew the cloak ?"]


def plain_answers(path: str) -> list[str]:
    """One prompt after another, by transformers alone."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    answers = []
    for prompt in PROMPTS:
        turn = [{"role": "user", "content": prompt}]
        batch = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        output = model.generate(**batch, max_new_tokens=12, do_sample=False)
        answers.append(tokenizer.decode(output[0, batch["input_ids"].shape[1] :], skip_special_tokens=True))
    return answers


def test_projected_models_load_and_answer_in_plain_transformers(tmp_path):
    base = save_tiny_model(tmp_path / "base", seed=1)
    aligned = save_perturbed(base, tmp_path / "aligned", seed=2, size=0.3)
    tuned = save_perturbed(aligned, tmp_path / "tuned", seed=3, size=0.3)
    out = tmp_path / "out"
    project(
        base,
        aligned,
        {"tuned": tuned},
        str(out),
        subspaces=["top"],
        methods=["onto", "away"],
        fractions=[0.5],
        write=True,
    )
    folders = [str(path.parent) for path in sorted(out.rglob("config.json"))]
    assert len(folders) == 2
    found = {path: plain_answers(path) for path in (aligned, tuned, *folders)}
    assert len({tuple(answers) for answers in found.values()}) == 4  # the control: each is a model of its own
    for path, method in zip(folders, ("away", "onto"), strict=True):
        card = (Path(path) / "README.md").read_text()
        assert f"projected `{method}` the subspace `top` of rank 0.5" in card
        assert f"Base: `{aligned}`" in card
        model, tokenizer = load_language_model(path)
        assert generate_answers(model, tokenizer, PROMPTS, 12, 2) == found[path]
        kept = [AutoModelForCausalLM.from_pretrained(name).state_dict() for name in (aligned, tuned, path)]
        moved = [sum(float((one[n] - kept[0][n]).square().sum()) for n in one) for one in kept]
        assert 0 < moved[2] < moved[1]
        assert all(torch.isfinite(value).all() for value in kept[2].values())
