"""Which file of a model folder holds each weight: one rule for those who read weights and for those who run them.

Where two files could each be meant, transformers would take one without a word; here both are named and none is read.
"""

import re
from pathlib import Path

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import read_json
from safety_subspaces.artefacts.tensors import TensorFile, read_index

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG = "config.json"
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# What DeepSpeed and DDP put before a name, and torch.compile, FSDP and checkpointing before it or inside.
WRAPPERS = re.compile(
    r"^(?:_forward_module\.|module\.)+|(?:^|(?<=\.))"
    r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)


def unwrapped(name: str) -> str:
    """Return the name of a tensor without what wrappers of a model put before it and into it."""
    while (shorter := WRAPPERS.sub("", name)) != name:
        name = shorter
    return name


def weight_files(path: str, folder: Path) -> dict[str, TensorFile]:
    """Return the file of each stored tensor; every file is opened, so that a damaged one is found at once.

    Args:
        path: What the user called the model.
        folder: Where it is.

    Raises:
        InputError: There are no safetensors, or it is unclear which: a single file beside an index, a shard that is
            missing or in no index, a tensor in two shards or in none that the index names.
    """
    named = read_json(folder / CONFIG).get("transformers_weights") if (folder / CONFIG).is_file() else None
    if named not in (None, SINGLE_FILE, INDEX_FILE):
        expected = f"only safetensors are read, {SINGLE_FILE} or its shards"
        raise InputError(f"{path}/{CONFIG} names {named!r} as its weights; {expected}")
    index, single = folder / INDEX_FILE, folder / SINGLE_FILE
    if index.is_file():
        return _shards(path, folder, read_index(index))
    if single.is_file():
        loose = sorted(file.name for file in folder.iterdir() if SHARD.fullmatch(file.name))
        if loose:
            raise InputError(
                f"checkpoint {path} holds both {SINGLE_FILE} and {loose[0]}, a shard; move away what is not the model"
            )
        file = TensorFile(single)
        return dict.fromkeys(file.shapes, file)
    raise InputError(_why_no_weights(path, folder))


def _shards(path: str, folder: Path, listed: dict[str, str]) -> dict[str, TensorFile]:
    names = list(dict.fromkeys(listed.values()))
    if SINGLE_FILE not in names and (folder / SINGLE_FILE).is_file():
        raise InputError(
            f"checkpoint {path} holds both {SINGLE_FILE} and {INDEX_FILE}, which lists other files: one is left from "
            "an earlier model; move away what is not the model"
        )
    for name in names:
        if not (folder / name).is_file():
            raise InputError(f"checkpoint {path}: shard {name}, which {INDEX_FILE} lists, is missing; copy it again")
    shards = {name: TensorFile(folder / name) for name in names}
    for tensor, name in listed.items():
        if tensor not in shards[name].shapes:
            raise InputError(
                f"checkpoint {path}: {INDEX_FILE} places {tensor} in {name}, which does not hold it; copy the "
                "checkpoint again"
            )
    for name, shard in shards.items():
        for tensor in shard.shapes:
            if listed.get(tensor) != name:
                place = f"places it in {listed[tensor]}" if tensor in listed else "does not list it"
                raise InputError(
                    f"checkpoint {path}: {name} holds {tensor}, but {INDEX_FILE} {place}; copy the checkpoint again"
                )
    return {tensor: shards[name] for tensor, name in listed.items()}


def _why_no_weights(path: str, folder: Path) -> str:
    expected = f"expected {SINGLE_FILE}, or {INDEX_FILE} with its shards"
    files = sorted(file.name for file in folder.iterdir())
    loose = [name for name in files if SHARD.fullmatch(name)]
    pickles = [name for name in files if name.endswith(PICKLES)]
    if loose:
        return f"{path} holds {loose[0]} without the index of its shards; {expected}. Copy {INDEX_FILE} again"
    if pickles:
        return (
            f"{path} holds pickled weights ({pickles[0]}), which can run code and are not read; {expected}. Where you "
            f"trust them, convert them: transformers.AutoModelForCausalLM.from_pretrained({path!r})"
            ".save_pretrained('<converted>')"
        )
    if (folder / "model").is_dir():
        return f"{path} holds no weights itself; {expected}. Did you mean {folder / 'model'}?"
    return f"{path} holds no weights; {expected}"
