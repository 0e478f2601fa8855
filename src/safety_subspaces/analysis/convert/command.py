"""``analyze.py convert``: a GGUF file, as llama.cpp runs it, as a model folder in Hugging Face format to train on.

Transformers reads GGUF, but what it loads counts as quantised: it refuses ``.float()`` and ``save_pretrained``. Here
the dequantised weights go into a network of the same architecture that never was.
"""

import importlib.util
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.files import check_free, replacing_folder, write_json
from safety_subspaces.artefacts.foreign import reading
from safety_subspaces.artefacts.provenance import provenance, sha256_of_file
from safety_subspaces.language.examples import PromptFormat
from safety_subspaces.language.model import evaluating, load_language_model
from safety_subspaces.language.model_files import bounded_network, check_counts
from safety_subspaces.language.prompting import encode_prompt

MAGIC = b"GGUF"  # the first four bytes of every such file
RECORD_FILE = "conversion.json"
# What loading leaves in a configuration: how the file was quantised, and what its author called the model.
LEFT_OUT = ("quantization_config", "_name_or_path", "_model_name_or_path")
# Any text will do to compare logits on; this one has letters, digits and signs.
SAMPLE = "What is 12 + 30? Answer in one sentence."
# Equal weights in equal float32 arithmetic: nothing but the order of threads' sums may differ.
LOGIT_TOLERANCE = 1e-4
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


@dataclass(frozen=True)
class Converted:
    """What was written.

    Args:
        path: The model folder.
        source: The GGUF file.
        architecture: The network's class.
        n_parameters: Its parameters, tied ones once.
        storage: How many tensors the file stores in each type.
        logit_difference: Largest difference between the logits of the written and the loaded model.
    """

    path: Path
    source: Path
    architecture: str
    n_parameters: int
    storage: dict[str, int]
    logit_difference: float

    def __str__(self) -> str:
        stored = ", ".join(f"{count} {kind}" for kind, count in self.storage.items())
        return (
            f"wrote {self.path} from {self.source}: {self.architecture}, {self.n_parameters:,} parameters in float32 "
            f"(stored as {stored}); logits differ by {self.logit_difference:.2g} at most"
        )


def convert(gguf: str, out: str, overwrite: bool = False) -> Converted:
    """Write a GGUF file as a model folder: dequantised float32 safetensors, tokenizer, chat template.

    What was written is loaded again before it gets its name: weights and token ids must be those of the file, logits
    those of the model that Transformers makes of it. Beside them ``conversion.json`` names the file and its hash.

    Needs the package ``gguf``.

    Args:
        gguf: The file.
        out: The folder to make.
        overwrite: Whether what is in ``out`` may be replaced.

    Returns:
        What was written.

    Raises:
        InputError: Before anything is written: no such file, one that is no GGUF or of an architecture that
            Transformers cannot read, the package is missing, or something is in the way of ``out``. Later: what was
            written is not what was read.
    """
    source = Path(gguf)
    storage = _check_file(source)
    check_free(Path(out), overwrite)
    tokenizer, loaded = _load(source, storage)
    plain = _without_quantisation(loaded)
    with replacing_folder(Path(out), overwrite) as folder:
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        difference = _check_written(folder, loaded, tokenizer)
        result = Converted(Path(out), source, type(plain).__name__, plain.num_parameters(), storage, difference)
        written = {"source": source.name, "sha256": sha256_of_file(source), "storage": result.storage}
        write_json(folder / RECORD_FILE, {**written, "logit_difference": difference, **provenance()})
    return result


def _check_file(source: Path) -> dict[str, int]:
    """Check what can be told without loading the model, and return how many tensors are stored in each type."""
    if not source.is_file():
        raise InputError(f"{source} is no file; expected a model in GGUF format, such as model.Q4_1.gguf")
    with source.open("rb") as stream:
        start = stream.read(len(MAGIC))
    if start != MAGIC:
        raise InputError(f"{source} is no GGUF file: it begins with {start!r}, expected {MAGIC!r}")
    if importlib.util.find_spec("gguf") is None:
        raise InputError("reading GGUF needs the package gguf, which is not installed: pip install 'gguf==0.19.0'")
    from gguf import GGUFReader, GGUFValueType  # an extra: only this command needs it

    # The reader of gguf raises what comes: IndexError, struct.error or OverflowError at a file that is cut short.
    with reading(source, "a causal language model as GGUF"):
        reader = GGUFReader(source)
        single = {name: field for name, field in reader.fields.items() if len(field.types) == 1}
        numbers = {name: field.contents() for name, field in single.items() if field.types != [GGUFValueType.STRING]}
        check_counts(numbers, str(source))
        blocks = max((value for name, value in numbers.items() if name.endswith(".block_count")), default=0)
        if blocks > len(reader.tensors):  # transformers looks for the tensors of each in turn, for every module
            raise ValueError(f"it is of {blocks} blocks, and holds {len(reader.tensors)} tensors")
        return dict(Counter(tensor.tensor_type.name for tensor in reader.tensors).most_common())


def _load(source: Path, storage: dict[str, int]) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    disable_progress_bar()  # three in a row, of a second each
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    where["trust_remote_code"] = False  # transformers would ask on a terminal, and run what lies beside the file
    bounded = bounded_network(sum(storage.values()), source.stat().st_size, str(source))
    with reading(source, "a causal language model as GGUF"), bounded:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    return tokenizer, model


def _without_quantisation(loaded: PreTrainedModel) -> PreTrainedModel:
    """Return a network of the same architecture and weights that does not count as quantised."""
    settings = {name: value for name, value in loaded.config.to_dict().items() if name not in LEFT_OUT}
    plain: PreTrainedModel = AutoModelForCausalLM.from_config(
        type(loaded.config).from_dict(settings), trust_remote_code=False
    )
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    return plain


def _check_written(folder: Path, loaded: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
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
