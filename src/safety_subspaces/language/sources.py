"""Rows of a local file or of the Hub, as ``datasets`` has them; text of a CSV file stays text."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import pandas as pd
import pyarrow as pa
from pyarrow import parquet as pq

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.foreign import parse_json, reading
from safety_subspaces.language.known_data import AT, KnownData, known_data

if TYPE_CHECKING:
    from datasets import Dataset

CSV = ".csv"
# Types of JSON whose values are text where one of a column is.
WRITTEN = frozenset((str, int, float))
# Rows of JSON that are plain objects at once; a table of them takes a fraction.
ROWS_AT_ONCE = 10_000


def read_rows(path: str, config: str | None = None, split: str = "train") -> "Dataset":
    """Read a local file (by its ending), a known data set by name, or a Hub id. Columns: the fields of the source.

    Args:
        path: The file, the name (``<name>`` or ``<name>@<file>``, :mod:`.known_data`) or the id.
        config: Configuration of a Hub id; a known data set has its own.
        split: Split of a Hub id; a known data set has its own.

    Raises:
        InputError: A file that is missing or cannot be read, or a Hub that cannot be reached; of a known data set it
            says which file to download.
    """
    named = known_data(path)
    if named is not None:
        name, known, file = named
        return _read_file(file) if file else _read_known(name, known)
    if Path(path).suffix.lower() in READERS or Path(path).exists():
        return _read_file(path)
    try:
        return _read_hub(path, config, split)
    except (OSError, ValueError) as error:
        raise InputError(
            f"data set {path} could not be loaded from the Hub ({type(error).__name__}: {error}); "
            "check the id, config and split, or download it and give the path of a local file"
        ) from error


def matching_rows(rows: "Dataset", path: str, keep: dict[str, Any]) -> list[int]:
    """Return the indices of the rows that have the wanted value, or one of the wanted ones, in each of the fields.

    All fields of a CSV file are text: there values compare as text, booleans in any case, null is empty.

    Raises:
        InputError: A field that is not there, or no row is left.
    """
    check_fields(rows, path, list(keep))
    indices = list(range(len(rows)))
    for name, wanted in keep.items():
        values, column = wanted if isinstance(wanted, list) else [wanted], list(rows[name])
        keeps = _keeps_text if path.lower().endswith(CSV) else _keeps_value
        indices = [index for index in indices if keeps(column[index], values)]
    if not indices:
        raise InputError(f"{path}: none of {len(rows)} rows is left after keep={keep}; check its values")
    return indices


def check_fields(rows: "Dataset", path: str, fields: list[str]) -> None:
    """Refuse rows that lack a field.

    Raises:
        InputError: Names what is missing and what there is.
    """
    missing = [name for name in fields if name not in rows.column_names]
    if missing:
        raise InputError(
            f"{path} has no field {', '.join(map(repr, missing))}; its fields are {', '.join(rows.column_names)}. "
            "Name the right ones by prompt_field, response_field, rejected_field or keep"
        )


def _read_file(path: str) -> "Dataset":
    """Read a local file as it is now: the cache of ``datasets`` knows files by name, size and time alone."""
    from datasets import Dataset

    location = Path(path)
    suffix = location.suffix.lower()
    if suffix not in READERS:
        raise InputError(f"{path}: expected a file that ends in {', '.join(READERS)}, or a Hub id")
    if not location.is_file():
        raise InputError(f"data file {path} does not exist; put it there or change the path")
    with reading(path, f"rows as {suffix[1:]}", "mend or replace it"):
        return Dataset(READERS[suffix](location))


def _read_csv(path: Path) -> pa.Table:
    """Read a CSV file. Columns: the fields of its header, all of them text; an empty field is an empty text."""
    # As text throughout, else an answer "4" becomes a number and an answer "None" is missing.
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes the first fields for names of the rows
        raise ValueError("its rows have more fields than its header; quote text that holds commas")
    header = str(table.columns[0])
    if len(table.columns) == 1 and (";" in header or "\t" in header):
        raise ValueError(f"its header {header[:80]!r} is one field; separate fields by commas")
    return pa.Table.from_pandas(table, preserve_index=False)


def _read_parquet(path: Path) -> pa.Table:
    """Read a Parquet file. Columns: its own; those of pandas' index are left out."""
    table = pq.ParquetFile(path).read()
    named = table.select([name for name in table.column_names if not name.startswith("__index_level_")])
    # What the file says of its columns could have `datasets` open other files, as those of images.
    return named.replace_schema_metadata(None)


def _read_json(path: Path) -> pa.Table:
    """Read one object a line, or one list of objects. Columns: every name that an object has; absent is null.

    Texts and numbers in one column are text as they are written, such as "4" beside 5.
    """
    kinds: dict[str, set[type]] = {}
    tables = list(_json_tables(path, kinds, frozenset()))
    mixed = frozenset(name for name, found in kinds.items() if str in found and found <= WRITTEN)
    if any(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in _types_of(tables, mixed)):
        tables = list(_json_tables(path, kinds, mixed))  # the first text stands behind a part that was read as numbers
    if not tables:
        raise ValueError("it holds no rows")
    return pa.concat_tables(tables, promote_options="permissive")


def _json_tables(path: Path, kinds: dict[str, set[type]], mixed: frozenset[str]) -> Iterator[pa.Table]:
    """Yield the rows of a file in parts, and add to ``kinds`` which types the values of each name have."""
    with path.open(encoding="utf-8-sig") as stream:
        if _first_character(stream) == "[":
            rows = iter([*parse_json(stream.read())])
        else:
            rows = (parse_json(line) for line in stream if line.strip())
        while part := list(islice(rows, ROWS_AT_ONCE)):
            if not all(isinstance(row, dict) for row in part):
                raise ValueError("a row is no object of values by name")
            names = dict.fromkeys(name for row in part for name in row)
            yield pa.table({name: _column(name, part, kinds.setdefault(name, set()), mixed) for name in names})


def _column(name: str, rows: list[dict[str, Any]], kinds: set[type], mixed: frozenset[str]) -> pa.Array:
    values = [row.get(name) for row in rows]
    found = {type(value) for value in values if value is not None}
    kinds |= found
    if name in mixed or (str in found and found <= WRITTEN):
        values = [value if value is None else str(value) for value in values]
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeError) as error:
        raise ValueError(f"the values of {name[:80]!r} are of several kinds, or of none: {error}") from error


def _types_of(tables: list[pa.Table], names: frozenset[str]) -> list[pa.DataType]:
    return [table.schema.field(name).type for table in tables for name in names & set(table.column_names)]


def _first_character(stream: TextIO) -> str:
    """Return the first character that is no space, and go back to the start."""
    while (character := stream.read(1)).isspace():
        pass
    stream.seek(0)
    return character


def _read_known(name: str, known: KnownData) -> "Dataset":
    try:
        return _read_hub(known.hub, known.config, known.split)
    except (OSError, ValueError) as error:
        configured = f", configuration {known.config}" if known.config else ""
        file = known.file or f"split {known.split} of https://huggingface.co/datasets/{known.hub}{configured}"
        raise InputError(
            f"data set {name} ({known.hub}) could not be loaded from the Hub ({type(error).__name__}: {error}). "
            f"Without the Hub: download {file} and say {name}{AT}<path of the file> ({', '.join(READERS)})"
        ) from error


def _read_hub(path: str, config: str | None, split: str) -> "Dataset":
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        return load_dataset(path, config, split=split)
    except DatasetNotFoundError as error:
        raise OSError(str(error)) from error


READERS: dict[str, Callable[[Path], pa.Table]] = {
    ".json": _read_json, ".jsonl": _read_json, CSV: _read_csv, ".parquet": _read_parquet,
}  # fmt: skip


def _keeps_value(value: Any, wanted: list[Any]) -> bool:
    return value in wanted


def _keeps_text(text: str, wanted: list[Any]) -> bool:
    return any(
        text.lower() == str(value).lower() if isinstance(value, bool) else text == ("" if value is None else str(value))
        for value in wanted
    )
