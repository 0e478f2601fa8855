"""The section on overlaps of weight updates: each pair between its chance levels and two of one kind."""

from math import isnan
from typing import Any, Final

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from safety_subspaces.artefacts.palette import GREY, INK
from safety_subspaces.findings.comparisons import in_blocks, nearest_energy, overlap_by
from safety_subspaces.findings.finding import UNKNOWN, asked
from safety_subspaces.findings.overlaps import AS_NAMED, ONE_REPEATED, distances_over_seeds
from safety_subspaces.findings.topics.overlap import ABOVE, CHANCES, MIDPOINT
from safety_subspaces.report.parts.chart import SHARE, draw_key, draw_silent, error_bar, finished
from safety_subspaces.report.parts.colours import SYMBOLS
from safety_subspaces.report.parts.columns import Cell, compared, counts, numbers, short, table_of, text
from safety_subspaces.report.parts.page import Chart, make_chart
from safety_subspaces.report.parts.section import Choice, Part, Section
from safety_subspaces.report.parts.sentence import many
from safety_subspaces.report.parts.table import NOTHING, Table, number
from safety_subspaces.report.parts.tile import Tile, tile_of
from safety_subspaces.report.parts.verdict import finding_words

PLACE: Final = 70
CUTS: Final = {"layer": "layer", "type": "type of tensor"}
CELLS: Final = {"layer": "layers of the blocks", "type": "types of tensor"}
PART_WORDS: Final = {"blocks": "matrices in the blocks", "head": "output head", "embeddings": "embeddings"}
# Column of a chance level, dash of its line, and its name in the legend. A line spans its cell (a layer or a type).
LINES: Final = (
    ("chance", "dot", "chance"),
    ("matched_chance", "dashdot", "matched chance"),
    ("covariance_chance", "longdash", "chance of a shared covariance"),
)
# Share of the room between two cells that the marks of one cell fill.
FILLED: Final = 0.8
NEARER: Final = {
    "as the same kind": "nearer to two of one kind than to chance",
    "apart": "nearer to chance than to two of one kind",
    "undecided": "which of chance and two of one kind is nearer, these seeds cannot show",
}
MATCHED, COVARIANCE = (question for question, _ in CHANCES.values())
NULLS: Final = (
    "Matched chance keeps the sizes of the rows of both updates, and the chance of a shared covariance (where a "
    "reference was given) the second moments of the reference's rows: above the first and not the second, two updates "
    "may share no more than the directions that every fine-tune moves. The tensors of one model are no replicates: "
    "nothing here is an interval over them."
)


def overlap(part: Part) -> Section | None:
    """Return the section; where nothing was compared, the next step towards it."""
    overlaps, studies = part.studies.overlaps, part.studies.studies
    missing = [] if len(studies) > 1 else [("No overlap was measured.", studies[0].missing().get("overlap", ""))]
    if overlaps.empty:
        if not missing or not missing[0][1]:
            return None
        return Section("overlap", "Overlap of the weight updates", missing=missing, place=PLACE)
    headlines, sentences = _said(part)
    energies = sorted(float(energy) for energy in overlaps["energy"].dropna().unique())
    frame = distances_over_seeds(overlaps)
    tables = {
        "Blocks, embeddings and head": _parts_table(frame, part),
        "Every layer and type": _cells_table(frame, part),
        "Every pair and energy": _pairs_table(overlaps),
    }
    return Section(
        "overlap",
        "Overlap of the weight updates",
        clause=_clause(part),
        tiles=_tiles(part),
        headlines=headlines,
        sentences=sentences,
        charts=_charts(part, energies),
        tables=tables,
        terminal={"Overlap of updates": _terminal(tables["Blocks, embeddings and head"])},
        notes=[NULLS],
        choice=Choice("energy", "Energy share of the subspaces", tuple(energies), nearest_energy(overlaps)),
        place=PLACE,
    )


def _said(part: Part) -> tuple[list[str], list[str]]:
    """Return a headline for the first pair of each analysis, and a sentence for every pair and part."""
    findings = part.of_topic("overlap")
    above = asked(findings, MATCHED)
    if above.empty:
        text_of_none = "No overlap of two kinds of fine-tune was measured."
        return [text_of_none], [text_of_none]
    headlines: list[str] = []
    sentences: list[str] = []
    for _, row in above.iterrows():
        subject, details = row["subject"], row["details"]
        others = {
            question: asked(findings, question, subject=subject, measure=row["measure"])
            for question in (COVARIANCE, MIDPOINT)
        }
        sentences.append(_part_words(row, details, others))
        if details["cell"] == "blocks" and not details["repeated"] and not headlines:
            headlines.append(_headline(row, details, others))
    sentences += _places_words(findings)
    return headlines or sentences[:1], sentences


def _main(part: Part) -> pd.Series | None:
    """Return the finding on the first pair of two kinds, in the blocks."""
    above = asked(part.of_topic("overlap"), MATCHED)
    in_blocks = [row for _, row in above.iterrows() if row["details"]["cell"] == "blocks"]
    known = [row for row in in_blocks if not row["details"]["repeated"] and not isnan(row["details"]["overlap"])]
    return known[0] if known else None


def _clause(part: Part) -> str:
    row = _main(part)
    if row is None or str(row["verdict"]).startswith(UNKNOWN):
        return ""
    pair = f"{row['details']['first']} and {row['details']['second']}"
    return f"the overlap of the updates of {pair} is {_above_words(row, _covariance(part, row))}"


def _covariance(part: Part, row: pd.Series) -> pd.DataFrame:
    """Return what is found of an overlap beside the chance of a shared covariance, nothing where none was measured."""
    return asked(part.of_topic("overlap"), COVARIANCE, subject=row["subject"], measure=row["measure"])


def _above_words(row: pd.Series, covariance: pd.DataFrame) -> str:
    """Say which chance an overlap is above: the matched one, and not that of a shared covariance where one has it."""
    said = str(row["verdict"]).partition(":")[0].replace("chance", "matched chance")
    is_explained = row["verdict"] == ABOVE.above and not covariance["verdict"].isin([ABOVE.above]).all()
    return f"{said}, not shown to be above that of a shared covariance" if is_explained else said


def _tiles(part: Part) -> list[Tile]:
    row = _main(part)
    if row is None:
        return []
    details = row["details"]
    name = f"Overlap of {details['first']} and {details['second']}"
    beside = f"matched chance {number(details['matched_chance'], 2)}: {number(row['estimate'], 2, sign='+')}"
    counted = "" if row["unit"] == "seeds" else f"n = {many(int(row['n']), 'tensor')}"
    said = {**row, "verdict": _above_words(row, _covariance(part, row))}
    return [tile_of(name, number(details["overlap"], 2), said, beside, counted=counted)]


def _part_words(row: pd.Series, details: dict[str, Any], others: dict[str, pd.DataFrame]) -> str:
    where = PART_WORDS.get(details["cell"], details["cell"])
    if isnan(details["overlap"]):
        return (
            f"{details['pairs']}, {where}: no overlap in any of {details['undefined']} tensors: an update of zero has "
            "no direction."
        )
    number_of = f"{details['tensors']:.3g}"
    said = (
        f"{details['pairs']}{' (one repeated with another seed)' if details['repeated'] else ''}, {where} "
        f"({number_of} tensor{'' if number_of == '1' else 's'} a seed, energy {details['energy']:g}): overlap "
        f"{_level(details, 'overlap')}, chance {_level(details, 'chance')}, matched chance "
        f"{_level(details, 'matched_chance')}, two of one kind {_level(details, 'floor')}. Minus matched chance "
        f"{finding_words(row, 3)}."
    )
    for question, lead in ((COVARIANCE, "Minus the chance of a shared covariance"), (MIDPOINT, "Minus half-way")):
        for _, other in others[question].iterrows():
            said += f" {lead} {finding_words(other, 3)}."
            power = other["details"].get("power")
            said += f" One at the floor would be told with probability {power:.2f}." if power is not None else ""
    return said + (f" Undefined in {details['undefined']}, all seeds together." if details["undefined"] else "")


def _headline(row: pd.Series, details: dict[str, Any], others: dict[str, pd.DataFrame]) -> str:
    verdict = _above_words(row, others[COVARIANCE])
    beside = NEARER.get(str(others[MIDPOINT].iloc[0]["verdict"]), "")
    levels = f"matched chance {_level(details, 'matched_chance')}, two of one kind {_level(details, 'floor')}"
    return (
        f"In the blocks, the updates of {details['first']} and {details['second']} overlap "
        f"{_level(details, 'overlap')} ({levels}): {verdict}{f', {beside}' if beside else ''}."
    )


def _places_words(findings: pd.DataFrame) -> list[str]:
    """Count the layers and types with each verdict, corrected for their number together."""
    places = asked(findings, f"{MATCHED}, place by place")
    nearer = asked(findings, f"{MIDPOINT}, place by place")
    sentences = []
    named = [(row["details"]["analysis"], row["details"]["pairs"]) for _, row in places.iterrows()]
    for analysis, pairs in dict.fromkeys(named):
        said = []
        for by, what in CELLS.items():
            rows, besides = (_of_places(frame, analysis, pairs, by) for frame in (places, nearer))
            above = [row["details"]["cell"] for row in rows if row["verdict"] == "above chance"]
            apart = {verdict: sum(row["verdict"] == verdict for row in besides) for verdict in NEARER}
            sides = f"{apart['as the same kind']} nearer to the floor, {apart['apart']} nearer to chance"
            said.append(f"of {len(rows)} {what}, {_named(above)} above matched chance, {sides}")
        tests = int(places["tests"].max())
        sentences.append(f"{pairs} ({analysis}) place by place: {'; '.join(said)} ({tests} tests, corrected together).")
    return sentences


def _of_places(frame: pd.DataFrame, analysis: str, pairs: str, by: str) -> list[pd.Series]:
    wanted = {"analysis": analysis, "pairs": pairs, "by": by}
    return [row for _, row in frame.iterrows() if wanted.items() <= row["details"].items()]


def _named(cells: list[str]) -> str:
    return f"{len(cells)} ({', '.join(cells)})" if cells else "0"


def _level(details: dict[str, Any], measure: str) -> str:
    if isnan(details[measure]):
        return "not measured"
    half = details[f"{measure}_reach"]
    return f"{details[measure]:.2f}" + ("" if isnan(half) else f" ± {half:.2f}")


def _charts(part: Part, energies: list[float]) -> list[tuple[Chart, str]]:
    overlaps = part.studies.overlaps
    charts = []
    for analysis in dict.fromkeys(overlaps["analysis"].astype(str)):
        rows = overlaps[overlaps["analysis"] == analysis]
        frames = {energy: _drawn(rows, energy) for energy in energies if (rows["energy"] == energy).any()}
        if not frames or not any(len(frame) for frame in frames.values()):
            continue
        title = f"Overlap of updates by layer and by type of tensor ({analysis})"
        figure = overlap_figure(frames, nearest_energy(rows))
        charts.append((make_chart(f"overlap-{part.anchor}-{analysis}", analysis, title, figure), _caption(part, rows)))
    return charts


def _drawn(overlaps: pd.DataFrame, energy: float) -> pd.DataFrame:
    frame = distances_over_seeds(overlaps, energy)
    return frame[(frame["pairing"] == AS_NAMED) & frame["by"].isin(list(CUTS))]


def overlap_figure(frames: dict[float, pd.DataFrame], chosen: float) -> go.Figure:
    """Draw the cross-kind pairs by layer and by type at each energy share, of which one is seen.

    Filled symbols are pairs, the same ones open and on dashes their floors, lines in grey the chance levels; bars
    are half the t interval over seeds, of several. Every trace carries its share in ``meta``.
    """
    figure = make_subplots(rows=len(CUTS), cols=1, vertical_spacing=0.16)
    for energy, frame in frames.items():
        shown = {"visible": energy == chosen, "meta": {"energy": energy}}
        pairs = list(dict.fromkeys(zip(frame["first"], frame["second"], strict=True)))
        for panel, (by, title) in enumerate(CUTS.items(), start=1):
            cells = list(dict.fromkeys(frame[frame["by"] == by]["cell"]))
            for index, (first, second) in enumerate(pairs):
                of_pair = (frame["by"] == by) & (frame["first"] == first) & (frame["second"] == second)
                rows = frame[of_pair].set_index("cell").reindex(cells)
                width = FILLED / len(pairs)
                centres = [place - FILLED / 2 + width * (index + 0.5) for place in range(len(cells))]
                symbol = SYMBOLS[index % len(SYMBOLS)]
                _draw(figure, panel, rows, centres, width, f"{first} - {second}", symbol, shown)
            ticks = {"tickvals": list(range(len(cells))), "ticktext": cells, "range": [-0.6, len(cells) - 0.4]}
            figure.update_xaxes(title=title, **ticks, row=panel, col=1)
    known = [level for level in LINES if any(frame[level[0]].notna().any() for frame in frames.values())]
    for _, dash, title in known:
        draw_key(figure, title, line={"color": GREY, "dash": dash, "width": 1.6})
    figure.update_yaxes(title="overlap of weights", range=SHARE)
    return finished(figure, height=620)


def _draw(
    figure: go.Figure,
    panel: int,
    rows: pd.DataFrame,
    centres: list[float],
    width: float,
    name: str,
    symbol: str,
    shown: dict[str, Any],
) -> None:
    """Draw one pair in one panel: lines across each cell at its levels, then floor and pair with their intervals."""
    # One line across each cell, with a gap between cells.
    ends = [end for centre in centres for end in (centre - width / 2, centre + width / 2, None)]
    cells = [cell for cell in rows.index for _ in range(3)]
    for level, dash, title in LINES:
        if rows[level].notna().any():
            line = {"color": GREY, "dash": dash, "width": 1.6}
            known = {"name": f"{name}: {title}", "text": cells, **shown}
            draw_silent(figure, panel, ends, _twice(rows[level]), line, **known)
    if rows["floor"].notna().any():
        line = {"color": INK, "dash": "dash", "width": 1.4}
        draw_silent(figure, panel, ends, _twice(rows["floor"]), line, "floor", **shown)
        diamonds = _points(rows, "floor", centres, width * 0.12, f"{name}: two of one kind", f"{symbol}-open")
        figure.add_scatter(**diamonds, **shown, showlegend=panel == 1, row=panel, col=1)
    circles = _points(rows, "overlap", centres, -width * 0.12, name, symbol)
    figure.add_scatter(**circles, **shown, showlegend=panel == 1, row=panel, col=1)


def _points(
    rows: pd.DataFrame, measure: str, centres: list[float], shift: float, name: str, symbol: str
) -> dict[str, Any]:
    seen = [f"{measure}_reach", "chance", "matched_chance", f"{measure}_seeds", "tensors"]
    return {
        "x": [centre + shift for centre in centres],
        "y": rows[measure],
        "error_y": error_bar(rows[f"{measure}_reach"], INK),
        "mode": "markers",
        "name": name,
        "legendgroup": name,
        "marker": {"color": INK, "symbol": symbol, "size": 9, "line": {"width": 2, "color": INK}},
        "text": list(rows.index),
        "customdata": rows[seen].astype(float).to_numpy(),
        "hovertemplate": "%{text}: %{y:.3f} ± %{customdata[0]:.3f}<br>chance %{customdata[1]:.3f}, "
        "matched %{customdata[2]:.3f}<br>seeds %{customdata[3]:.0f}, tensors %{customdata[4]:.3g}"
        f"<extra>{name}</extra>",
    }


def _twice(levels: pd.Series) -> list[float | None]:
    """Return each level at both ends of its line."""
    return [value for level in levels for value in (level, level, None)]


def _caption(part: Part, rows: pd.DataFrame) -> str:
    """Return what a reader of the chart must know: which spaces, seeds and tensors, and what each mark is."""
    kinds = rows[rows["floor"].astype(bool)][["first", "second"]].drop_duplicates().itertuples(index=False, name=None)
    floors = ", ".join(f"{first} and {second}" for first, second in kinds)
    half = "one seed, so without bars" if part.is_single else "bars: ± half the 95 % t interval over seeds"
    return (
        "Overlap of the left singular spaces that hold the chosen share of each update's energy. Filled symbols: the "
        f"mean over {many(len(part.studies.seeds), 'seed')} of the mean over a seed's tensors, {half}. Open ones on "
        f"dashes: two of one kind, the floor ({floors or 'not measured'}). By layer: the matrices of a block. By type: "
        "every tensor, norms as one column."
    )


# To the third decimal: an overlap just above chance differs there.
COLUMNS: Final[dict[str, Cell]] = {
    "overlap": numbers("overlap", 3, "overlap_reach"),
    "chance": numbers("chance", 3),
    "matched": numbers("matched_chance", 3, "matched_chance_reach"),
    "covariance": numbers("covariance_chance", 3, "covariance_chance_reach"),
    "floor": numbers("floor", 3, "floor_reach"),
    "minus matched": numbers("from_matched", 3, "from_matched_reach", "+"),
    "minus floor": numbers("from_floor", 3, "from_floor_reach", "+"),
    "minus half-way": numbers("from_midpoint", 3, "from_midpoint_reach", "+"),
    "tensors": lambda row: number(row["tensors"], 0 if float(row["tensors"]).is_integer() else 1),
    "undefined": counts("undefined"),
    "seeds": counts("overlap_seeds"),
}


def _note(part: Part, frame: pd.DataFrame) -> str:
    energy = f"Energy {frame['energy'].iloc[0]:g}. " if len(frame) else ""
    half = "one seed, so without an interval" if part.is_single else "± half the 95 % t interval over seeds"
    return (
        f"{energy}Means over seeds of the mean over a seed's tensors, {half}. Differences are taken tensor by tensor "
        "within a seed. Matched, covariance: chance where two updates share the sizes, or the covariance, of their "
        "rows. Floor: two of one kind, the mean of both kinds. Half-way: between floor and matched chance. Tensors: of "
        "a seed. Undefined: tensors of all seeds without an overlap."
    )


def _parts_table(frame: pd.DataFrame, part: Part) -> Table:
    """Each cross-kind pair in blocks, output head and embeddings, as named and with one of the two repeated."""
    rows = frame[frame["by"] == "part"]
    rows = rows.assign(repeated=rows["pairing"].map({AS_NAMED: "", ONE_REPEATED: "yes"}))
    note = (
        f"{_note(part, rows)} One repeated: the mean of the pairs in which one of the two is replaced by its repeat of "
        "another seed, as the floors have it; the pair itself shares its seed."
    )
    return table_of(rows, {"pair": compared, "one repeated": text("repeated"), "part": _cell, **COLUMNS}, 3, note)


def _cells_table(frame: pd.DataFrame, part: Part) -> Table:
    """Each cross-kind pair by layer of the blocks and by type of tensor."""
    rows = frame[(frame["by"] != "part") & (frame["pairing"] == AS_NAMED)]
    return table_of(rows, {"pair": compared, "place": _cell, **COLUMNS}, 2, _note(part, rows))


def _pairs_table(overlaps: pd.DataFrame) -> Table:
    """Every pair in the blocks' matrices, floors too, at each energy beside its chance levels."""
    columns: dict[str, Cell] = {
        "pair": compared,
        "floor": lambda row: "same kind" if row["floor"] else "",
        "energy": short("energy"),
        "overlap": numbers("overlap", 3),
        "chance": numbers("chance", 3),
        "matched": numbers("matched_chance", 3),
        "share p < .05": numbers("share_significant", 2),
        "n": counts("n"),
        "undefined": counts("n_undefined"),
    }
    note = (
        "Means over the matrices in the blocks of all seeds (n). Share p < .05: of tensors above their matched "
        "control, each by itself."
    )
    return table_of(overlap_by(in_blocks(overlaps)), columns, 2, note)


def _cell(row: pd.Series) -> str:
    return f"layer {row['cell']}" if row["by"] == "layer" else str(row["cell"])


def _terminal(table: Table) -> Table:
    """Keep the pairs as they are named, where they have an overlap, and what they are judged by."""
    repeated, measured = table.columns.index("one repeated"), table.columns.index("overlap")
    rows = tuple(row for row in table.rows if not row[repeated] and row[measured] != NOTHING)
    kept = Table(table.columns, rows, table.text_columns, "")
    return kept.without("one repeated", "chance", "covariance", "minus floor", "tensors", "undefined")
