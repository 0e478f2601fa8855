"""Loading causal language models by Hub id or folder: a full model, or a PEFT adapter upon the base that it names."""

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.foreign import in_short, reading
from safety_subspaces.artefacts.provenance import ADAPTER_CONFIG, adapter_base
from safety_subspaces.language.adapters import ADAPTER_FILE, merged
from safety_subspaces.language.architecture import text_name, text_part_of
from safety_subspaces.language.model_files import bounded_by_files, check_model_files
from safety_subspaces.language.model_paths import check_model_path
from safety_subspaces.language.turns import named_ends
from safety_subspaces.language.weight_files import PICKLES, unwrapped, weight_files

logger = logging.getLogger(__name__)
# One of these is there where a folder has a tokenizer.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


class ModelSource(ABC):
    """Where a network and its tokenizer come from. Making one loads nothing."""

    @property
    @abstractmethod
    def path(self) -> str | None:
        """Folder or Hub id of the weights; ``None`` where they are made from a seed."""

    @abstractmethod
    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load or build the tokenizer."""

    @abstractmethod
    def load_model(self) -> PreTrainedModel:
        """Load or build the network."""


class Pretrained(ModelSource):
    """A causal language model from a folder in Hugging Face format, or from the Hub.

    Args:
        path: The folder, or a Hub id.
        dtype: Type of the trained weights. ``float32`` keeps master weights in full precision (use it with
            ``trainer.precision: bf16-mixed`` on a GPU): in pure bf16 a step of 1e-5 rounds away for most weights.
        attn_implementation: Attention of transformers; by default the best that the architecture supports.
        trust_remote_code: Whether to run code that a Hub repository ships. Off unless you have read it.
    """

    def __init__(
        self,
        path: str,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self._path = path
        self.dtype = dtype
        self.attn_implementation = attn_implementation
        self.trust_remote_code = trust_remote_code

    @property
    def path(self) -> str:
        """Folder or Hub id of the weights."""
        return self._path

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer."""
        return load_tokenizer(self._path, self.trust_remote_code)

    def load_model(self) -> PreTrainedModel:
        """Load the weights."""
        return load_model(self._path, getattr(torch, self.dtype), self.trust_remote_code, self.attn_implementation)


def load_tokenizer(path: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model; of an adapter without one, that of its base.

    Raises:
        InputError: A local folder that is missing or holds no tokenizer; a Hub id that cannot be reached.
    """
    check_model_path(path)
    folder = Path(path)
    if (folder / ADAPTER_CONFIG).is_file() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return load_tokenizer(adapter_base(folder), trust_remote_code)
    with reading(f"the tokenizer of {path}", "one in Hugging Face format"):
        check_model_files(path)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        tokenizer("A text.")  # some settings are looked at here alone
        return tokenizer


def load_language_model(
    path: str, dtype: torch.dtype = torch.float32, trust_remote_code: bool = False, device: str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model for evaluation, in eval mode, with its tokenizer; an adapter is merged into its base.

    Args:
        path: Folder or Hub id.
        dtype: Type of the weights.
        trust_remote_code: Whether to run code that a Hub repository ships.
        device: A device, ``auto`` for a GPU where there is one, or ``spread`` over all GPUs (through accelerate).

    Raises:
        InputError: A local folder that is missing or holds no model; a Hub id that cannot be reached; a device that is
            not there.
    """
    tokenizer = load_tokenizer(path, trust_remote_code)
    if device == "spread":
        return load_model(path, dtype, trust_remote_code, device_map="auto").eval(), tokenizer
    target = named_device(device)
    model: PreTrainedModel = load_model(path, dtype, trust_remote_code).eval().to(target)
    return model, tokenizer


def named_device(device: str) -> str:
    """Return a device that is there; ``auto`` is a GPU where there is one.

    Raises:
        InputError: It is not there.
    """
    target = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        torch.zeros(1, device=target)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device {device!r} is not there ({in_short(error)}); expected cpu, cuda, cuda:<n>, auto or spread"
        ) from error
    return target


def input_device(model: PreTrainedModel) -> torch.device:
    """Return the device that token ids belong on; of a model whose weights are offloaded, the one that it runs on."""
    if model.device.type != "meta":
        return model.device
    return torch.device(getattr(getattr(model, "_hf_hook", None), "execution_device", None) or "cpu")


def load_config(path: str) -> PretrainedConfig:
    """Return the configuration of a model; of an adapter that of its base.

    Raises:
        InputError: None can be read.
    """
    location = Path(path)
    if (location / ADAPTER_CONFIG).is_file():
        return load_config(adapter_base(location))
    with reading(f"the configuration of {path}", "one of a decoder in Hugging Face format"):
        check_model_files(path)
        config: PretrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=False)
    return config


def count_blocks(path: str) -> int:
    """Return the number of transformer blocks of a model, by its configuration alone.

    Raises:
        InputError: No configuration can be read, or it is none of a decoder.
    """
    config = load_config(path)
    with reading(f"the configuration of {path}", "one of a decoder in Hugging Face format"):
        return int(config.get_text_config().num_hidden_layers)


def load_model(
    path: str,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    device_map: str | None = None,
) -> PreTrainedModel:
    """Load the weights of a model; an adapter is merged into its base.

    Raises:
        InputError: As :func:`load_language_model`; also weights that are truncated, of another shape, or missing: those
            would be drawn at random.
    """
    check_model_path(path)
    disable_progress_bar()  # of a model's shards; our own bars show stages and models
    if (Path(path) / ADAPTER_CONFIG).is_file():
        return _merged(path, dtype, trust_remote_code, attn_implementation, device_map)
    check_weights(path)
    expected = "a causal language model in Hugging Face format"
    with reading(f"the model {path}", expected), bounded_by_files(Path(path)):
        check_model_files(path)
        config = _text_part(path)
        renamed = _renamed(path, config is not None)
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            attn_implementation=attn_implementation,
            device_map=device_map,
            output_loading_info=True,
            key_mapping=renamed,
            **({} if config is None else {"config": config}),
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise InputError(
            f"{path} lacks {len(missing)} weights of its architecture, {missing[0]} first, which would be drawn at "
            "random; restore the file or export the model again"
        )
    named_ends(model.generation_config)
    if renamed:  # transformers has no public way to save such a model under the network's own names
        del model._weight_conversions
    return model


def _merged(
    path: str, dtype: torch.dtype, trust_remote_code: bool, attn_implementation: str | None, device_map: str | None
) -> PreTrainedModel:
    try:
        base = load_model(adapter_base(Path(path)), dtype, trust_remote_code, attn_implementation, device_map)
    except InputError as error:
        raise InputError(f"the base of adapter {path} cannot be loaded: {error}") from error
    if not (Path(path) / ADAPTER_FILE).is_file():
        raise InputError(f"adapter {path} {_unlike(Path(path), ADAPTER_FILE)}")
    model = merged(base, path)
    model.name_or_path = path  # an adapter trained upon this one names it, not the base below
    return model


def _text_part(path: str) -> PretrainedConfig | None:
    """Return the configuration of a multimodal model's text part, which is what runs; ``None`` of other models."""
    settings, _ = PretrainedConfig.get_config_dict(path)
    config = text_part_of(settings)
    if config is not None:
        logger.info("%s is a model of more than texts; its text part is read (%s)", path, config.model_type)
    return config


def _renamed(path: str, is_text_part: bool) -> dict[str, str] | None:
    """Return what transformers is to rename: what wrapped a model that was saved, and what holds a text part."""
    stored = weight_files(path, Path(path)) if Path(path).is_dir() else {}
    renamed = {rf"^{re.escape(name)}$": unwrapped(name) for name in stored if unwrapped(name) != name}
    if is_text_part:
        renamed |= {rf"^{re.escape(name)}$": text_name(unwrapped(name)) for name in stored}
        renamed |= {} if stored else {r"^(?:model\.)?(?:language_model|text_model)\.": ""}
    return renamed or None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, and each of its modules back into its own mode afterwards; without gradients.

    Not in inference mode: weights that ZeRO-3 gathers there could not be trained on afterwards.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def check_weights(path: str) -> None:
    """Refuse weights of a local folder that are no safetensors, since pickles can run code, or not of one model.

    Raises:
        InputError: As :func:`~safety_subspaces.language.weight_files.weight_files`.
    """
    if Path(path).is_dir():  # a Hub id: transformers is told to take safetensors alone
        weight_files(path, Path(path))


def _unlike(folder: Path, expected: str) -> str:
    """Say what a folder holds in place of weights that are read."""
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    if not pickles:
        return f"holds no weights; expected {expected}"
    return (
        f"holds pickled weights ({pickles[0]}), which can run code and are not read; expected {expected}. Where you "
        "trust them, load them with transformers or PEFT yourself and save_pretrained them again"
    )
