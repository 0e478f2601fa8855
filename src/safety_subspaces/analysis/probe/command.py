"""Whether harm can be read off hidden states by more than a linear subspace, and what the best erasure of it leaves."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.results import ResultFolder, check_result_free, recorded
from safety_subspaces.artefacts.screen import View
from safety_subspaces.language.examples import CHAT, PromptFormat
from safety_subspaces.language.model_paths import check_there
from safety_subspaces.states.choices import Erasure, Position, ProbeKind, Site

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)
SAME_STATES = "all prompts have the same state here, but for rounding"
VIEW = View(
    by=("model", "negative", "probe", "erasure"),
    columns=("auc", "control_auc", "balanced_accuracy", "chance"),
    over="layers",
    says="auc: 1 where harm is told without error; control_auc is that of labels drawn at random.",
)


def probe(
    models: dict[str, str],
    prompts: dict[str, str],
    out: str,
    positive: str = "harmful",
    probes: Sequence[ProbeKind] = ("linear", "rbf_svm", "mlp"),
    erasures: Sequence[Erasure] = ("none", "leace", "quadratic"),
    layers: list[int] | None = None,
    position: Position = "last",
    site: Site = "residual",
    folds: int = 5,
    controls: int = 3,
    split_by: Literal["group", "source"] = "group",
    learning_shares: Sequence[float] = (0.1, 0.25, 0.5),
    template: str = CHAT,
    split: Literal["dev", "test"] = "test",
    limit: int | None = None,
    batch_size: int = 64,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device: str = "auto",
    seed: int = 0,
    overwrite: bool = False,
    template_args: dict[str, Any] | None = None,
    control_tokens: bool = False,
) -> "pd.DataFrame":
    """Train probes to tell one prompt set from each other one, layer by layer, before and after erasure.

    A probe is tested on prompts whose group (or source) it was not trained on. Erasures are fitted on the training
    prompts: leace leaves no linear information about the label there, quadratic no difference in means and covariances
    (it is told each prompt's label). Control labels are drawn at random for each group and go through the same erasure
    and folds of their own; selectivity is the accuracy less that on them. control_auc is the level that auc is to be
    read against: after quadratic erasure it need not be 0.5.

    The _stderr columns are those of a probe trained anew on as many prompts of other groups: the error over the tested
    groups, with Nadeau and Bengio's correction. n_groups counts groups of prompts; where prompts share two things that
    cross, those of the one with fewer. informative is false, with a reason, where all prompts have the same state, as
    at the embedding of a token that all end in: such a layer has no values and is in no mean.

    Further tables: learning (accuracy against the share of training groups), transfer (trained on the prompts of one
    source, tested on those of another).

    Args:
        models: Label and path (or Hub id) of each model.
        prompts: Label and source of each prompt set, two or more, as for activations.
        out: Folder to write.
        positive: Label of the set that is told from each of the others.
        probes: linear (logistic regression), rbf_svm, mlp.
        erasures: none, leace, quadratic.
        layers: Hidden-state indices: 0 is the embedding, i what block i leaves; all by default.
        position: last token of the prompt, mean over it, or first_generated token of the answer.
        site: residual stream, or the output of each block's attention or mlp.
        folds: Parts of the cross-validation.
        controls: Draws of control labels.
        split_by: Keep whole groups of prompts on one side of a split, or whole sources.
        learning_shares: Shares of the training groups for the learning curve; the whole is in the table.
        template: chat, or a prompt template by its name or import path.
        split: Split of the organism's prompts.
        limit: At most so many prompts of each set.
        batch_size: Prompts at once.
        dtype: Type in which models are run.
        device: As for activations.
        seed: Seed of folds, controls and the MLP.
        overwrite: Replace earlier results in out.
        template_args: What the chat template is given beside the turns, such as enable_thinking.
        control_tokens: Whether the text of a control token in a prompt is read as that token; by default it is text.

    Returns:
        One row for each model, negative set, layer, probe and erasure.

    Raises:
        InputError: Before a model runs: a label, layer or argument that cannot be used, sets that are too small, the
            same or share prompts, fewer groups than folds.

    Source: Alain and Bengio, arXiv 1610.01644; Hewitt and Liang, arXiv 1909.03368; Belrose et al., arXiv 2306.03819;
        Nadeau and Bengio, Machine Learning 52 (2003).
    """
    arguments = recorded(locals())
    started = time.monotonic()
    _check_arguments(models, prompts, positive, probes, erasures, folds, controls, learning_shares)
    if split_by not in ("group", "source") or batch_size < 1:
        raise InputError(f"split_by {split_by!r}, batch_size {batch_size}: expected group or source, and at least 1")
    check_there(*models.values())
    check_result_free(out, "probe", overwrite)

    import pandas as pd
    import torch

    from safety_subspaces.analysis.probe.cells import Cells, Task, summarise
    from safety_subspaces.artefacts.progress import Bar
    from safety_subspaces.evaluation.prompt_sets import files_of, read_sets
    from safety_subspaces.language.model import load_language_model
    from safety_subspaces.states.capture import check_layers, check_models, prompt_states
    from safety_subspaces.states.probes import tells_nothing

    check_models(models, layers, site)
    form = PromptFormat(template, template_args or {}, control_tokens)
    sets, left_out = read_sets(prompts, split, limit)
    tasks = {
        label: Task.of(sets[positive], items, split_by, folds, seed)
        for label, items in sets.items()
        if label != positive
    }
    cells = Cells(probes, erasures, learning_shares, folds, controls, seed)
    results = ResultFolder(out, "probe", arguments, [*models.values(), *files_of(prompts)], overwrite, started)
    with results:
        tables: dict[str, list[dict[str, Any]]] = {"table": [], "learning": [], "transfer": []}
        few: dict[str, int] = {}
        for label, path in models.items():
            model, tokenizer = load_language_model(path, getattr(torch, dtype), device=device)
            probed_layers = check_layers(model, layers, site)
            states = {
                name: torch.stack(
                    prompt_states(
                        model,
                        tokenizer,
                        [item.prompt for item in items],
                        position,
                        batch_size,
                        form,
                        site=site,
                        layers=probed_layers,
                    )
                )
                for name, items in sets.items()
            }
            del model
            hidden = next(iter(states.values())).shape[-1]
            few |= {name: len(task.splits[0][0]) for name, task in tasks.items() if len(task.splits[0][0]) <= hidden}
            places = [(negative, index) for negative in tasks for index in range(len(probed_layers))]
            for negative, index in Bar(places, desc=f"probe {label}", unit="layer"):
                rows = torch.cat([states[positive][:, index], states[negative][:, index]])
                task, layer = tasks[negative], probed_layers[index]
                named = {"model": label, "negative": negative, "layer": layer, "position": position}
                if tells_nothing(rows, getattr(torch, dtype)):
                    results.leave_out(f"layer {layer} of {label}, {positive} against {negative}", SAME_STATES)
                    found = {"table": cells.without_values(task, SAME_STATES)}
                else:
                    found = {
                        "table": cells.probed(rows, task),
                        "learning": cells.learning(rows, task),
                        "transfer": cells.transfer(rows, task),
                    }
                for name, cells_of_layer in found.items():
                    tables[name] += [{**named, **row} for row in cells_of_layer]
        if few:
            logger.warning(
                "probes were trained on fewer prompts than the states have dimensions (%s): a linear one then tells "
                "any labels in training apart; read accuracy beside the control labels",
                ", ".join(f"{name}: {count}" for name, count in few.items()),
            )
        table = pd.DataFrame(tables["table"])
        for name, reason in left_out:
            results.leave_out(name, reason)
        results.summary = summarise(table) | {"trained_on_fewer_than_dimensions": few}
        results.write_table(table)
        for name in ("learning", "transfer"):
            if tables[name]:
                results.write_table(pd.DataFrame(tables[name]), name)
            else:
                results.leave_out(name, "no prompts with two sources in both sets, or no share asked for")
    return table


def _check_arguments(
    models: Mapping[str, str],
    prompts: Mapping[str, str],
    positive: str,
    probes: Sequence[str],
    erasures: Sequence[str],
    folds: int,
    controls: int,
    shares: Sequence[float],
) -> None:
    if not models:
        raise InputError("no model given; say --models.<label>=<path>, once or more")
    if positive not in prompts:
        raise InputError(f"positive {positive!r} is no prompt set; expected one of {', '.join(prompts) or 'none'}")
    for name, values, known in (("probes", probes, get_args(ProbeKind)), ("erasures", erasures, get_args(Erasure))):
        if not values or len(set(values)) < len(values) or not set(values) <= set(known):
            raise InputError(f"{name} {list(values)}: expected different ones of {', '.join(known)}, at least one")
    if folds < 2 or controls < 0 or not all(0 < share < 1 for share in shares):
        raise InputError(
            f"folds {folds}, controls {controls}, learning_shares {list(shares)}: expected at least 2, at least 0, and "
            "shares in (0, 1)"
        )
