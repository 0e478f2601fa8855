"""``analyze.py convert``: a GGUF file, as llama.cpp runs it, as a model folder in Hugging Face format to train on.

Transformers reads GGUF, but what it loads counts as quantised: it refuses ``.float()`` and ``save_pretrained``. Here
the dequantised weights go into a network of the same architecture that never was.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.extras import check_extra
from safety_subspaces.artefacts.files import check_free, replacing_folder, write_json
from safety_subspaces.artefacts.foreign import reading
from safety_subspaces.artefacts.provenance import provenance, sha256_of_file

MAGIC = b"GGUF"  # the first four bytes of every such file
RECORD_FILE = "conversion.json"


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

    from safety_subspaces.analysis.convert.run import check_written, load, without_quantisation

    tokenizer, loaded = load(source, storage)
    plain = without_quantisation(loaded)
    with replacing_folder(Path(out), overwrite) as folder:
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        difference = check_written(folder, loaded, tokenizer)
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
    check_extra("gguf", "reading GGUF")

    from gguf import GGUFReader, GGUFValueType  # an extra: only this command needs it

    from safety_subspaces.language.model_files import check_counts

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
