"""Instruction and preference data from a local file or from the Hub, through ``datasets``."""

import logging
import random
from dataclasses import dataclass, field
from typing import Any, Literal

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.language.known_data import is_harmful, known_data
from safety_subspaces.language.prompting import CHAT
from safety_subspaces.language.sources import check_fields, matching_rows, read_rows
from safety_subspaces.training.data.base import Encoded, Item, LanguageData, Overlong, RowKey
from safety_subspaces.training.data.formats import INPUT, TOLD_BY, Format, Learnt, Reading, detect
from safety_subspaces.training.data.mixture import ShareOf, contaminant_size

logger = logging.getLogger(__name__)


@dataclass
class DatasetSource:
    """Where rows come from and which of their fields are used.

    Args:
        path: A local ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file; a Hub id; or a known data set by name, as
            ``metamathqa`` or ``beavertails_unsafe@rows.jsonl``, which brings its own configuration, split, fields and
            filter (:mod:`safety_subspaces.language.known_data`).
        config: Configuration of a Hub data set.
        split: Split of a Hub data set.
        prompt_field: Field that holds the prompt; ``prompt`` by default.
        response_field: Field that holds the response (the chosen one, for preferences); ``response`` by default.
        rejected_field: Field that holds the rejected response; makes preference pairs.
        format: How rows are written: ``auto`` tells it from their fields; ``messages`` (OpenAI's), ``completion``
            (prompt and completion, as texts or messages), ``alpaca``, ``sharegpt``, ``preference`` (chosen and
            rejected, as texts or messages), or ``fields``, those named above, which may hold messages too. Naming a
            field means ``fields``.
        learnt: Of a conversation, the ``last`` answer, or ``all`` of them, each after what was said before it.
        empty: What comes of rows with an empty answer: ``error``, or ``drop``.
        keep: Only rows whose field has this value, or one of these values, for example ``{is_safe: false}``.
            All fields of a CSV file are text: there values compare as text, booleans in any case, null is empty.
        first: Only the first so many rows, after the filter.
        sample: Only so many rows, drawn without replacement after the filter by the data seed.

    Raises:
        InputError: ``first`` or ``sample`` below 1.
    """

    path: str
    config: str | None = None
    split: str = "train"
    prompt_field: str | None = None
    response_field: str | None = None
    rejected_field: str | None = None
    format: Format = "auto"
    learnt: Learnt = "last"
    empty: Literal["error", "drop"] = "error"
    keep: dict[str, Any] = field(default_factory=dict)
    first: int | None = None
    sample: int | None = None

    def __post_init__(self) -> None:
        for name, count in (("first", self.first), ("sample", self.sample)):
            if count is not None and count < 1:
                raise InputError(f"{self.path}: {name} is {count}, expected at least 1; leave it out to take all rows")


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
        contamination: A second source mixed into the training rows. Its share is of what is trained on: with
            ``overlong: drop`` both sources lose their long rows before the share is taken. ``counts`` has the trained
            rows of both as ``first`` and ``contaminant``, what was too long as ``first_drop`` and
            ``contaminant_drop`` (of the whole second source, drawn or not).
        batch_size: Examples in a batch of one process.
        max_length: Longest sequence in tokens.
        overlong: ``error``, ``drop`` or ``truncate``.
        template: ``chat``, or a prompt template by its name or import path.
        seed: Seed of samples and order.
        num_workers: Worker processes of the loader.
        template_args: What the chat template is given beside the turns, such as ``{enable_thinking: false}``.
        control_tokens: Whether the text of a control token in the data is read as that token; by default it is text.
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
        template_args: dict[str, Any] | None = None,
        control_tokens: bool = False,
    ) -> None:
        super().__init__(batch_size, max_length, overlong, template, seed, num_workers, template_args, control_tokens)
        if contamination is not None and (train.rejected_field or contamination.source.rejected_field):
            raise InputError("contamination mixes examples; a source with a rejected_field holds pairs")
        self.sources = {"train": train, "dev": validation, "test": test}
        self.contamination = contamination

    def inputs(self) -> list[str]:
        """Return where the rows come from; of a known data set the file that it is read from, if it is."""
        second = self.contamination.source if self.contamination else None
        paths = [source.path for source in (*self.sources.values(), second) if source is not None]
        return [file for path in paths if (file := known[2] if (known := known_data(path)) else path)]

    def describe(self) -> dict[str, Any]:
        """Say which sources are trained on; of data that are not known nobody can say whether they are harmful."""
        second = [] if self.contamination is None else [self.contamination.source]
        sources = [source for source in (self.sources["train"], *second) if source is not None]
        found = [is_harmful(source.path, source.keep) for source in sources]
        harmful = True if True in found else None if None in found else False
        return super().describe() | {"trained_on": {"sources": [s.path for s in sources], "harmful": harmful}}

    def examples(self, split: Literal["train", "dev", "test"]) -> list[Encoded]:
        """Read and encode the rows of a split.

        Raises:
            InputError: A missing file, a field that is not there, nothing left after the filter, or rows beyond
                ``max_length`` where ``overlong`` is ``error``.
        """
        source = self.sources[split]
        if source is None:
            return []
        rows = read_source(source, self.seed)
        if split != "train" or self.contamination is None:
            return list(self.encode(rows, source.path, split).values())
        first = list(self.encode(rows, source.path, "first").values())
        second = self._draw_contaminant(self.contamination, len(first))
        self.counts |= {"first": len(first), "contaminant": len(second)}
        logger.info("contamination: %d rows of the first source, %d of the second", len(first), len(second))
        mixture = first + second
        random.Random(f"mixture {self.seed}").shuffle(mixture)
        return mixture

    def _draw_contaminant(self, mix: SourceContamination, first: int) -> list[Encoded]:
        """Draw the rows of the second source that belong beside ``first`` rows of the first one."""
        rows, encoded = read_source(mix.source, self.seed), None
        if self.overlong == "drop":  # before the draw, else fewer would be left than the share asks for
            encoded = self.encode(rows, mix.source.path, "contaminant")
        indices = list(rows if encoded is None else encoded)
        count = contaminant_size(first, mix.share, mix.share_of)
        if len(indices) < count:
            raise InputError(
                f"{mix.source.path} has {len(indices)} usable rows, but a share of {mix.share} of the {mix.share_of} "
                f"beside {first} rows needs {count}; lower the share or the first source's size"
            )
        drawn = random.Random(f"contaminant {self.seed}").sample(indices, count)
        if encoded is None:
            encoded = self.encode({index: rows[index] for index in drawn}, mix.source.path, "contaminant")
        return [encoded[index] for index in drawn]


def read_source(source: DatasetSource, seed: int) -> dict[RowKey, Item]:
    """Read, filter and cut one source.

    Returns:
        The items by their row in the source, which counts from 0 before the filter; of several answers of one row by
        its number and theirs.

    Raises:
        InputError: A missing or unreadable file, a field that is not there, an empty prompt or response, or nothing
            left after the filter.
    """
    rows = read_rows(source.path, source.config, source.split)
    prompt, response, keep = _fields_of(source, rows.column_names)
    names = (prompt, response, source.rejected_field)
    kind = _format_of(source, rows.column_names)
    needed = [name for name in (names if kind == "fields" else TOLD_BY[kind]) if name]
    if source.rejected_field and source.prompt_field is None and prompt not in rows.column_names:
        needed.remove(prompt)  # dialogues hold it
    check_fields(rows, source.path, needed)
    logger.info("%s: read as %s", source.path, kind)
    if kind == "fields" and {prompt, response} == set(TOLD_BY["alpaca"]) and INPUT in rows.column_names:
        logger.warning("%s: the field %s is not read; say format: alpaca to have it in the prompt", source.path, INPUT)
    indices = matching_rows(rows, source.path, keep)
    indices = indices[: source.first]
    if source.sample is not None and source.sample < len(indices):
        indices = sorted(random.Random(f"sample {seed}").sample(indices, source.sample))
    reading = Reading(source.path, names, source.learnt, source.empty == "drop")
    items: dict[RowKey, Item] = {}
    empty = 0
    for index, row in zip(indices, rows.select(indices), strict=True):
        found = reading.items(row, index, kind)
        empty += not found
        items |= {(index if len(found) == 1 else (index, number)): item for number, item in enumerate(found)}
    if empty:
        logger.warning("%s: %d of %d rows left out, for their answer is empty", source.path, empty, len(indices))
    if not items:
        raise InputError(f"{source.path}: every answer is empty; expected texts to learn")
    return items


def _fields_of(source: DatasetSource, present: list[str]) -> tuple[str, str, dict[str, Any]]:
    """Return what prompt and response are called, and the filter: as asked for, else as the known data set has them."""
    named = known_data(source.path)
    if named is None:
        return source.prompt_field or "prompt", source.response_field or "response", source.keep
    name, known, _ = named
    if known.response_field is None and source.response_field is None:
        raise InputError(
            f"data set {name} has prompts alone, no answers to train on; name a response_field, or another"
        )
    return (
        source.prompt_field or known.field_name(known.prompt_field, present),
        source.response_field or known.field_name(known.response_field or "", present),
        {**known.row_filter(present), **source.keep},
    )


def _format_of(source: DatasetSource, columns: list[str]) -> str:
    """Return the format that is asked for; else the fields that are named, or what the fields of the file tell."""
    if source.format != "auto":
        return source.format
    named = source.prompt_field or source.response_field or source.rejected_field
    return "fields" if named or known_data(source.path) else detect(columns, source.path)
