"""Whether prompt sets share their space of hidden states, at every layer, linearly and not, and with what error."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safety_subspaces.artefacts.results import ResultFolder, check_result_free, recorded
from safety_subspaces.artefacts.screen import View
from safety_subspaces.language.examples import CHAT, PromptFormat, groups_of
from safety_subspaces.language.model_paths import check_there
from safety_subspaces.states.choices import Position, Site

if TYPE_CHECKING:
    import pandas as pd

VIEW = View(
    by=("model", "first", "second", "position", "energy"),
    columns=("overlap", "matched_chance", "chance"),
    over="layers, without the embedding",
    where=lambda table: ~table["floor"] & ~table["matched"] & (table["layer"] > 0),
    says="overlap is 1 where one set's space holds the other's; matched_chance is what it is by chance.",
)


def activations(
    models: dict[str, str],
    prompts: dict[str, str],
    out: str,
    energies: Sequence[float] = (0.5, 0.75, 0.9, 0.95, 0.99),
    center: bool = False,
    position: Position | list[Position] = "last",
    layers: list[int] | None = None,
    site: Site = "residual",
    template: str = CHAT,
    split: Literal["dev", "test"] = "test",
    limit: int | None = None,
    sample: int = 512,
    controls: int = 99,
    permutations: int = 199,
    shared: Literal["refuse", "drop"] = "refuse",
    batch_size: int = 64,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device: str = "auto",
    cache: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
    template_args: dict[str, Any] | None = None,
    control_tokens: bool = False,
) -> "pd.DataFrame":
    """Compare the hidden states of prompt sets, in each model, at each layer and position.

    The overlap of two sets is the mode subspace overlap of their right singular vectors up to a share of energy: 1
    where one space contains the other, max(k1, k2) / hidden by chance. p_haar asks whether uniformly random subspaces
    would overlap as much; uncentred sets share their mean, so it always says no. matched_chance and p_matched compare
    with the same pair after each coordinate of one set gets a random sign, and of uncentred sets their deviations from
    the mean alone. Rows with floor compare the two halves of one set; rows with matched take only prompts of like
    length and template.

    Further tables: equivalence (of parts of the sets: is the overlap nearer to the floor than to chance, with an error
    that is somewhat too large, and its power),
    two_sample (kernel MMD and distance of means, with permutation tests of whole groups of prompts), dimension
    (intrinsic dimension by TwoNN and maximum likelihood), cka (the same prompts in two models), depth (the paper's mean
    over 65 to 90 % of depth).

    Overlaps are of all prompts, whose second moments are summed as they pass; everything else is of a seeded sample.

    Args:
        models: Label and path (or Hub id) of each model; adapters are merged into the base that they name.
        prompts: Label and source of each prompt set, two or more: organism:<set>, a JSONL file whose lines have a
            prompt (and if they like a group and a source), <file>:<set>, or a known data set such as advbench.
        out: Folder to write.
        energies: Shares of energy, in (0, 1], at which the spaces are cut.
        center: Take the mean of each set out first.
        position: last token of the prompt, mean over it, or first_generated token of the answer; one or several.
        layers: Hidden-state indices: 0 is the embedding, i what block i leaves; all by default.
        site: residual stream, or the output of each block's attention or mlp.
        template: chat, or a prompt template by its name or import path.
        split: Split of the organism's prompts.
        limit: At most so many prompts of each set.
        sample: At most so many prompts of each set for all that is not an overlap of whole sets.
        controls: Draws of the matched control; at most 99 for floors and matched prompts, which need its level alone. A
            p that is to hold among m layers and models needs 20 m - 1.
        permutations: Permutations of the two-sample tests; as many as that.
        shared: What to do when two sets share prompts: refuse, or drop them from both.
        batch_size: Prompts at once; halved where memory ends.
        dtype: Type in which models are run.
        device: cpu, cuda, cuda:<n>, auto (a GPU, if there is one), or spread (over all of them, through accelerate).
        cache: Folder that keeps what was read of each model and set, by content; .states beside out by default, none
            for none.
        seed: Seed of halves, parts, samples and nulls.
        overwrite: Replace earlier results in out.
        template_args: What the chat template is given beside the turns, such as enable_thinking.
        control_tokens: Whether the text of a control token in a prompt is read as that token; by default it is text.

    Returns:
        One row for each model, pair of sets, position, layer and energy.

    Raises:
        InputError: Before any model runs: an argument out of range, a model or prompt file that is missing, a layer
            that does not exist, a prompt set that is too small, twice the same, or shares prompts with another.

    Source: arXiv 2505.14185, section 6; the floors, controls and tests are ours.
    """
    arguments = recorded(locals())
    started = time.monotonic()
    positions: tuple[Position, ...] = (position,) if isinstance(position, str) else tuple(position)
    arguments["position"] = list(positions)
    check_there(*models.values())
    check_result_free(out, "activations", overwrite)

    import pandas as pd
    import torch

    from safety_subspaces.analysis.activations.comparisons import (
        ComparisonSettings,
        ModelStates,
        cka_rows,
        depth_table,
        dimension_rows,
        equivalence_rows,
        overlap_rows,
        two_sample_rows,
    )
    from safety_subspaces.analysis.activations.run import COLUMNS, check_arguments, matched, summarise
    from safety_subspaces.artefacts.progress import Bar
    from safety_subspaces.evaluation.prompt_sets import files_of, read_sets
    from safety_subspaces.language.model import load_language_model
    from safety_subspaces.states.capture import check_models
    from safety_subspaces.states.captured import CaptureSettings, captured

    check_arguments(models, energies, positions, sample, controls, permutations, batch_size)
    blocks = check_models(models, layers, site)
    form = PromptFormat(template, template_args or {}, control_tokens)
    sets, left_out = read_sets(prompts, split, limit, shared)
    files = files_of(prompts)
    results = ResultFolder(out, "activations", arguments, [*models.values(), *files], overwrite, started)
    with results:
        settings = CaptureSettings(
            positions, None if layers is None else tuple(layers), site, form, sample, seed, batch_size
        )
        comparison = ComparisonSettings(tuple(energies), center, controls, permutations, seed)
        folder = None if cache == "none" else Path(cache) if cache else Path(out).parent / ".states"
        tables: dict[str, list[dict[str, Any]]] = {
            name: [] for name in ("table", "equivalence", "two_sample", "dimension")
        }
        seen: list[ModelStates] = []
        with Bar(total=len(models), desc="activations", unit="model") as bar:
            for label, path in models.items():
                bar.set_postfix_str(label)
                model, tokenizer = load_language_model(path, getattr(torch, dtype), device=device)
                captured_sets = {
                    name: captured(model, tokenizer, path, items, settings, folder, f"{label}: {name}")
                    for name, items in sets.items()
                }
                del model
                sampled = {name: [items[row] for row in captured_sets[name].rows] for name, items in sets.items()}
                pairs, unmatched = matched(sampled, tokenizer, form)
                left_out += [(f"{label}: {name}", reason) for name, reason in unmatched]
                states = ModelStates(
                    label, captured_sets, {name: groups_of(items, name) for name, items in sampled.items()}, pairs
                )
                tables["table"] += overlap_rows(states, comparison)
                tables["equivalence"] += equivalence_rows(states, comparison)
                tables["two_sample"] += two_sample_rows(states, comparison)
                tables["dimension"] += dimension_rows(states)
                seen.append(states)
                bar.update()
        table = pd.DataFrame(tables["table"])[COLUMNS]
        for name, reason in left_out:
            results.leave_out(name, reason)
        results.summary = summarise(pd.DataFrame(tables["equivalence"]), sets, sampled=sample)
        results.write_table(table)
        for name in ("equivalence", "two_sample", "dimension"):
            results.write_table(pd.DataFrame(tables[name]), name)
        if len(seen) > 1:
            results.write_table(pd.DataFrame(cka_rows(seen)), "cka")
        if site == "residual" and layers is None:
            depths = [depth_table(table[table["model"] == label], count + 1) for label, count in blocks.items()]
            results.write_table(pd.concat(depths, ignore_index=True), "depth")
    return table
