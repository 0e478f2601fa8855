"""Checkpoints that are an update upon another one: a PEFT LoRA adapter, and a snapshot of a run's weight update.

Both hold what they changed and name their base, so that the update itself is read without the rounding of a sum, and
in factors where it is kept so.
"""

import re
from abc import abstractmethod
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from safety_subspaces.algebra.update import FactorUpdate, Update
from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.foreign import reading
from safety_subspaces.artefacts.provenance import ADAPTER_CONFIG, adapter_base, read_adapter_config
from safety_subspaces.artefacts.tensors import TensorFile
from safety_subspaces.language.adapters import ADAPTER_FILE, check_complete, misfit, tied_by, without_copies
from safety_subspaces.language.weight_files import unwrapped
from safety_subspaces.weights.checkpoint import Checkpoint, FullCheckpoint, model_folder
from safety_subspaces.weights.snapshots import Snapshot

# Adapter options under which the update is not scale * B A added to the weights of the base.
UNSERVED_ADAPTER_OPTIONS = (
    "use_qalora lora_bias layer_replication trainable_token_indices target_parameters "
    "alora_invocation_tokens velora_config monteclora_config megatron_config"
).split()
FACTOR = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.[^.]+)??(?:\.weight)?")
# Of DoRA: the length of each row of the weight.
MAGNITUDE = re.compile(r"(.+)\.lora_magnitude_vector(?:\.[^.]+)??(?:\.weight)?")
# Initialisations that rewrite the base's weights, so that B A alone is not the update.
UNSERVED_INITIALISATIONS = re.compile(r"pissa|olora|corda|loftq|lora_ga", re.IGNORECASE)


class UpdateCheckpoint(Checkpoint):
    """A checkpoint that is an update upon a full one.

    Attributes:
        base: The checkpoint that it changes.
    """

    base: FullCheckpoint

    def __init__(self, path: str, location: Path, base: FullCheckpoint) -> None:
        self.path, self.location, self.base = path, location, base
        self.names, self.left_out, self.folders = base.names, dict(base.left_out), base.folders

    @abstractmethod
    def update(self, name: str) -> Update | None:
        """Return what it adds to the base's tensor, in float32: dense, in factors, or ``None`` where it adds nothing.

        Raises:
            InputError: The tensor is kept whole, so that its update is a difference: :meth:`is_whole`.
        """

    def is_whole(self, name: str) -> bool:
        """Tell whether it holds this tensor whole, in place of the base's."""
        return False

    @property
    def full(self) -> FullCheckpoint:
        """The base."""
        return self.base

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self.base.shape(name)

    def read(self, name: str) -> Float[Tensor, "..."]:
        """Read one tensor with its update, in float32 or better."""
        stored, update = self._read_base(name), self.update(name)
        value = stored.to(torch.promote_types(stored.dtype, torch.float32))
        if update is None:
            return value
        return value + update.dense().to(value.dtype)

    def _read_base(self, name: str) -> Tensor:
        """Read what the update is added to."""
        return self.base.read(name)


@final
class AdapterCheckpoint(UpdateCheckpoint):
    """A PEFT LoRA adapter upon a full checkpoint: ``W = W_base + scale * B A``.

    Of DoRA each row of that is then scaled to a magnitude of its own, so that the update is a difference, in no factors
    (Liu et al., arXiv 2402.09353). Tensors that PEFT saved whole (``modules_to_save``, biases) take the base's place.

    Args:
        path: What the user called it.
        folder: Where it is.

    Raises:
        InputError: The base is missing, the adapter is no plain LoRA, or it does not fit the base.
    """

    def __init__(self, path: str, folder: Path) -> None:
        self.config = read_adapter_config(folder)
        _refuse_unserved(path, self.config)
        super().__init__(path, folder, _full(adapter_base(folder), f"the base of adapter {path}"))
        self.folders = (*self.base.folders, folder)
        if not (folder / ADAPTER_FILE).is_file():
            raise InputError(
                f"adapter {path} has no {ADAPTER_FILE}; a pickled adapter_model.bin is not read: load it with "
                f"peft.PeftModel.from_pretrained(base, {path!r}) and save_pretrained it again"
            )
        self._file = TensorFile(folder / ADAPTER_FILE)
        self.stored_names = tuple(without_copies(self._file.shapes))
        # Of a tied pair of which it changes one, both count: they are no longer one.
        if not self.config.get("ensure_weight_tying"):
            self.names = (*self.names, *sorted(tied_by(map(unwrapped, self.stored_names), self.base.ties)))
        self._factors: dict[str, dict[str, str]] = {}  # canonical name of the weight -> factor -> stored name
        self._magnitudes: dict[str, str] = {}
        self._whole: dict[str, str] = {}
        for stored in self.stored_names:
            self._assign(stored)
        for name, factors in self._factors.items():
            self._check_factors(name, factors)
        for name, stored in self._magnitudes.items():
            self._check_magnitude(name, stored)
        for name, stored in self._whole.items():
            if self._file.shapes[stored] != self.shape(name):
                raise InputError(misfit(path, name, self._file.shapes[stored], self.base.path, self.shape(name)))
        check_complete(str(folder), self.stored_names, self.base.location)

    def stored_of(self, name: str) -> tuple[str, ...]:
        """Return the factors of a weight with its magnitudes, and the tensor that stands whole in its place."""
        factors = self._factors.get(name, {})
        whole = [kept[name] for kept in (self._magnitudes, self._whole) if name in kept]
        return (*(factors[factor] for factor in ("A", "B") if factor in factors), *whole)

    def is_whole(self, name: str) -> bool:
        """Tell whether the adapter holds this tensor whole, in place of the base's, or scales the rows of the sum."""
        return name in self._whole or name in self._magnitudes

    def read(self, name: str) -> Float[Tensor, "..."]:
        """Read one tensor with its update, in float32 or better."""
        weight = super().read(name)
        if name not in self._magnitudes:
            return weight
        magnitudes = self._file.read(self._magnitudes[name]).double().reshape(-1, 1)
        rows = weight.double()
        return (rows * (magnitudes / rows.norm(dim=1, keepdim=True))).to(weight.dtype)

    def update(self, name: str) -> FactorUpdate | None:
        """Return ``scale * B A`` in factors; ``None`` where there are none."""
        if name not in self._factors:
            return None
        stored = self._factors[name]
        down, up = (self._file.read(stored[factor]).float() for factor in ("A", "B"))
        product = FactorUpdate(up, down, self._scale(name.removesuffix(".weight"), down.shape[0]))
        return product.transposed() if stored.get("embedding") else product

    def _read_base(self, name: str) -> Tensor:
        whole = self._whole.get(name)  # beside factors too: PEFT saves an adapted embedding's base with them
        return self.base.read(name) if whole is None else self._file.read(whole)

    def _scale(self, module: str, rank: int) -> float:
        alphas = self.config.get("alpha_pattern") or {}
        # PEFT's own rule for patterns: the first one that matches the end of the module's name.
        key = next((pattern for pattern in alphas if re.match(rf"(.*\.)?({pattern})$", module)), None)
        alpha = self.config["lora_alpha"] if key is None else alphas[key]
        return alpha / (rank**0.5 if self.config.get("use_rslora") else rank)

    def _assign(self, stored: str) -> None:
        """Find the base's tensor that a stored one belongs to."""
        match, name = self._weight_of(stored)
        if name in self.base.ties and name not in self.names:
            name = self.base.ties[name]
            if name in {self._weight_of(other)[1] for other in self.stored_names}:  # both of a pair that is one
                return
        if name not in self.names:
            raise InputError(
                f"adapter {self.path} holds {stored}, but its base {self.base.path} has no {name}; "
                "base_model_name_or_path in adapter_config.json must name the model that was adapted"
            )
        kept, part = (self._whole, name)
        if MAGNITUDE.fullmatch(stored):
            kept = self._magnitudes
        elif match:
            kept, part = self._factors.setdefault(name, {}), match[3]
        if part in kept:
            raise InputError(f"adapter {self.path} holds {name} twice: in {kept[part]} and in {stored}")
        kept[part] = stored
        if match and match[2]:
            self._factors[name]["embedding"] = "yes"

    def _weight_of(self, stored: str) -> tuple[re.Match[str] | None, str]:
        """Return the factor that a stored tensor is, if it is one, and the name of its weight."""
        match = FACTOR.fullmatch(stored)
        of_layer = match or MAGNITUDE.fullmatch(stored)
        return match, self.base.name_of(f"{of_layer[1]}.weight" if of_layer else stored)

    def _check_magnitude(self, name: str, stored: str) -> None:
        shape, weight = self._file.shapes[stored], self.shape(name)
        if name not in self._factors or self._factors[name].get("embedding") or shape[-1:] != weight[:1]:
            raise InputError(
                f"adapter {self.path} holds {stored} of shape {shape} for {name} of shape {weight}; expected one "
                f"magnitude for each output of a linear layer that has lora_A and lora_B. Else merge it with PEFT"
            )

    def _check_factors(self, name: str, factors: dict[str, str]) -> None:
        if not {"A", "B"} <= factors.keys():
            raise InputError(f"adapter {self.path} holds only one factor for {name}; expected lora_A and lora_B")
        down, up = (self._file.shapes[factors[factor]] for factor in ("A", "B"))
        if len(down) != 2 or len(up) != 2 or down[0] != up[1] or not down[0]:
            raise InputError(
                f"adapter {self.path} holds factors of {name} of shapes {down} and {up}; expected (rank, in) and "
                "(out, rank)"
            )
        product_shape = (down[1], up[0]) if factors.get("embedding") else (up[0], down[1])
        if product_shape != self.shape(name):
            raise InputError(
                f"adapter {self.path} makes {name} of shape {product_shape}, "
                f"its base {self.base.path} has {self.shape(name)}"
            )


@final
class SnapshotCheckpoint(UpdateCheckpoint):
    """A snapshot of a run's weight update, upon the model that it counts from: ``W = W_reference + update``.

    Args:
        path: The ``.safetensors`` file.

    Raises:
        InputError: It is no snapshot, its reference is missing or has changed, or does not fit.
    """

    def __init__(self, path: str) -> None:
        self.snapshot = Snapshot(Path(path))
        reference = _full(self.snapshot.reference_folder(), f"the reference of snapshot {path}")
        super().__init__(path, self.snapshot.path, reference)
        self.stored_names = self.snapshot.names
        for name, changed in self.snapshot.shapes.items():
            shape = self.base.shape(name) if name in self.base.names else None
            if shape != changed:
                raise InputError(
                    f"snapshot {path} changes {name} of shape {changed}, its reference "
                    f"{self.base.path} has {'no such tensor' if shape is None else shape}"
                )

    def stored_of(self, name: str) -> tuple[str, ...]:
        """Return the update of a weight, if there is one."""
        return (name,) if name in self.snapshot.shapes else ()

    def update(self, name: str) -> Update | None:
        """Return the update of one weight as it was kept; ``None`` where the snapshot has none."""
        return self.snapshot.read(name) if name in self.snapshot.shapes else None


def open_checkpoint(path: str) -> Checkpoint:
    """Open a model folder, a LoRA adapter (by path or Hub id) or a delta snapshot, without loading its weights.

    Raises:
        InputError: There is no such folder, or it holds something else; the message says what to do.
    """
    if path.endswith(".safetensors") and Path(path).is_file():
        return SnapshotCheckpoint(path)
    folder = model_folder(path)
    if (folder / ADAPTER_CONFIG).is_file():
        return AdapterCheckpoint(path, folder)
    return FullCheckpoint(path, folder)


def _full(path: str, what: str) -> FullCheckpoint:
    """Open what an update is upon."""
    try:
        with reading(what, "the path of a model"):
            is_update = path.endswith(".safetensors") and Path(path).is_file()
            folder = Path(path) if is_update else model_folder(path)
        if is_update or (folder / ADAPTER_CONFIG).is_file():
            raise InputError(f"it is itself an update upon another model ({path}); merge that one first")
        return FullCheckpoint(path, folder)
    except InputError as error:
        raise InputError(f"{what} cannot be opened: {error}") from error


def _refuse_unserved(path: str, config: dict[str, Any]) -> None:
    kind = config.get("peft_type")
    unserved = [option for option in UNSERVED_ADAPTER_OPTIONS if config.get(option)]
    if UNSERVED_INITIALISATIONS.search(str(config.get("init_lora_weights"))):
        unserved.append(f"init_lora_weights={config['init_lora_weights']}")
    if kind != "LORA" or unserved:
        raise InputError(
            f"adapter {path} is not plain LoRA ({', '.join([f'peft_type {kind}', *unserved])}): "
            "merge it first with peft.AutoPeftModelForCausalLM.from_pretrained"
            f"({path!r}).merge_and_unload().save_pretrained('<merged>'), and give the merged folder"
        )
    if config.get("lora_alpha") is None:
        raise InputError(f"adapter {path} has no lora_alpha in {ADAPTER_CONFIG}; copy or download it again")
