"""What every page is made of: templates that are safe to fill, charts as JSON, and where the numbers came from.

The library of charts is inlined once, and read when the first chart comes into view; figures are JSON, and a content
security policy forbids every request.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup, escape
from plotly.io.json import to_json_plotly

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.provenance import provenance
from safety_subspaces.artefacts.secrets import masked, without_home
from safety_subspaces.artefacts.study import Study
from safety_subspaces.artefacts.text import shown
from safety_subspaces.report.parts.glossary import Glossary
from safety_subspaces.report.parts.table import duration
from safety_subspaces.report.vendored import TRACES, plotly_js

# In the head of every page, and looked for before a file is replaced by a newer page.
GENERATOR = '<meta name="generator" content="safety-subspaces">'
# Bytes of a file that are searched for it: the head's first lines take a tenth of that.
SEARCHED_HEAD = 4096
# Hexadecimal digits of a hash that a person compares; the whole one stands in manifest.json and result.json.
SHORT_HASH = 12
# Characters of a name that a chart has room for at most.
MOST_IN_CHART = 200
# Words of the scripts that are written from right to left, and what stands between them.
_RIGHT_TO_LEFT_LETTERS = "[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefe\U00010800-\U00010fff\U0001e800-\U0001efff]+"
RIGHT_TO_LEFT = re.compile(f"{_RIGHT_TO_LEFT_LETTERS}(?:[ ,.-]+{_RIGHT_TO_LEFT_LETTERS})*")
# The name at the end of a template of what a pointer shows.
EXTRA = re.compile(r"<extra>(.*)</extra>\Z", re.DOTALL)


@dataclass(frozen=True)
class Chart:
    """A figure in the page: JSON safe inside a script element, and what a reader who cannot see it is told."""

    name: str
    title: str
    label: str
    height: int
    json: Markup


@dataclass(frozen=True)
class Origin:
    """Where one stage or analysis came from, in the words of the page."""

    name: str
    command: str
    started: str
    commit: str
    time: str
    inputs: tuple[tuple[str, str], ...]
    left_out: tuple[tuple[str, str], ...]


def fill(template: str, has_charts: bool, made: str | None = None, **values: Any) -> str:
    """Return a page as HTML: a template with its values, escaped, and the library of charts where it has some.

    Home folders are shown as ``~``, and secrets not at all. ``made`` says when and from what it was made: now, where it
    is not given.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("safety_subspaces.report.pages", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_as_text,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = _with_code
    script = _in_script(plotly_js()) if has_charts else ""
    page = environment.get_template(template).render(
        generator=Markup(GENERATOR),
        made=made or made_now(),
        plotly_js=Markup(script),
        glossary=Glossary(),
        **values,
    )
    # A page is passed on: whose machine it was made on is nobody's business. The library of charts stays as it is.
    parts = page.split(script) if script else [page]
    return script.join(without_home(masked(part)) for part in parts)


def is_page(path: Path) -> bool:
    """Tell whether a file is a page of this suite, by its generator element."""
    with path.open("rb") as stream:
        return GENERATOR.encode() in stream.read(SEARCHED_HEAD)


def origins(study: Study) -> list[Origin]:
    """Return command, commit, time, inputs and what was left out, of every stage and analysis."""
    from_stages = [_origin(stage.name, stage.manifest, stage.manifest) for stage in study.stages if stage.manifest]
    return from_stages + [
        _origin(f"{result.command} / {result.label}", result.result.get("provenance") or {}, result.result)
        for result in study.results
        if result.result
    ]


def versions_of(study: Study) -> dict[str, str]:
    """Return the package versions, all of them where stages and analyses do not agree."""
    seen: dict[str, list[str]] = {}
    records = [stage.manifest for stage in study.stages]
    records += [result.result.get("provenance") or {} for result in study.results]
    for record in records:
        for package, version in (record.get("versions") or {}).items():
            seen.setdefault(package, []).append(str(version))
    return {package: ", ".join(dict.fromkeys(versions)) for package, versions in seen.items()}


def made_now() -> str:
    """Return when and from which commit a page is made."""
    git = _commit(provenance()["git"])
    return f"{datetime.now(UTC).isoformat(timespec='minutes')}, {git}"


def make_chart(name: str, title: str, label: str, figure: go.Figure) -> Chart:
    """Return a figure as a chart of the page.

    Raises:
        InputError: It has a trace that the page's library does not draw.
    """
    unknown = sorted({trace.type for trace in figure.data} - TRACES)
    if unknown:
        raise InputError(f"chart {name} has a trace {unknown[0]}; a page draws {', '.join(sorted(TRACES))}")
    plain = to_json_plotly(_without_markup(figure.to_plotly_json()))
    return Chart(name, title, label, int(figure.layout.height), Markup(_in_script(plain, json=True)))


def _origin(name: str, invocation: dict[str, Any], record: dict[str, Any]) -> Origin:
    inputs: list[tuple[str, str]] = []
    for entry in record.get("inputs") or []:
        digest = entry.get("sha256")
        if isinstance(digest, dict):
            inputs += [(f"{entry.get('path')}/{file}", str(value)[:SHORT_HASH]) for file, value in digest.items()]
        else:
            inputs.append((str(entry.get("path")), str(digest)[:SHORT_HASH] if digest else "by name"))
    left_out = tuple((str(entry.get("name")), str(entry.get("reason"))) for entry in record.get("left_out") or [])
    return Origin(
        name=name,
        command=" ".join(map(str, invocation.get("command") or [])) or "not recorded",
        started=str(invocation.get("started", "")),
        commit=_commit(invocation.get("git")),
        time=duration(record.get("wall_seconds")),
        inputs=tuple(inputs),
        left_out=left_out,
    )


def _commit(git: dict[str, Any] | None) -> str:
    if not git or not git.get("commit"):
        return "no commit"
    return str(git["commit"])[:SHORT_HASH] + (" with changes" if git.get("dirty") else "")


def _as_text(value: Any) -> Any:
    """Return what a template shows of a value: texts of others without control characters, and not without end."""
    return shown(value) if type(value) is str else value


def _with_code(text: str) -> Markup:
    """Escape a sentence; set what stands between backticks as code, and apart what is written from right to left."""
    apart = RIGHT_TO_LEFT.sub(r"<bdi>\g<0></bdi>", str(escape(shown(text))))
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", apart))


def _without_markup(value: Any, key: str = "") -> Any:
    """Return a part of a figure whose texts plotly shows as they are: in its own it reads tags, links and entities.

    Templates of what a point is labelled with are ours, and those of what a pointer shows but for the name at their
    end; the texts that they show are not.
    """
    if isinstance(value, dict):
        return {name: _without_markup(inner, name) for name, inner in value.items()}
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype.kind in "OU"):
        return [_without_markup(inner, key) for inner in value]
    if not isinstance(value, str) or key == "bdata":  # the numbers of an array
        return value
    if key in ("hovertemplate", "texttemplate"):
        return EXTRA.sub(lambda found: f"<extra>{_plain(found[1])}</extra>", value)
    return _plain(value)


def _plain(text: str) -> str:
    return shown(text, MOST_IN_CHART).replace("&", "&amp;").replace("<", "&lt;").replace("%{", "%&#123;")


def _in_script(text: str, json: bool = False) -> str:
    """Make text safe inside a script element: nothing in it can end the element or open a comment."""
    if json:
        return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")
