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
from safety_subspaces.artefacts.tensors import TYPES
from safety_subspaces.language.architecture import read_architecture
from safety_subspaces.language.model_paths import check_there
from safety_subspaces.language.weight_files import weight_files
from safety_subspaces.weights.names import canonical_name

# The types that weights have, as the files name them; tensors of other types are not weights.
WEIGHT_TYPES = ["F64", "F32", "F16", "BF16"]
# Rows of two tensors that are compared at a time.
ROWS = 2**12
# Experts of one layer, each of which is a weight by itself; the largest models have some hundred.
MAX_EXPERTS = 2**14
# Why a tensor of a file is not among the weights.
NO_WEIGHT = "no weight of this architecture: transformers does not read it"
NO_TEXT = "no weight of the model's text part, which alone is read"
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
        architecture: The network that its configuration describes; ``None`` of one that transformers does not have.
        ties: Weights that are another one under a second name, and are not stored: by name the one that is.

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
        self.stored_in = weight_files(path, folder)
        self.stored_names = tuple(self.stored_in)
        self.architecture = read_architecture(folder)
        self._slots, self.ties = self._choose_tensors()
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
        if slot.index is not None or slot.transposed:  # one expert's matrix is not large
            return self.read(name)
        return self.stored_in[slot.stored].open_slice(slot.stored)

    def name_of(self, stored: str) -> str:
        """Return the network's own name of a stored tensor, whatever wraps it there."""
        name = canonical_name(stored)
        return self.architecture.name_of(name) if self.architecture else name

    def slot(self, name: str) -> Slot:
        """Return where a tensor is stored; of a tie, where the one is that it is."""
        name = self.ties.get(name, name)
        if name not in self._slots:
            raise InputError(f"checkpoint {self.path} has no tensor {name}; it has {', '.join(self.names[:3])}, ...")
        return self._slots[name]

    def _choose_tensors(self) -> tuple[dict[str, Slot], dict[str, str]]:
        """Map the name of each weight to where it is stored, and leave out what is none; and ties that are not stored.

        The names are the network's own; what it does not read is no weight. Of two tensors that it ties, the second
        counts where its numbers are others: transformers then does not tie them.
        """
        stored_as: dict[str, str] = {}
        for stored, file in self.stored_in.items():
            name, stored_type = self.name_of(stored), file.types[stored]
            if stored_type.startswith("F8"):
                raise InputError(
                    f"checkpoint {self.path}: {stored} is quantised ({stored_type}); expected {WEIGHT_TYPES}"
                )
            if stored_type not in WEIGHT_TYPES:
                self.left_out[stored] = f"{stored_type} numbers are no weights"
            elif name.endswith("rotary_emb.inv_freq"):
                self.left_out[stored] = "a constant of the position encoding, no weight"
            elif 0 in file.shapes[stored]:
                self.left_out[stored] = "it holds no number"
            elif self.architecture and self.architecture.filled_by(canonical_name(stored)) is None:
                self.left_out[stored] = NO_TEXT if self.architecture.is_text_part else NO_WEIGHT
            elif name in stored_as:
                raise InputError(f"checkpoint {self.path} holds {name} twice: as {stored_as[name]} and as {stored}")
            else:
                stored_as[name] = stored
        self._refuse_holes(stored_as)
        ties = self._resolve_ties(stored_as)
        slots: dict[str, Slot] = {}
        for name, stored in stored_as.items():
            slots |= self._slots_of(name, stored)
        return slots, ties

    def _refuse_holes(self, stored_as: dict[str, str]) -> None:
        """Refuse a model that lacks weights of its architecture, as the loader does: it would draw them at random."""
        if self.architecture is None:
            return
        filled = {self.architecture.filled_by(canonical_name(stored)) for stored in stored_as.values()}
        filled |= {copy for copy, source in self.architecture.ties.items() if source in filled}
        filled |= {source for copy, source in self.architecture.ties.items() if copy in filled}
        missing = sorted(self.architecture.shapes.keys() - filled)
        if missing:
            raise InputError(
                f"checkpoint {self.path} lacks {len(missing)} weights of its architecture, {missing[0]} first, which "
                "would be drawn at random; restore the file or export the model again"
            )

    def _resolve_ties(self, stored_as: dict[str, str]) -> dict[str, str]:
        """Take the ties of the network out of what is stored, where they hold; return those by name."""
        ties = {}
        for copy, source in (self.architecture.ties if self.architecture else {}).items():
            if copy in stored_as and source not in stored_as:
                stored_as[source] = stored_as.pop(copy)
            elif copy in stored_as and self._are_equal(stored_as[copy], stored_as[source]):
                self.left_out[stored_as.pop(copy)] = f"tied to {source}, which counts once"
            if copy not in stored_as and source in stored_as:
                ties[copy] = source
        return ties

    def _are_equal(self, first: str, second: str) -> bool:
        files = [self.stored_in[stored] for stored in (first, second)]
        if files[0].shapes[first] != files[1].shapes[second]:
            return False
        slices = [file.open_slice(stored) for file, stored in zip(files, (first, second), strict=True)]
        rows = range(0, files[0].shapes[first][0], ROWS)
        return all(torch.equal(*(part[start : start + ROWS] for part in slices)) for start in rows)

    def _slots_of(self, name: str, stored: str) -> dict[str, Slot]:
        shape = self.stored_in[stored].shapes[stored]
        is_transposed = self.architecture is not None and name in self.architecture.transposed
        if len(shape) != 3 or ".experts." not in name:
            return {name: Slot(stored, None, is_transposed)}
        if shape[0] > MAX_EXPERTS:
            raise InputError(
                f"checkpoint {self.path}: {stored} of shape {shape} is of {shape[0]:,} experts; expected at most "
                f"{MAX_EXPERTS:,}"
            )
        return {f"{name}[{index}]": Slot(stored, index, is_transposed) for index in range(shape[0])}


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
    check_there(path)
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


def _vocabulary_of(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Read the mapping of a ``tokenizer.json``: a dict, or in unigram models a list of scored tokens."""
    listed = tokenizer.get("model", {}).get("vocab", {})
    vocabulary = dict(listed) if isinstance(listed, dict) else {entry[0]: i for i, entry in enumerate(listed)}
    vocabulary |= {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []}
    if not all(isinstance(token, str) and isinstance(index, int) for token, index in vocabulary.items()):
        raise ValueError("its vocabulary does not map texts to numbers")
    return vocabulary
