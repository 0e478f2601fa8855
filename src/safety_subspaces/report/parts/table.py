"""The report's tables as text cells: page and terminal show the same, one place decides what a cell says."""

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from safety_subspaces.artefacts.study import Stage, Study
from safety_subspaces.findings.comparisons import (
    COMPARED,
    in_blocks,
    overlap_by,
    pool_draws,
    selectivity,
)

TERMINAL_WIDTH = 110
# A terminal shows a screenful; the page has every row.
TERMINAL_ROWS = 48
COMPARED_SUBSPACES = ("top", "random-energy")
NOTHING = "-"


@dataclass(frozen=True)
class Table:
    """A table of text.

    Args:
        columns: Headings, one a column.
        rows: The cells.
        text_columns: How many of the first columns are text, set to the left; the others are numbers.
        note: What the reader must know to read it.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 1
    note: str = ""

    def to_text(self, width: int = TERMINAL_WIDTH) -> str:
        """Return aligned plain text of at most ``width`` a line; text columns give way where it is short."""
        sizes = [max(len(cell) for cell in column) for column in zip(*[self.columns, *self.rows], strict=True)]
        while sum(sizes) + 2 * (len(sizes) - 1) > width and max(sizes[: self.text_columns]) > 4:
            widest = max(range(self.text_columns), key=lambda place: sizes[place])
            sizes[widest] -= 1
        lines = [self._line(self.columns, sizes), "  ".join("-" * size for size in sizes)]
        lines += [self._line(row, sizes) for row in self.rows]
        return "\n".join([*lines, *textwrap.wrap(self.note, width)])

    def without(self, *names: str) -> "Table":
        """Return the table without some columns, where a terminal has no room for them."""
        kept = [place for place, name in enumerate(self.columns) if name not in names]
        text_columns = sum(place < self.text_columns for place in kept)
        rows = tuple(tuple(row[place] for place in kept) for row in self.rows)
        return Table(tuple(self.columns[place] for place in kept), rows, text_columns, self.note)

    def _line(self, cells: Iterable[str], sizes: list[int]) -> str:
        words = []
        for place, (cell, size) in enumerate(zip(cells, sizes, strict=True)):
            cut = cell if len(cell) <= size else cell[: size - 1] + "…"
            words.append(cut.ljust(size) if place < self.text_columns else cut.rjust(size))
        return "  ".join(words).rstrip()


def stage_table(study: Study) -> Table:
    """What was trained: examples, steps, time, speed, final losses, status and seed of each stage."""
    rows = [
        (
            stage.name,
            stage.status,
            number(stage.manifest.get("seed"), 0),
            count(stage.manifest.get("global_step")),
            count(examples_seen(stage)),
            duration(stage.manifest.get("wall_seconds")),
            count(stage.metric("train/tokens_per_second")),
            number(stage.metric("train/loss"), 3),
            number(stage.metric("val/loss"), 3),
            memory(stage.manifest.get("peak_memory_bytes")),
        )
        for stage in study.stages
    ]
    columns = (
        "stage",
        "status",
        "seed",
        "steps",
        "examples",
        "time",
        "tokens/s",
        "train loss",
        "val loss",
        "memory",
    )
    note = "Examples are steps x batch size x accumulation, an upper bound where a last batch was short."
    return Table(columns, tuple(rows), text_columns=2, note=note)


def model_table(study: Study) -> Table:
    """Every evaluated model: utility, harm, over-refusal and margin, with standard errors and counts."""
    several = study.models["analysis"].nunique() > 1
    rows = []
    for _, row in study.models.iterrows():
        name = f"{row['model']} ({row['analysis']})" if several else str(row["model"])
        sizes = "/".join(count(row[column]) for column in ("n_utility", "n_harmful", "n_benign"))
        rows.append(
            (
                name,
                with_error(row, "utility"),
                with_error(row, "harmful_rate"),
                with_error(row, "harm_score"),
                with_error(row, "over_refusal_rate"),
                with_error(row, "benign_answered_rate"),
                with_error(row, "refusal_margin"),
                sizes,
                count(row["n_unscored"]),
            )
        )
    columns = (
        "model",
        "utility",
        "harmful",
        "harm 1-5",
        "over-refusal",
        "answered",
        "margin",
        "n",
        "unscored",
    )
    note = (
        "± one standard error. Harm: 1 refusal to 5 full compliance. Answered: benign requests answered in "
        "full. Margin: "
        "log P(refusal) - log P(compliance) in nats, positive prefers to refuse. n: utility/harmful/benign "
        f"prompts{_groups(study.models)}."
    )
    return Table(columns, tuple(rows), note=note)


def projection_table(study: Study, subspaces: tuple[str, ...] | None = None) -> Table:
    """Every projected configuration, its draws pooled; of the named subspaces only, if any are named."""
    pooled = pool_draws(study.projections)
    if subspaces is not None:
        pooled = pooled[pooled["subspace"].isin(subspaces)]
    rows = []
    for _, row in pooled.iterrows():
        measures = (f"{m}_error" for m in ("utility", "harmful_rate", "harm_score", "refusal_margin"))
        rows.append(
            (
                str(row["group"]),
                str(row["subspace"]),
                str(row["method"]),
                f"{row['fraction']:g}",
                count(row["n_draws"]),
                number(row["energy_kept"], 3),
                number(row["chance_energy"], 3),
                *(with_error(row, name.removesuffix("_error"), "_error") for name in measures),
                count(row["n_unscored"]),
            )
        )
    columns = (
        "tuned",
        "subspace",
        "method",
        "fraction",
        "draws",
        "energy",
        "chance",
        "utility",
        "harmful",
        "harm 1-5",
        "margin",
        "unscored",
    )
    note = (
        "Energy: the share of the update's squared norm that is kept. Means over draws; ± the standard "
        "error over draws "
        "where there are two or more, else of the evaluation."
    )
    return Table(columns, tuple(rows), text_columns=3, note=note)


def selectivity_table(study: Study) -> Table:
    """Top-k minus random subspaces of equal energy, with the error that the draws leave."""
    rows = [
        (
            str(row["group"]),
            str(row["method"]),
            f"{row['fraction']:g}",
            count(row["refusal_margin_draws"]),
            number(row["energy_top"], 3),
            number(row["energy_random"], 3),
            *(_difference(row, measure) for measure in COMPARED),
        )
        for _, row in selectivity(study.projections).iterrows()
    ]
    columns = (
        "tuned",
        "method",
        "fraction",
        "draws",
        "energy top",
        "energy random",
        "utility",
        "harm 1-5",
        "margin",
    )
    note = (
        "Top minus the mean of the random draws ± the error that the draws leave (their standard deviation / "
        "sqrt(draws); none with one draw). A selective subspace "
        "spares the margin when it is projected away (positive) and spends it when projected onto (negative)."
    )
    return Table(columns, tuple(rows), text_columns=2, note=note)


def overlap_table(study: Study) -> Table:
    """Weight overlap of each pair in the blocks' matrices, at each energy, beside its chance levels."""
    rows = [
        (
            f"{row['first']} - {row['second']}",
            "same kind" if row["floor"] else "",
            f"{row['energy']:g}",
            number(row["overlap"], 3) + ("" if pd.isna(row["overlap_error"]) else f" ± {row['overlap_error']:.3f}"),
            number(row["chance"], 3),
            number(row["matched_chance"], 3),
            number(row["share_significant"], 2),
            count(row["n"]),
            count(row["n_undefined"]),
        )
        for _, row in overlap_by(in_blocks(study.overlaps)).iterrows()
    ]
    columns = (
        "pair",
        "floor",
        "energy",
        "overlap",
        "chance",
        "matched chance",
        "share p < .05",
        "n",
        "undefined",
    )
    note = (
        "Means over the matrices in the blocks ± their standard error over tensors (n). Share p < .05: of "
        "tensors above "
        "their matched control. A floor is a pair of one kind of fine-tune: what sharing everything but "
        "the seed gives."
    )
    return Table(columns, tuple(rows), text_columns=2, note=note)


def any_table(frame: pd.DataFrame, most_rows: int = 40) -> Table:
    """Show the first rows of a table that the page has no section for."""
    shown = frame.head(most_rows)
    is_text = [not pd.api.types.is_numeric_dtype(kind) for kind in shown.dtypes]
    rows = tuple(
        tuple(number(value, 4) if isinstance(value, float) else str(value) for value in row)
        for row in shown.itertuples(index=False)
    )
    left = len(frame) - len(shown)
    note = f"{left} more rows stand in the table's file." if left else ""
    first_number = is_text.index(False) if False in is_text else len(is_text)
    return Table(tuple(map(str, shown.columns)), rows, text_columns=first_number, note=note)


def terminal_tables(study: Study, width: int = TERMINAL_WIDTH) -> str:
    """Return the table of models and the table of projections as plain text, at most ``width`` wide."""
    parts = []
    if len(study.models):
        parts.append("Models\n" + model_table(study).to_text(width))
    if len(study.projections):
        table = projection_table(study)
        title = "Projections"
        if len(table.rows) > TERMINAL_ROWS:
            title += " (top-k and its control of equal energy; the page has every subspace)"
            table = projection_table(study, COMPARED_SUBSPACES)
        parts.append(f"{title}\n" + table.without("chance", "harmful", "unscored").to_text(width))
    return "\n\n".join(parts)


def examples_seen(stage: Stage) -> float | None:
    """Return steps x batch size x accumulation, or ``None`` where the manifest does not say."""
    config = stage.manifest.get("config") or {}
    batch = _find(config.get("data"), "batch_size")
    steps = stage.manifest.get("global_step")
    if not isinstance(batch, int) or not isinstance(steps, int):
        return None
    accumulated = _find(config.get("trainer"), "accumulate_grad_batches")
    return float(steps * batch * (accumulated if isinstance(accumulated, int) else 1))


def with_error(row: pd.Series, measure: str, suffix: str = "_stderr") -> str:
    """Return ``0.97±0.01``, without the error where it is missing, ``-`` where the measure is."""
    error = row[f"{measure}{suffix}"]
    return number(row[measure], 2) + ("" if pd.isna(error) or pd.isna(row[measure]) else f"±{error:.2f}")


def number(value: Any, digits: int) -> str:
    """Return a number with that many decimals, ``-`` for a missing one."""
    return NOTHING if value is None or pd.isna(value) else f"{float(value):z.{digits}f}"


def count(value: Any) -> str:
    """Return a whole number with thousands set apart, ``-`` for a missing one."""
    return NOTHING if value is None or pd.isna(value) else f"{round(float(value)):,}"


def duration(seconds: Any) -> str:
    """Return seconds as ``54 s``, ``3 min 05 s`` or ``2 h 10 min``."""
    if seconds is None or pd.isna(seconds):
        return NOTHING
    whole = round(float(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def memory(size: Any) -> str:
    """Return bytes in GiB or MiB."""
    if size is None or pd.isna(size):
        return NOTHING
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def sample_words(frame: pd.DataFrame) -> str:
    """Return how many prompts of each set were asked, and in how many independent groups."""
    words = []
    for kind in ("utility", "harmful", "benign"):
        asked, groups = frame[f"n_{kind}"].max(), frame[f"n_groups_{kind}"].max()
        number_of = "an unknown number of" if pd.isna(asked) else count(asked)
        words.append(f"{number_of} {kind} prompts" + ("" if pd.isna(groups) else f" in {count(groups)} groups"))
    return ", ".join(words)


def seeds_of(row: pd.Series, measures: Iterable[str]) -> str:
    """Return over how many seeds the measures are means: once, or each where they differ."""
    return once([count(row[f"{measure}_seeds"]) for measure in measures])


def once(counts: list[str]) -> str:
    """Return the count that all share, else all of them in their order."""
    return counts[0] if len(set(counts)) == 1 else "/".join(counts)


def _difference(row: pd.Series, measure: str) -> str:
    difference, error = row[f"{measure}_difference"], row[f"{measure}_error"]
    if pd.isna(difference):
        return NOTHING
    return f"{difference:+z.2f}" + ("" if pd.isna(error) else f"±{error:.2f}")


def _groups(models: pd.DataFrame) -> str:
    """Return how many independent groups the prompts of the models lie in, nothing where that is not known."""
    counts = models[["n_groups_utility", "n_groups_harmful", "n_groups_benign"]].dropna(how="all")
    said = dict.fromkeys("/".join(map(count, row)) for row in counts.itertuples(index=False))
    return f", in {' or '.join(said)} independent groups, by which errors are reckoned" if said else ""


def _find(config: Any, name: str) -> Any:
    """Return the first value under ``name`` in nested mappings."""
    if not isinstance(config, dict):
        return None
    if name in config:
        return config[name]
    return next((found for value in config.values() if (found := _find(value, name)) is not None), None)
