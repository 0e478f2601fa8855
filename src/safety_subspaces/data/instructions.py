"""Instruction and preference data from a local file or from the Hub, through ``datasets``."""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from safety_subspaces.data.base import Item, LanguageData, Overlong
from safety_subspaces.data.mixture import ShareOf, contaminant_size
from safety_subspaces.errors import InputError
from safety_subspaces.examples import Example, PreferencePair
from safety_subspaces.prompting import CHAT

logger = logging.getLogger(__name__)

# Loader of `datasets` for each kind of local file.
LOCAL_FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


@dataclass
class DatasetSource:
    """Where rows come from and which of their fields are used.

    Args:
        path: A local ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file, or a Hub id.
        config: Configuration of a Hub data set.
        split: Split of a Hub data set.
        prompt_field: Field that holds the prompt.
        response_field: Field that holds the response (the chosen one, for preferences).
        rejected_field: Field that holds the rejected response; makes preference pairs.
        keep: Only rows whose field has this value, or one of these values, for example ``{is_safe: false}``.
        first: Only the first so many rows, after the filter.
        sample: Only so many rows, drawn without replacement after the filter by the data seed.
    """

    path: str
    config: str | None = None
    split: str = "train"
    prompt_field: str = "prompt"
    response_field: str = "response"
    rejected_field: str | None = None
    keep: dict[str, Any] = field(default_factory=dict)
    first: int | None = None
    sample: int | None = None


@dataclass
class SourceContamination:
    """A second source mixed into the first; its rows are drawn by the data seed.

    Args:
        source: Where the second rows come from.
        share: Their share.
        share_of: Whether of the ``total`` or of the ``first`` source.
    """

    source: DatasetSource
    share: float
    share_of: ShareOf


class InstructionData(LanguageData):
    """Instruction (or preference) data by path or Hub id.

    Args:
        train: The training rows.
        validation: Rows to validate on; none by default.
        test: Rows to test on; none by default.
        contamination: A second source mixed into the training rows; both counts are logged.
        batch_size: Examples in a batch of one process.
        max_length: Longest sequence in tokens.
        overlong: ``error``, ``drop`` or ``truncate``.
        template: ``chat``, or a named prompt template.
        seed: Seed of samples and order.
        num_workers: Worker processes of the loader.
    """

    def __init__(
        self,
        train: DatasetSource,
        validation: DatasetSource | None = None,
        test: DatasetSource | None = None,
        contamination: SourceContamination | None = None,
        batch_size: int = 1,
        max_length: int = 512,
        overlong: Overlong = "error",
        template: str = CHAT,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, max_length, overlong, template, seed, num_workers)
        if contamination is not None and train.rejected_field is not None:
            raise InputError("contamination mixes examples; a source with a rejected_field holds pairs")
        self.sources = {"train": train, "dev": validation, "test": test}
        self.contamination = contamination

    def examples(self, split: Literal["train", "dev", "test"]) -> Sequence[Item]:
        """Read the rows of a split.

        Raises:
            InputError: A missing file, a field that is not there, or nothing left after the filter.
        """
        source = self.sources[split]
        if source is None:
            return []
        items = read_source(source, self.seed)
        if split == "train" and self.contamination is not None:
            mix = self.contamination
            count = contaminant_size(len(items), mix.share, mix.share_of)
            second = read_source(mix.source, self.seed)
            if len(second) < count:
                raise InputError(
                    f"{mix.source.path} has {len(second)} rows after its filter, but a share of {mix.share} of the "
                    f"{mix.share_of} beside {len(items)} rows needs {count}; lower the share or the first source's size"
                )
            second = random.Random(f"contaminant {self.seed}").sample(second, count)
            self.counts |= {"first": len(items), "contaminant": count}
            logger.info("contamination: %d rows of the first source, %d of the second", len(items), count)
            items = items + second
            random.Random(f"mixture {self.seed}").shuffle(items)
        return items


def read_source(source: DatasetSource, seed: int) -> list[Item]:
    """Read, filter and cut one source.

    Raises:
        InputError: A missing or unreadable file, a field that is not there, an empty prompt or response, or nothing
            left after the filter.
    """
    rows = _load(source)
    fields = [source.prompt_field, source.response_field, *source.keep]
    fields += [] if source.rejected_field is None else [source.rejected_field]
    missing = [name for name in fields if name not in rows.column_names]
    if missing:
        raise InputError(
            f"{source.path} has no field {', '.join(map(repr, missing))}; "
            f"its fields are {', '.join(rows.column_names)}. "
            "Name the right ones by prompt_field, response_field, rejected_field or keep"
        )
    before = len(rows)
    for name, wanted in source.keep.items():
        values = wanted if isinstance(wanted, list) else [wanted]
        rows = rows.select([index for index, value in enumerate(rows[name]) if value in values])
    if len(rows) == 0:
        raise InputError(f"{source.path}: none of {before} rows is left after keep={source.keep}; check its values")
    if source.first is not None:
        rows = rows.select(range(min(source.first, len(rows))))
    if source.sample is not None and source.sample < len(rows):
        rows = rows.select(sorted(random.Random(f"sample {seed}").sample(range(len(rows)), source.sample)))
    return [_item(row, number, source) for number, row in enumerate(rows)]


def _load(source: DatasetSource) -> Dataset:
    path = Path(source.path)
    if path.suffix in LOCAL_FORMATS:
        if not path.is_file():
            raise InputError(f"data file {source.path} does not exist; put it there or change the path")
        try:
            return load_dataset(LOCAL_FORMATS[path.suffix], data_files=str(path), split="train")
        except (DatasetGenerationError, ValueError, OSError) as error:
            cause = error.__cause__ or error
            raise InputError(f"{source.path} could not be read as {path.suffix[1:]}: {cause}") from error
    if path.exists():
        raise InputError(f"{source.path}: expected a file that ends in {', '.join(LOCAL_FORMATS)}, or a Hub id")
    try:
        return load_dataset(source.path, source.config, split=source.split)
    except (DatasetNotFoundError, ConnectionError, ValueError, OSError) as error:
        raise InputError(
            f"data set {source.path} could not be loaded from the Hub ({type(error).__name__}: {error}); "
            "check the id, config and split, or download it and give the path of a local file"
        ) from error


def _item(row: dict[str, Any], number: int, source: DatasetSource) -> Item:
    names = [source.prompt_field, source.response_field]
    names += [] if source.rejected_field is None else [source.rejected_field]
    for name in names:
        if not isinstance(row[name], str) or not row[name].strip():
            raise InputError(
                f"{source.path}, row {number}: field {name!r} is {row[name]!r}, expected text; mend or filter the row"
            )
    prompt, response = row[source.prompt_field], row[source.response_field]
    if source.rejected_field is None:
        return Example(prompt, response)
    return PreferencePair(prompt, response, row[source.rejected_field])
