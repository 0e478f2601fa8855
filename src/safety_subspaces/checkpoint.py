"""Checkpoints as lists of named tensors: opened without loading, then read one tensor at a time.

Peak memory follows the largest tensor, not the model. Two kinds are served: a folder in Hugging Face format
(one safetensors file, or shards with an index) and a PEFT LoRA adapter upon such a folder. Everything else is
refused with the command that converts it.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from safety_subspaces.adapter_base import ADAPTER_CONFIG, adapter_base
from safety_subspaces.errors import InputError
from safety_subspaces.files import read_json
from safety_subspaces.names import canonical_name

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_FILE = "adapter_model.safetensors"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Beside the weights, what makes a folder a model: configuration, tokenizer, chat template.
COMPANION_SUFFIXES = (".json", ".jinja", ".model", ".txt")
# Adapter options that make the update something else than scale * B A upon the base's own weights.
UNSERVED_ADAPTER_OPTIONS = (
    *(
        "use_dora",
        "use_qalora",
        "lora_bias",
        "fan_in_fan_out",
        "layer_replication",
        "trainable_token_indices",
    ),
    *(
        "target_parameters",
        "alora_invocation_tokens",
        "velora_config",
        "monteclora_config",
        "megatron_config",
    ),
)
# Initialisations that rewrite the base's weights, so that B A alone is not the update.
UNSERVED_INITIALISATIONS = re.compile(r"pissa|olora|corda|loftq|lora_ga", re.IGNORECASE)


class Checkpoint(ABC):
    """A model's weights by canonical name. Opening one reads headers only.

    Attributes:
        path: What the user called it.
        left_out: Stored tensors that are not among ``names``, with the reason.
    """

    path: str
    left_out: dict[str, str]

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Canonical names of the floating-point weights, each tied pair once."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""

    @abstractmethod
    def read(self, name: str) -> Float[Tensor, "..."]:
        """Read one tensor.

        Raises:
            InputError: There is no such tensor, or its file cannot be read.
        """

    @property
    @abstractmethod
    def full(self) -> "FullCheckpoint":
        """The checkpoint that holds every weight: this one, or the base of an adapter."""

    @property
    @abstractmethod
    def folders(self) -> tuple[Path, ...]:
        """Folders with configuration and tokenizer; a file in a later one goes before an earlier one's."""

    def vocabulary(self) -> dict[str, int] | None:
        """Return the tokenizer's mapping from token to id, or ``None`` without a ``tokenizer.json``."""
        for folder in reversed(self.folders):
            if (folder / "tokenizer.json").is_file():
                return _vocabulary_of(read_json(folder / "tokenizer.json"))
        return None


@final
class FullCheckpoint(Checkpoint):
    """A folder in Hugging Face format.

    Args:
        path: What the user called it.
        folder: Where it is.

    Raises:
        InputError: There are no safetensors, a shard is missing, or a file is cut short.
    """

    def __init__(self, path: str, folder: Path) -> None:
        self.path = path
        self.folder = folder
        self.config: dict[str, Any] = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
        if self.config.get("quantization_config"):
            raise InputError(
                f"{path} is quantised: differences of its weights are rounding; expected the weights it was made from"
            )
        self.left_out: dict[str, str] = {}
        self._files: dict[Path, Any] = {}
        self._stored: dict[str, str] = {}  # canonical name -> name in the file
        self._where = self._find_tensors()
        self._choose_tensors()

    @property
    def names(self) -> tuple[str, ...]:
        """Canonical names, in the order of the files."""
        return tuple(self._stored)

    @property
    def full(self) -> "FullCheckpoint":
        """This checkpoint."""
        return self

    @property
    def folders(self) -> tuple[Path, ...]:
        """The one folder."""
        return (self.folder,)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from its file's header."""
        return tuple(self._slice(self.stored_name(name)).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """Type that a tensor is stored in."""
        return DTYPES[self._slice(self.stored_name(name)).get_dtype()]

    def read(self, name: str) -> Float[Tensor, "..."]:
        """Read one tensor in the type that it is stored in."""
        return self.read_stored(self.stored_name(name))

    def open_slice(self, name: str) -> Any:
        """Return a tensor as safetensors opens it, unread: rows are read when they are taken, and let go with it."""
        stored = self.stored_name(name)
        return open_safetensors(self._where[stored]).get_slice(stored)

    def read_stored(self, stored: str) -> Tensor:
        """Read one tensor by the name that it has in the file, whatever its type."""
        file = self._where[stored]
        try:
            return self._open(file).get_tensor(stored)
        except SafetensorError as error:
            raise InputError(f"{file} cannot be read at tensor {stored} ({error}); copy the file again") from error

    def stored_name(self, name: str) -> str:
        """Return the name that a tensor has in the file."""
        if name not in self._stored:
            raise InputError(f"checkpoint {self.path} has no tensor {name}; it has {', '.join(self.names[:3])}, ...")
        return self._stored[name]

    def _find_tensors(self) -> dict[str, Path]:
        """Map each stored name to its file; every file is opened, so that a damaged one is found at once."""
        index = self.folder / INDEX_FILE
        if index.is_file():
            listed = {name: self.folder / file for name, file in read_json(index)["weight_map"].items()}
            for file in dict.fromkeys(listed.values()):
                if not file.is_file():
                    raise InputError(
                        f"checkpoint {self.path}: shard {file.name}, which {INDEX_FILE} lists, is missing; "
                        "copy it again"
                    )
            present = {file: set(self._open(file).keys()) for file in set(listed.values())}
            absent = [name for name, file in listed.items() if name not in present[file]]
            if absent:
                raise InputError(
                    f"checkpoint {self.path}: {INDEX_FILE} places {absent[0]} in {listed[absent[0]].name}, "
                    "which does not hold it; copy the checkpoint again"
                )
            return listed
        single = self.folder / SINGLE_FILE
        if single.is_file():
            return dict.fromkeys(self._open(single).keys(), single)
        raise InputError(_why_no_weights(self.path, self.folder))

    def _choose_tensors(self) -> None:
        canonical = {stored: canonical_name(stored) for stored in self._where}
        text_config = self.config.get("text_config") or {}
        tied = self.config.get("tie_word_embeddings", text_config.get("tie_word_embeddings", False))
        embedded = any(name.endswith("embed_tokens.weight") for name in canonical.values())
        for stored, name in canonical.items():
            stored_type = self._slice(stored).get_dtype()
            if stored_type.startswith("F8"):
                raise InputError(
                    f"checkpoint {self.path}: {stored} is quantised ({stored_type}); expected {list(DTYPES)}"
                )
            if stored_type not in DTYPES:
                self.left_out[stored] = f"{stored_type} numbers are no weights"
            elif name.endswith("rotary_emb.inv_freq"):
                self.left_out[stored] = "a constant of the position encoding, no weight"
            elif tied and embedded and name.endswith("lm_head.weight"):
                self.left_out[stored] = "tied to the embeddings, which count once"
            elif name in self._stored:
                raise InputError(f"checkpoint {self.path} holds {name} twice: as {self._stored[name]} and as {stored}")
            else:
                self._stored[name] = stored

    def _slice(self, stored: str) -> Any:
        return self._open(self._where[stored]).get_slice(stored)

    def _open(self, file: Path) -> Any:
        if file not in self._files:
            self._files[file] = open_safetensors(file)
        return self._files[file]


@final
class AdapterCheckpoint(Checkpoint):
    """A PEFT LoRA adapter upon a full checkpoint: ``W = W_base + scale * B A``.

    Tensors that PEFT saved whole (``modules_to_save``, biases) take the base's place.

    Args:
        path: What the user called it.
        folder: Where it is.

    Raises:
        InputError: The base is missing, the adapter is no plain LoRA, or it does not fit the base.
    """

    def __init__(self, path: str, folder: Path) -> None:
        self.path = path
        self.folder = folder
        self.config: dict[str, Any] = read_json(folder / ADAPTER_CONFIG)
        self._refuse_unserved()
        self.base = _open_base(path, folder)
        self.left_out = dict(self.base.left_out)
        if not (folder / ADAPTER_FILE).is_file():
            raise InputError(
                f"adapter {path} has no {ADAPTER_FILE}; a pickled adapter_model.bin is not read: load it with "
                f"peft.PeftModel.from_pretrained(base, {path!r}) and save_pretrained it again"
            )
        self._file = open_safetensors(folder / ADAPTER_FILE)
        self._factors: dict[str, dict[str, str]] = {}  # canonical name of the weight -> factor -> stored name
        self._whole: dict[str, str] = {}
        for stored in self._file.keys():  # noqa: SIM118 - a safetensors handle, no dict
            self._place(stored)
        for name, factors in self._factors.items():
            self._check_factors(name, factors)

    @property
    def names(self) -> tuple[str, ...]:
        """The base's names."""
        return self.base.names

    @property
    def full(self) -> FullCheckpoint:
        """The base."""
        return self.base

    @property
    def folders(self) -> tuple[Path, ...]:
        """The base's folder, then the adapter's."""
        return (self.base.folder, self.folder)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self.base.shape(name)

    def read(self, name: str) -> Float[Tensor, "..."]:
        """Read one merged tensor, in float32."""
        whole = self._whole.get(name)  # beside factors too: PEFT saves an adapted embedding's base with them
        value = self.base.read(name) if whole is None else self._file.get_tensor(whole)
        return value.float() + self.low_rank_update(name) if name in self._factors else value.float()

    def is_whole(self, name: str) -> bool:
        """Tell whether the adapter holds this tensor whole, in place of the base's."""
        return name in self._whole

    def low_rank_update(self, name: str) -> Float[Tensor, "..."]:
        """Return ``scale * B A`` in float32, from a float64 product; zero where there are no factors."""
        if name not in self._factors:
            return torch.zeros(self.shape(name))
        stored = self._factors[name]
        down, up = (self._file.get_tensor(stored[factor]).double() for factor in ("A", "B"))
        product = (up @ down).T if stored.get("embedding") else up @ down
        return (self._scale(name.removesuffix(".weight"), down.shape[0]) * product).float()

    def _scale(self, module: str, rank: int) -> float:
        alphas = self.config.get("alpha_pattern") or {}
        # PEFT's own rule for patterns: the first one that matches the end of the module's name.
        key = next((pattern for pattern in alphas if re.match(rf"(.*\.)?({pattern})$", module)), None)
        alpha = self.config["lora_alpha"] if key is None else alphas[key]
        return alpha / (rank**0.5 if self.config.get("use_rslora") else rank)

    def _refuse_unserved(self) -> None:
        kind = self.config.get("peft_type")
        unserved = [option for option in UNSERVED_ADAPTER_OPTIONS if self.config.get(option)]
        if UNSERVED_INITIALISATIONS.search(str(self.config.get("init_lora_weights"))):
            unserved.append(f"init_lora_weights={self.config['init_lora_weights']}")
        if kind != "LORA" or unserved:
            raise InputError(
                f"adapter {self.path} is not plain LoRA ({', '.join([f'peft_type {kind}', *unserved])}): "
                "merge it first with peft.AutoPeftModelForCausalLM.from_pretrained"
                f"({self.path!r}).merge_and_unload().save_pretrained('<merged>'), and give the merged folder"
            )

    def _place(self, stored: str) -> None:
        """Find the base's tensor that a stored one belongs to."""
        match = re.fullmatch(r"(.+)\.lora_(embedding_)?([AB])(?:\.[^.]+)??(?:\.weight)?", stored)
        name = f"{canonical_name(match[1])}.weight" if match else canonical_name(stored)
        if name not in self.base.names:
            raise InputError(
                f"adapter {self.path} holds {stored}, but its base {self.base.path} has no {name}; "
                "base_model_name_or_path in adapter_config.json must name the model that was adapted"
            )
        if match:
            self._factors.setdefault(name, {})[match[3]] = stored
            if match[2]:
                self._factors[name]["embedding"] = "yes"
        else:
            self._whole[name] = stored

    def _check_factors(self, name: str, factors: dict[str, str]) -> None:
        if not {"A", "B"} <= factors.keys():
            raise InputError(f"adapter {self.path} holds only one factor for {name}; expected lora_A and lora_B")
        down, up = (self._file.get_slice(factors[factor]).get_shape() for factor in ("A", "B"))
        made = (down[1], up[0]) if factors.get("embedding") else (up[0], down[1])
        if made != self.shape(name):
            raise InputError(
                f"adapter {self.path} makes {name} of shape {made}, its base {self.base.path} has {self.shape(name)}"
            )


def open_checkpoint(path: str) -> Checkpoint:
    """Open a model folder or a LoRA adapter, by path or Hub id, without loading its weights.

    Raises:
        InputError: There is no such folder, or it holds something else; the message says what to do.
    """
    folder = _resolve(path)
    if (folder / ADAPTER_CONFIG).is_file():
        return AdapterCheckpoint(path, folder)
    return FullCheckpoint(path, folder)


def open_safetensors(file: Path) -> Any:
    """Open a safetensors file, its tensors unread.

    Raises:
        InputError: The file is damaged or cut short.
    """
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is damaged or cut short ({error}); copy or download it again") from error


def _resolve(path: str) -> Path:
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


def _open_base(path: str, folder: Path) -> FullCheckpoint:
    """Open an adapter's base."""
    base = adapter_base(folder)
    try:
        opened = open_checkpoint(base)
    except InputError as error:
        raise InputError(f"the base of adapter {path} cannot be opened: {error}") from error
    if not isinstance(opened, FullCheckpoint):
        raise InputError(f"the base of adapter {path} is itself an adapter ({base}); merge that one first")
    return opened


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
    return vocabulary | {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []}
