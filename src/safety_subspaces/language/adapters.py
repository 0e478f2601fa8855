"""Putting an adapter upon its base: all of it, or none; nothing that PEFT leaves out is passed over in silence."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.foreign import reading
from safety_subspaces.artefacts.provenance import read_adapter_config
from safety_subspaces.artefacts.tensors import TensorFile
from safety_subspaces.language.architecture import network_without_weights, text_name
from safety_subspaces.language.weight_files import unwrapped

ADAPTER_FILE = "adapter_model.safetensors"
# What PEFT puts before the names of the network.
PREFIX = "base_model.model."
# Of an embedding that is kept whole (``save_embedding_layers``) PEFT saves two more: as it was, and under its own name.
COPY = re.compile(r"\.(?:original_module|modules_to_save)(?=\.[^.]+$)")


def merged(base: PreTrainedModel, path: str) -> PreTrainedModel:
    """Return a network with the adapter of a folder merged into its weights.

    Weights that the network ties are untied where the adapter changes one of them: PEFT would change both. An adapter
    that was trained on both as one (``ensure_weight_tying``) leaves them tied.

    Raises:
        InputError: It cannot be read, or not all of it belongs to this network, or the network's own share is missing.
    """
    from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict  # a second's import

    folder = Path(path)
    read = TensorFile(folder / ADAPTER_FILE).read_all()
    stored = {name: read[name] for name in without_copies(read)}
    names = _names_in(base, stored)
    given = {names[name]: tensor for name, tensor in stored.items()}
    for name, weight in base.state_dict().items():
        if PREFIX + name in given and given[PREFIX + name].shape != weight.shape:
            raise InputError(misfit(path, name, given[PREFIX + name].shape, base.name_or_path, weight.shape))
    with reading(f"the adapter {path}", "one that PEFT has written, upon its base"):
        if not read_adapter_config(folder).get("ensure_weight_tying"):
            untie(base, tied_by(given, base.all_tied_weights_keys))
        # On no device until its weights are read: the ranks that it names are not made first.
        adapted = PeftModel.from_pretrained(base, path, low_cpu_mem_usage=True)
        if set(given) != set(stored):
            set_peft_model_state_dict(adapted, given, low_cpu_mem_usage=True)
        taken = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
        _check_taken(path, set(given), taken, set(adapted.state_dict()))
        network: PreTrainedModel = adapted.merge_and_unload()
    return network


def without_copies(stored: Iterable[str]) -> list[str]:
    """Return the names of an adapter's tensors, without those of copies that stand beside the tensor itself."""
    names = dict.fromkeys(stored)
    return [name for name in names if (kept := COPY.sub("", name)) == name or kept not in names]


def tied_by(names: Iterable[str], ties: Mapping[str, str]) -> set[str]:
    """Return the ties of a network, by their second name, of which an adapter with tensors of these names changes one.

    Args:
        names: Of the adapter's tensors, as it stores them, without wrappers.
        ties: Of the network: a weight's second name, and its first.
    """
    touched = [name.removeprefix(PREFIX) for name in names]
    return {
        copy
        for copy, source in ties.items()
        if any(name.startswith(f"{end.removesuffix('.weight')}.") for name in touched for end in (copy, source))
    }


def untie(network: PreTrainedModel, copies: Iterable[str]) -> None:
    """Give tied weights numbers of their own, by their second names; the configuration then says so too."""
    for copy in copies:
        module = network.get_submodule(copy.rpartition(".")[0])
        weight: torch.Tensor = getattr(module, copy.rpartition(".")[2])
        setattr(module, copy.rpartition(".")[2], nn.Parameter(weight.detach().clone(), weight.requires_grad))
        network.all_tied_weights_keys.pop(copy, None)
        for config in (network.config, network.config.get_text_config()):
            config.tie_word_embeddings = False


def misfit(path: str, name: str, held: Sequence[int], base: str, expected: Sequence[int]) -> str:
    """Return the words for a whole tensor of an adapter that does not fit its base, and the way out if there is one.

    Args:
        path: The adapter's folder.
        name: Of the tensor.
        held: Its shape in the adapter.
        base: What the base is called.
        expected: Its shape in the base.
    """
    words = f"adapter {path} holds {name} of shape {tuple(held)}, its base {base} has {tuple(expected)}"
    if len(held) != 2 or held[1:] != expected[1:]:
        return words
    return (
        f"{words}: its vocabulary was resized. Merge it first: base.resize_token_embeddings({held[0]}), "
        f"peft.PeftModel.from_pretrained(base, {path!r}).merge_and_unload().save_pretrained('<merged>'), and give the "
        "merged folder"
    )


def check_complete(path: str, names: Iterable[str], base: Path) -> None:
    """Refuse an adapter that lacks tensors which its configuration makes PEFT expect, by their headers alone.

    Args:
        path: The adapter's folder.
        names: Of its tensors.
        base: Folder of its base.

    Raises:
        InputError: It lacks some; the first is named.
    """
    network = network_without_weights(base)
    if network is None:
        return
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict

    given = set(_names_in(network, names).values())
    with reading(f"the adapter {path}", "one that PEFT has written, upon its base"):
        adapted = PeftModel(network, PeftConfig.from_pretrained(path), low_cpu_mem_usage=True)
        expected = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    _check_taken(path, given, expected, given)


def _names_in(network: nn.Module, stored: Iterable[str]) -> dict[str, str]:
    """Map the tensors of an adapter to what PEFT calls them upon a network: without wrappers.

    Of an adapter that was made upon a multimodal model, and is put upon its text part, without what held that either.
    """
    names = {name: unwrapped(name) for name in stored}
    if any(text_name(name) != name for name, _ in network.named_parameters()):
        return names
    return {
        each: PREFIX + text_name(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else name
        for each, name in names.items()
    }


def _check_taken(path: str, given: set[str], taken: set[str], network: set[str]) -> None:
    missing, foreign = sorted(taken - given), sorted(given - taken - network)
    if foreign:
        raise InputError(
            f"adapter {path}: {len(foreign)} of its {len(given)} tensors belong to no layer of its base, {foreign[0]} "
            "first, so that it would not be applied; base_model_name_or_path in adapter_config.json must name the "
            "model that was adapted, in the class that it was adapted in"
        )
    if missing:
        raise InputError(
            f"adapter {path} lacks {len(missing)} tensors of layers that its configuration names, {missing[0]} first; "
            "copy or export it again"
        )
