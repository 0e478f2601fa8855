"""The steps of ``analyze.py convert``: a file loaded, freed of its quantisation, compared with what was written."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.foreign import reading
from safety_subspaces.language.examples import PromptFormat
from safety_subspaces.language.model import evaluating, load_language_model
from safety_subspaces.language.model_files import bounded_network
from safety_subspaces.language.prompting import encode_prompt

# What loading leaves in a configuration: how the file was quantised, and what its author called the model.
LEFT_OUT = ("quantization_config", "_name_or_path", "_model_name_or_path")


# Any text will do to compare logits on; this one has letters, digits and signs.
SAMPLE = "What is 12 + 30? Answer in one sentence."


# Equal weights in equal float32 arithmetic: nothing but the order of threads' sums may differ.
LOGIT_TOLERANCE = 1e-4


SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


def load(source: Path, storage: dict[str, int]) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Load the tokenizer and the model as Transformers makes them of the file.

    Raises:
        InputError: It cannot read it.
    """
    disable_progress_bar()  # three in a row, of a second each
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    where["trust_remote_code"] = False  # transformers would ask on a terminal, and run what lies beside the file
    bounded = bounded_network(sum(storage.values()), source.stat().st_size, str(source))
    with reading(source, "a causal language model as GGUF"), bounded:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    return tokenizer, model


def without_quantisation(loaded: PreTrainedModel) -> PreTrainedModel:
    """Return a network of the same architecture and weights that does not count as quantised."""
    settings = {name: value for name, value in loaded.config.to_dict().items() if name not in LEFT_OUT}
    plain: PreTrainedModel = AutoModelForCausalLM.from_config(
        type(loaded.config).from_dict(settings), trust_remote_code=False
    )
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    return plain


def check_written(folder: Path, loaded: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
    """Compare a written folder with what was loaded, and return the largest difference of logits."""
    model, read = load_language_model(str(folder))
    wanted, got = loaded.state_dict(), model.state_dict()
    unlike = [name for name in wanted.keys() | got.keys() if not _equal(wanted.get(name), got.get(name))]
    if unlike:
        raise InputError(f"{len(unlike)} weights were not written as they were read, {min(unlike)} first")
    if read.chat_template != tokenizer.chat_template:
        raise InputError("the chat template was not written as it was read")
    for name in SPECIAL_TOKENS:
        if getattr(read, name) != getattr(tokenizer, name):
            raise InputError(f"{name} is {getattr(read, name)} after writing, {getattr(tokenizer, name)} before")
    form = PromptFormat("chat" if tokenizer.chat_template else "plain")
    ids = encode_prompt(tokenizer, SAMPLE, form)
    if encode_prompt(read, SAMPLE, form) != ids:
        raise InputError(f"the written tokenizer reads {SAMPLE!r} otherwise than the file's")
    logits = [_logits(network, ids) for network in (loaded, model)]
    difference = float((logits[0] - logits[1]).abs().max())
    if not difference <= LOGIT_TOLERANCE * float(logits[0].abs().max()):
        raise InputError(f"logits of the written model differ by {difference:.2g} from those of the file")
    return difference


def _logits(model: PreTrainedModel, ids: list[int]) -> Tensor:
    with evaluating(model):
        logits: Tensor = model(input_ids=torch.tensor([ids])).logits
    return logits


def _equal(first: Any, second: Any) -> bool:
    return first is not None and second is not None and torch.equal(first, second)
