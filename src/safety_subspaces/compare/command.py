"""``analyze.py compare``: the first command for checkpoints of one's own, from three folders to a page."""

from typing import Any, Literal

from safety_subspaces.artefacts.extras import check_extra


def compare(
    base: str,
    aligned: str,
    tuned: dict[str, str],
    out: str,
    prompts: str | dict[str, str] | None = None,
    judge: str | None = None,
    template: str = "chat",
    max_new_tokens: int = 32,
    batch_size: int = 64,
    limit: int | None = None,
    split: Literal["dev", "test"] = "test",
    shared: Literal["refuse", "drop"] = "refuse",
    judge_args: dict[str, Any] | None = None,
    template_args: dict[str, Any] | None = None,
    control_tokens: bool = False,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device: str = "auto",
    tensors: list[str] | None = None,
    seed: int = 0,
    any_lineage: bool = False,
    workers: int | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
) -> str:
    """Compare a base, a model aligned from it and fine-tunes of that one, and write the page.

    Of the weights: the alignment subspace (out/alignment.safetensors, nine tenths of the update's energy), how much of
    each fine-tune's energy lies in it beside 99 random subspaces (project), and the overlap of every two updates, the
    alignment update among them (overlap). With prompts also the behaviour of each model (evaluate), and whether the
    sets of prompts share their space of hidden states, centred (activations). out is a study: each of these stands
    under out/analysis, as its subcommand would have written it, and out/report/index.html says what they say.

    Everything is checked before anything is computed. Then it says about how long each analysis will take and how much
    memory, measured on the first tensors and prompts. Interrupted, the same command goes on: what is whole, and was
    made with the same arguments, the same bytes of models and prompts and the same program, is kept.

    Args:
        base: Folder of the base model.
        aligned: Folder of the model that was aligned from it.
        tuned: Label and folder (or LoRA adapter) of each fine-tune of the aligned model: --tuned.mine FOLDER, once or
            more.
        out: Folder for the study: a new one, or that of the same comparison.
        prompts: What behaviour is measured on; none by default. A JSONL file with the fields set (utility, harmful or
            benign), prompt, reference and refusals; a source for each set, a file or a known data set:
            --prompts.harmful advbench; or organism.
        judge: What scores the answers: phrases (refusal phrases, the default), rubric (a chat model), classifier,
            organism, or the import path of another.
        template: chat, or a prompt template by its name or import path.
        max_new_tokens: Longest answer, in tokens.
        batch_size: Prompts at once.
        limit: At most so many prompts of each set.
        split: Split of the organism's prompts.
        shared: What to do when two sets share prompts, whose hidden states are compared: refuse, or drop them there.
        judge_args: What the judge is made with.
        template_args: What the chat template is given beside the turns, such as enable_thinking.
        control_tokens: Whether the text of a control token in a prompt is read as that token; by default it is text.
        dtype: Type in which models are run.
        device: What they run on: cpu, cuda, cuda:<n>, auto (a GPU, if there is one), or spread.
        tensors: Patterns, types or layers of the weights to take; all by default.
        seed: Seed of all that is drawn.
        any_lineage: Go on, with a warning, where base and aligned look swapped, or a fine-tune trained from the base.
        workers: Processes of one thread each for the weights; by default one a core, or none beside this one for small
            models.
        dry_run: Stop after the checks and after saying what it will take; nothing is written.
        overwrite: Make anew what was made of other models or with other settings in out.

    Returns:
        What the page says in short, and where it is; of a dry run what it would take.

    Raises:
        InputError: Before anything is computed: a model that is missing, of another shape or vocabulary, or in the
            wrong place; prompts that cannot be read, that a model has no positions for, or that share prompts; no such
            judge; a label that is taken; an out that holds something else. Later: what an analysis refuses, such as
            weights that are NaN; what was done stays.
    """
    # The help is there at once: what follows imports PyTorch and Transformers.
    from safety_subspaces.compare.plan import Comparison, behaviour_of
    from safety_subspaces.compare.run import run

    check_extra("plotly", "a page with figures")
    behaviour = behaviour_of(
        prompts,
        judge,
        split=split,
        template=template,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        limit=limit,
        judge_args=judge_args or {},
        template_args=template_args or {},
        control_tokens=control_tokens,
    )
    comparison = Comparison(
        base=base,
        aligned=aligned,
        tuned=tuned,
        out=out,
        behaviour=behaviour,
        shared=shared,
        dtype=dtype,
        device=device,
        tensors=tuple(tensors or ()),
        seed=seed,
        any_lineage=any_lineage,
        workers=workers,
    )
    return run(comparison, dry_run, overwrite)
