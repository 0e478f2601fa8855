"""Writing a trained network in the format that transformers and PEFT read, from its master weights."""

from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from safety_subspaces.artefacts.files import read_json, replacing_folder, write_json
from safety_subspaces.constraint.held import write_leakage
from safety_subspaces.constraint.master import open_master
from safety_subspaces.language.model_card import write_card
from safety_subspaces.language.turns import all_ends, turn_of
from safety_subspaces.training.card import card_of_run
from safety_subspaces.training.choices import ExportType

MANIFEST = "manifest.json"


def export_model(
    network: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    target: Path,
    dtype: ExportType | None = None,
    run: Path | None = None,
    writes: bool = True,
    overwrite: bool = True,
) -> None:
    """Write a full model, or a PEFT adapter that names its base, with tokenizer, chat template and model card.

    Weights are safetensors. The folder takes its name when it is whole; an earlier export of the same run is replaced.
    Where weights are sharded all ranks must call it together, and rank zero needs host memory for the whole model.

    Args:
        network: The network, with its adapter if it has one.
        tokenizer: Its tokenizer.
        target: The folder to make.
        dtype: Type of the exported weights; by default the one that they are trained in (float32 under ZeRO).
        run: The run folder. What the export leaks of each constraint in its ``constraint/`` is measured on the written
            weights and kept beside them in ``leakage.json``; its manifest says what the model card is made of.
        writes: Whether this rank writes.
        overwrite: Whether what is in ``target`` may be replaced.
    """
    state = gather_state(network, dtype, keeps=writes)
    if not writes:
        return
    # Else PEFT adds the whole embeddings to an adapter on the head; they are the base's, and untouched.
    options = {"save_embedding_layers": False} if isinstance(network, PeftModel) else {}
    disable_progress_bar()  # of a model's shards; our own bars show stages and models
    with replacing_folder(target, overwrite=overwrite) as folder:
        network.save_pretrained(folder, state_dict=state, **options)
        tokenizer.save_pretrained(folder)
        config = folder / "config.json"
        if config.is_file():
            stored = {str(value.dtype).removeprefix("torch.") for value in state.values() if value.is_floating_point()}
            write_json(config, read_json(config) | {"dtype": stored.pop() if len(stored) == 1 else "float32"})
        _name_ends(folder / "generation_config.json", tokenizer)
        leakage = [] if run is None else write_leakage(folder, run / "constraint")
        manifest = {} if run is None or not (run / MANIFEST).is_file() else read_json(run / MANIFEST)
        # In the place of PEFT's, which is one of empty headings.
        write_card(folder, card_of_run(manifest, [vars(one) for one in leakage]), earlier=target)


def _name_ends(path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Have the settings of a model name every end that an answer has by its template, as other programs read them."""
    if not path.is_file():
        return
    settings = read_json(path)
    further = turn_of(tokenizer).end if tokenizer.chat_template else None
    ends = all_ends(GenerationConfig(eos_token_id=settings.get("eos_token_id")), tokenizer, further)
    if ends and ends != [settings.get("eos_token_id")]:
        write_json(path, settings | {"eos_token_id": ends if len(ends) > 1 else ends[0]})


def gather_state(
    network: PreTrainedModel | PeftModel, dtype: ExportType | None = None, keeps: bool = True
) -> dict[str, Tensor]:
    """Return the master weights and buffers by name, gathered one at a time; all ranks must call it together.

    Args:
        network: The network.
        dtype: Type to cast weights to.
        keeps: Whether this rank wants them; otherwise it only takes part, and gets nothing.
    """
    adapter_only = isinstance(network, PeftModel)
    state = {}
    for name, parameter in network.named_parameters():
        if adapter_only and not parameter.requires_grad and ".lora_" not in name:
            continue  # the base stays where it is
        master = open_master(parameter)
        trained_in = torch.float32 if master.is_sharded else parameter.dtype
        whole = master.whole()
        if keeps:
            state[name] = whole.detach().to("cpu", getattr(torch, dtype) if dtype else trained_in)
    if keeps and not adapter_only:
        parameters = dict(network.named_parameters(remove_duplicate=False))
        state |= {name: value for name, value in network.state_dict().items() if name not in parameters}
    return state
