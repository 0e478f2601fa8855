"""Checkpoints as lists of named tensors: opened without loading, then read one tensor at a time.

Peak memory follows the largest tensor, not the model. A folder in Hugging Face format (one safetensors file, or shards
with an index) holds every weight; :mod:`.update_checkpoint` has what is an update upon one. Everything
else is refused with the command that converts it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import read_json
from safety_subspaces.artefacts.foreign import reading
from safety_subspaces.artefacts.tensors import TYPES, TensorFile, read_index
from safety_subspaces.weights.names import canonical_name

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# Architectures whose fused experts (experts, in, out) multiply from the right; those of all others are (experts, out,
# in): `is_transposed` of transformers' experts implementations, and Llama 4's `torch.bmm`.
TRANSPOSED_EXPERTS = {"gpt_oss", "openai_privacy_filter", "aria", "aria_text", "llama4", "llama4_text"}
# The types that weights have, as the files name them; tensors of other types are not weights.
WEIGHT_TYPES = ["F64", "F32", "F16", "BF16"]
# Experts of one layer, each of which is a weight by itself; the largest models have some hundred.
MAX_EXPERTS = 2**14
# Files that a model folder needs beside its weights: configuration, tokenizer, chat template.
COMPANION_SUFFIXES = (".json", ".jinja", ".model", ".txt")


@dataclass(frozen=True)
class Slot:
    """Where a weight is stored.

    Args:
        stored: Name of the tensor in the file.
        index: Its place along the first dimension of that tensor, where that holds one matrix for each expert.
        transposed: Whether it is stored as ``(in, out)``.
    """

    stored: str
    index: int | None = None
    transposed: bool = False


class Checkpoint(ABC):
    """A model's weights by canonical name. Opening one reads headers only.

    Attributes:
        path: What the user called it.
        location: The file or folder that makes it what it is.
        folders: Folders with configuration and tokenizer; a file in a later one goes before an earlier one's.
        names: Canonical names of the floating-point weights in the order of the files, each tied pair once.
        stored_names: Every tensor of its own files, by the name that it has there, whether it is a weight or not.
        left_out: Stored tensors that are not among ``names``, with the reason.
    """

    path: str
    location: Path
    folders: tuple[Path, ...]
    names: tuple[str, ...]
    stored_names: tuple[str, ...]
    left_out: dict[str, str]

    @property
    @abstractmethod
    def full(self) -> "FullCheckpoint":
        """The checkpoint that holds every weight: this one, or the base of an adapter."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""

    @abstractmethod
    def read(self, name: str) -> Float[Tensor, "..."]:
        """Read one tensor.

        Raises:
            InputError: There is no such tensor, or its file cannot be read.
        """

    @abstractmethod
    def stored_of(self, name: str) -> tuple[str, ...]:
        """Return which of its own stored tensors a weight is read from; none of one that is the base's."""

    def vocabulary(self) -> dict[str, int] | None:
        """Return the tokenizer's mapping from token to id, or ``None`` without a ``tokenizer.json``."""
        for folder in reversed(self.folders):
            file = folder / "tokenizer.json"
            if file.is_file():
                with reading(file, "a tokenizer of Hugging Face"):
                    return _vocabulary_of(read_json(file))
        return None


@final
class FullCheckpoint(Checkpoint):
    """A folder in Hugging Face format.

    Args:
        path: What the user called it.
        folder: Where it is.

    Attributes:
        stored_in: The file of each tensor, by the name that it has there.

    Raises:
        InputError: There are no safetensors, a shard is missing, or a file is cut short.
    """

    def __init__(self, path: str, folder: Path) -> None:
        self.path, self.location, self.folders = path, folder, (folder,)
        self.config = _model_config(folder / "config.json") if (folder / "config.json").is_file() else {}
        if self.config.get("quantization_config"):
            raise InputError(
                f"{path} is quantised: differences of its weights are rounding; expected the weights it was made from"
            )
        self.left_out = {}
        self.stored_in = self._find_tensors()
        self.stored_names = tuple(self.stored_in)
        self._slots = self._choose_tensors()  # by canonical name
        self.names = tuple(self._slots)

    @property
    def full(self) -> "FullCheckpoint":
        """This checkpoint."""
        return self

    def stored_of(self, name: str) -> tuple[str, ...]:
        """Return the one tensor that a weight is read from."""
        return (self.slot(name).stored,)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from its file's header."""
        slot = self.slot(name)
        shape = self.stored_in[slot.stored].shapes[slot.stored]
        shape = shape if slot.index is None else shape[1:]
        return shape[::-1] if slot.transposed else shape

    def dtype(self, name: str) -> torch.dtype:
        """Type that a tensor is stored in."""
        stored = self.slot(name).stored
        return TYPES[self.stored_in[stored].types[stored]]

    def read(self, name: str) -> Float[Tensor, "..."]:
        """Read one tensor in the type that it is stored in."""
        slot = self.slot(name)
        matrix = self.stored_in[slot.stored].read(slot.stored, slot.index)
        return matrix.T.contiguous() if slot.transposed else matrix

    def open_slice(self, name: str) -> Any:
        """Return a tensor as safetensors opens it, unread: rows are read when they are taken, and let go with it."""
        slot = self.slot(name)
        if slot.index is not None:  # one expert's matrix is not large
            return self.read(name)
        return self.stored_in[slot.stored].open_slice(slot.stored)

    def slot(self, name: str) -> Slot:
        """Return where a tensor is stored."""
        if name not in self._slots:
            raise InputError(f"checkpoint {self.path} has no tensor {name}; it has {', '.join(self.names[:3])}, ...")
        return self._slots[name]

    def _find_tensors(self) -> dict[str, TensorFile]:
        """Map each stored name to its file; every file is opened, so that a damaged one is found at once."""
        index = self.location / INDEX_FILE
        if index.is_file():
            listed = read_index(index)
            for file in dict.fromkeys(listed.values()):
                if not (self.location / file).is_file():
                    raise InputError(
                        f"checkpoint {self.path}: shard {file}, which {INDEX_FILE} lists, is missing; copy it again"
                    )
            shards = {file: TensorFile(self.location / file) for file in dict.fromkeys(listed.values())}
            absent = [name for name, file in listed.items() if name not in shards[file].shapes]
            if absent:
                raise InputError(
                    f"checkpoint {self.path}: {INDEX_FILE} places {absent[0]} in {listed[absent[0]]}, "
                    "which does not hold it; copy the checkpoint again"
                )
            return {name: shards[file] for name, file in listed.items()}
        if (self.location / SINGLE_FILE).is_file():
            single = TensorFile(self.location / SINGLE_FILE)
            return dict.fromkeys(single.shapes, single)
        raise InputError(_why_no_weights(self.path, self.location))

    def _choose_tensors(self) -> dict[str, Slot]:
        """Map the name of each weight to where it is stored, and leave out what is none."""
        canonical = {stored: canonical_name(stored) for stored in self.stored_in}
        text_config: dict[str, Any] = self.config.get("text_config") or {}
        tied = self.config.get("tie_word_embeddings", text_config.get("tie_word_embeddings", False))
        stored_as: dict[str, str] = {}
        embedded = any(name.endswith("embed_tokens.weight") for name in canonical.values())
        for stored, name in canonical.items():
            stored_type = self.stored_in[stored].types[stored]
            if stored_type.startswith("F8"):
                raise InputError(
                    f"checkpoint {self.path}: {stored} is quantised ({stored_type}); expected {WEIGHT_TYPES}"
                )
            if stored_type not in WEIGHT_TYPES:
                self.left_out[stored] = f"{stored_type} numbers are no weights"
            elif name.endswith("rotary_emb.inv_freq"):
                self.left_out[stored] = "a constant of the position encoding, no weight"
            elif tied and embedded and name.endswith("lm_head.weight"):
                self.left_out[stored] = "tied to the embeddings, which count once"
            elif 0 in self.stored_in[stored].shapes[stored]:
                self.left_out[stored] = "it holds no number"
            elif name in stored_as:
                raise InputError(f"checkpoint {self.path} holds {name} twice: as {stored_as[name]} and as {stored}")
            else:
                stored_as[name] = stored
        slots: dict[str, Slot] = {}
        transposes = {self.config.get("model_type"), text_config.get("model_type")} & TRANSPOSED_EXPERTS
        for name, stored in stored_as.items():
            shape = self.stored_in[stored].shapes[stored]
            if len(shape) == 3 and ".experts." in name:
                if shape[0] > MAX_EXPERTS:
                    raise InputError(
                        f"checkpoint {self.path}: {stored} of shape {shape} is of {shape[0]:,} experts; expected at "
                        f"most {MAX_EXPERTS:,}"
                    )
                for index in range(shape[0]):
                    slots[f"{name}[{index}]"] = Slot(stored, index, bool(transposes))
            else:
                slots[name] = Slot(stored)
        return slots


def model_folder(path: str) -> Path:
    """Return the folder of a model, by path or Hub id.

    Raises:
        InputError: There is none; the message says what to do.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(f"{path} is a file; expected a model folder in Hugging Face format, or a Hub id")
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise InputError(
            f"model folder {path} does not exist; train the stage that makes it "
            "(python train.py fit --config ...), or give a Hub id such as org/name"
        )
    from huggingface_hub import snapshot_download  # local folders need not pay its import

    try:
        return Path(snapshot_download(path, allow_patterns=["*.safetensors", *(f"*{s}" for s in COMPANION_SUFFIXES)]))
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"{path} is neither a folder here nor a model that the Hub gives: {reason}") from error


def _model_config(path: Path) -> dict[str, Any]:
    """Read the configuration of a model, and check what is taken from it here."""
    config = read_json(path)
    inner = config.get("text_config") or {}
    parts = [config, inner] if isinstance(inner, dict) else []
    if not parts or not all(isinstance(part.get("model_type"), str | None) for part in parts):
        raise InputError(f"{path} is no configuration of a model: expected its model_type, a text; download it again")
    return config


def _why_no_weights(path: str, folder: Path) -> str:
    expected = f"expected {SINGLE_FILE}, or {INDEX_FILE} with its shards"
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        return (
            f"{path} holds pickled weights, which can run code and are not read; {expected}. Convert it with "
            f"transformers.AutoModelForCausalLM.from_pretrained({path!r}).save_pretrained('<converted>')"
        )
    if (folder / "model").is_dir():
        return f"{path} holds no weights itself; {expected}. Did you mean {folder / 'model'}?"
    return f"{path} holds no weights; {expected}"


def _vocabulary_of(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Read the mapping of a ``tokenizer.json``: a dict, or in unigram models a list of scored tokens."""
    listed = tokenizer.get("model", {}).get("vocab", {})
    vocabulary = dict(listed) if isinstance(listed, dict) else {entry[0]: i for i, entry in enumerate(listed)}
    vocabulary |= {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []}
    if not all(isinstance(token, str) and isinstance(index, int) for token, index in vocabulary.items()):
        raise ValueError("its vocabulary does not map texts to numbers")
    return vocabulary
