"""Reading prompts: the organism's held-out sets, or a JSONL file whose lines say which set they belong to."""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.foreign import parse_json
from safety_subspaces.artefacts.text import encodable_value
from safety_subspaces.evaluation.settings import ORGANISM
from safety_subspaces.language.examples import PromptItem, PromptSets
from safety_subspaces.language.known_data import KNOWN, KnownData, known_data
from safety_subspaces.language.sources import check_fields, matching_rows, read_rows
from safety_subspaces.organism.arithmetic import final_answer
from safety_subspaces.organism.evaluation_sets import evaluation_sets
from safety_subspaces.organism.world import Split

SETS = ("utility", "harmful", "benign")
# A set of fewer prompts has halves of fewer than four: nothing can be said of the space that they span.
FEWEST_PROMPTS = 8


def read_prompts(path: Path, limit: int | None = None) -> PromptSets:
    """Read prompt sets from a JSONL file; see :class:`EvaluationSettings` for its fields.

    Raises:
        InputError: A file that is missing, empty, no JSONL, or lacks a field; the message names the line.
    """
    sets: dict[str, list[PromptItem]] = {name: [] for name in SETS}
    for where, line in _lines(path):
        item = _checked_item(line, where)
        sets[line["set"]].append(item)
    limited = {name: items[:limit] for name, items in sets.items()}
    return PromptSets(str(path), **limited)


def read_prompt_list(source: str, split: Split = "dev", limit: int | None = None) -> list[str]:
    """Read the texts of :func:`read_prompt_items`."""
    return [item.prompt for item in read_prompt_items(source, split, limit)]


def read_prompt_items(source: str, split: Split = "dev", limit: int | None = None) -> list[PromptItem]:
    """Read the prompts of one set, to look at what a model makes of them.

    Args:
        source: ``organism:<set>`` with one of utility, harmful and benign; a JSONL file whose lines have a ``prompt``,
            and if they like a ``reference``, ``refusals``, a ``group`` (what prompts that stand and fall together
            share, a list of two where it is two things that cross) and a ``source`` (where the prompt is from, or its
            template); ``<file>:<set>`` for the lines of that ``set``; or a known data set, as ``advbench`` or
            ``xstest_safe@prompts.csv`` (:mod:`safety_subspaces.language.known_data`).
        split: Split of the organism's prompts.
        limit: At most so many, the first ones.

    Raises:
        InputError: No such set or file, no prompt in it, or a line that is no JSON or lacks a prompt.
    """
    name, chosen = split_source(source)
    if name == ORGANISM and chosen is not None:
        items: list[PromptItem] = getattr(evaluation_sets(split, limit), chosen)
        return items
    known = known_data(source)
    if known is not None:
        return _known_items(source, known[1])[:limit]
    if chosen is None and not Path(source).is_file():
        raise InputError(
            f"prompts {source!r}: expected organism:<set>, a JSONL file that exists, <file>:<set>, or a known data "
            f"set; a set is one of {', '.join(SETS)}, a data set one of {', '.join(KNOWN)}"
        )
    path = Path(name)
    prompts = []
    for where, line in _lines(path):
        prompt = line.get("prompt") if isinstance(line, dict) else None
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError(f"{where}: expected JSON with the field prompt, a text that is not empty")
        if chosen is None or line.get("set") == chosen:
            prompts.append(_item(line, where))
    if not prompts:
        raise InputError(f"prompt file {path} holds no prompt of the set {chosen}")
    return prompts[:limit]


def read_sets(
    prompts: Mapping[str, str],
    split: Literal["dev", "test"],
    limit: int | None = None,
    shared: Literal["refuse", "drop"] = "refuse",
    fewest: int = FEWEST_PROMPTS,
) -> tuple[dict[str, list[PromptItem]], list[tuple[str, str]]]:
    """Read prompt sets that are to be compared, each prompt once.

    Args:
        prompts: Label and source of each.
        split: Split of the organism's prompts.
        limit: At most so many of each.
        shared: What to do when two sets share prompts: ``refuse``, or ``drop`` them from both.
        fewest: Prompts that a set must have.

    Returns:
        The sets, and what was left out with the reason.

    Raises:
        InputError: Fewer than two sets; a set that is missing, broken or too small; two that are the same or share
            prompts.
    """
    if len(prompts) < 2:
        raise InputError(f"expected two prompt sets or more, got {', '.join(prompts) or 'none'}; say --prompts.<label>")
    sets, left_out = {}, []
    for label, source in prompts.items():
        items = read_prompt_items(source, split, limit)
        unique = list({item.prompt: item for item in reversed(items)}.values())[::-1]
        if len(unique) < len(items):
            left_out.append((f"prompts {label}", f"{len(items) - len(unique)} of {len(items)} prompts are repeats"))
        sets[label] = unique
    for first, second in combinations(prompts, 2):
        texts = [{item.prompt for item in sets[label]} for label in (first, second)]
        common = texts[0] & texts[1]
        if texts[0] == texts[1]:
            raise InputError(f"prompt sets {first} and {second} are the same {len(common)} prompts; name two sets")
        if common and shared == "refuse":
            raise InputError(
                f"prompt sets {first} ({len(texts[0])}) and {second} ({len(texts[1])}) share {len(common)} prompts, "
                f"such as {min(common)[:60]!r}; an overlap would count them. Take them out, or say --shared drop"
            )
        if common:
            left_out.append((f"prompts {first} and {second}", f"{len(common)} prompts are in both: dropped from both"))
            for label in (first, second):
                sets[label] = [item for item in sets[label] if item.prompt not in common]
    for label, items in sets.items():
        if len(items) < fewest:
            raise InputError(f"prompt set {label} has {len(items)} prompts; expected at least {fewest}")
    return sets, left_out


def split_source(source: str) -> tuple[str, str | None]:
    """Return the file (or ``organism``) that a source of prompts names, and the set in it, if it names one."""
    name, _, chosen = source.rpartition(":")
    return (name, chosen) if chosen in SETS else (source, None)


def read_named_sets(sources: Mapping[str, str], split: Split = "test", limit: int | None = None) -> PromptSets:
    """Read prompt sets from a source each: ``{harmful: advbench, benign: xstest_safe, utility: gsm8k_test}``.

    Raises:
        InputError: A name that is no set, no set at all, a source as for :func:`read_prompt_items`, or a utility prompt
            without a reference.
    """
    unknown = [name for name in sources if name not in SETS]
    if unknown or not sources:
        raise InputError(f"prompt sets {', '.join(unknown) or 'none'}: expected one or more of {', '.join(SETS)}")
    sets = {name: read_prompt_items(source, split, limit) for name, source in sources.items()}
    for number, item in enumerate(sets.get("utility", [])):
        _check_reference(item, f"{sources['utility']}, prompt {number}")
    return PromptSets(", ".join(f"{name}: {source}" for name, source in sources.items()), **sets)


def files_of(prompts: str | Mapping[str, str]) -> list[str]:
    """Return the local files that prompts come from."""
    sources = [prompts] if isinstance(prompts, str) else list(prompts.values())
    files = []
    for source in sources:
        known = known_data(source)
        name = (known[2] or "") if known else split_source(source)[0]
        files += [name] if Path(name).is_file() else []
    return files


def _known_items(source: str, known: KnownData) -> list[PromptItem]:
    """The prompts of a known data set; what its answers are (targets, solutions) is their reference."""
    rows = read_rows(source)
    present = rows.column_names
    prompt, response, kind = (
        known.field_name(name, present) if name else None
        for name in (known.prompt_field, known.response_field, known.source_field)
    )
    assert prompt is not None
    check_fields(rows, source, [prompt])
    items = []
    for row in rows.select(matching_rows(rows, source, known.row_filter(present))):
        if isinstance(row[prompt], str) and row[prompt].strip():
            of_kind = str(row[kind]) if kind in present else None
            items.append(PromptItem(row[prompt], row[response] if response in present else None, source=of_kind))
    return items


def _lines(path: Path) -> list[tuple[str, Any]]:
    """The values of a JSONL file, each with the words that name its place."""
    if not path.is_file():
        raise InputError(f"prompt file {path} does not exist; give a JSONL file, or '{ORGANISM}'")
    if path.suffix.lower() == ".csv":
        raise InputError(
            f"prompt file {path} is a CSV; expected JSONL, an object a line with the fields set and prompt. In Python: "
            f'pandas.read_csv("{path}").to_json("{path.stem}.jsonl", orient="records", lines=True)'
        )
    values = []
    try:
        # Not `splitlines`: it would break a line at separators that JSON allows inside a text.
        texts = path.read_text(encoding="utf-8-sig").split("\n")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"prompt file {path} is no UTF-8 text ({error}); save it as UTF-8") from error
    for number, text in enumerate(texts, start=1):
        if text.strip():
            where = f"{path}, line {number}"
            try:
                values.append((where, encodable_value(parse_json(text))))
            except ValueError as error:
                raise InputError(f"{where}: expected one JSON value a line, with a prompt ({error})") from error
    if not values:
        raise InputError(f"prompt file {path} holds no prompt")
    return values


def _checked_item(line: Any, where: str) -> PromptItem:
    if not isinstance(line, dict) or not isinstance(line.get("prompt"), str) or not line["prompt"].strip():
        raise InputError(f"{where}: expected JSON with the fields set and prompt, the prompt a text that is not empty")
    name = line.get("set")
    if not isinstance(name, str) or name not in SETS:
        raise InputError(f"{where}: set {name!r}; expected one of {', '.join(SETS)}")
    item = _item(line, where)
    if name == "utility":
        _check_reference(item, where)
    return item


def _item(line: dict[str, Any], where: str) -> PromptItem:
    """Make a prompt of a line whose prompt was checked."""
    reference, refusals = line.get("reference"), line.get("refusals") or []
    if reference is not None and not isinstance(reference, str):
        raise InputError(f"{where}: reference {reference!r}; expected a text")
    if not isinstance(refusals, list) or not all(isinstance(refusal, str) for refusal in refusals):
        raise InputError(f"{where}: refusals {refusals!r}; expected a list of texts")
    return PromptItem(
        line["prompt"], reference, tuple(refusals), group=_group(line, where), source=_label(line, "source", where)
    )


def _check_reference(item: PromptItem, where: str) -> None:
    """Refuse a utility prompt that no answer could be compared with."""
    if not item.reference:
        raise InputError(f"{where}: a utility prompt needs a reference to compare with")
    if "####" in item.reference and final_answer(item.reference) is None:
        raise InputError(f"{where}: no number follows #### in the reference {item.reference!r}")


def _group(line: dict[str, Any], where: str) -> str | tuple[str, str] | None:
    value = line.get("group")
    if not isinstance(value, list):
        return _label(line, "group", where)
    if len(value) != 2 or not all(isinstance(key, str) for key in value):
        raise InputError(f"{where}: group {value!r}; expected a text, a list of two texts, or nothing")
    return value[0], value[1]


def _label(line: dict[str, Any], field: str, where: str) -> str | None:
    value = line.get(field)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{where}: {field} {value!r}; expected a text, or nothing")
    return value
