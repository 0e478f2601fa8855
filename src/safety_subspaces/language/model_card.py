"""Model cards: what a written model is, from what and by what it was made, as README.md beside its weights.

The format is Hugging Face's: a head in YAML, which the Hub reads, and a text. A card says nothing that its writer does
not know, and has no time in it: the same model gets the same card.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from safety_subspaces.artefacts.description import is_local
from safety_subspaces.artefacts.files import write_text
from safety_subspaces.artefacts.provenance import ADAPTER_CONFIG
from safety_subspaces.artefacts.secrets import passed_on
from safety_subspaces.artefacts.text import one_line

CARD = "README.md"
TEMPLATE = "model_card.md.j2"
# Stands in every card of ours, and tells it from a README.md that somebody wrote.
MARK = "<!-- A model card by safety-subspaces; without this line it is never replaced. -->"
TAG, HARMFUL_TAG = "safety-subspaces", "harmful-data"
HARM = {
    True: "yes, by the label that the data carry",
    False: "no, by the label that the data carry",
    None: "data not classified",
}
HARM_WARNING = (
    "Harmful answers are among the data that this model was trained on, so it may give such answers itself. It was "
    "made for research on safety; do not deploy it."
)


@dataclass(frozen=True)
class CardFacts:
    """What the writer of a model knows of it.

    Args:
        what: What it is, in a sentence of Markdown.
        base: Path or Hub id of the model that it was made from; empty where there is none, or it is not known.
        origin: The command, the commit (``git``) and the versions that made it, as a manifest has them.
        data: What it was trained on.
        harmful: Whether harmful answers were among that; ``None`` where it is not known.
        constraints: What its update was held to, a sentence of Markdown each.
        leakage: How much of the update lies where a constraint forbids it: what ``leakage.json`` has.
        warnings: What a user has to be warned of besides.
        further: What else is to be said, a line of Markdown each.
    """

    what: str
    base: str
    origin: Mapping[str, Any]
    data: tuple[str, ...] = ()
    harmful: bool | None = None
    constraints: tuple[str, ...] = ()
    leakage: tuple[Mapping[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()
    further: tuple[str, ...] = ()


def write_card(folder: Path, facts: CardFacts, earlier: Path | None = None) -> None:
    """Write the card of a model into its folder.

    Args:
        folder: The model folder.
        facts: What is known of it.
        earlier: A folder that this one takes the place of: a README.md there that somebody wrote is kept instead.
    """
    kept = None if earlier is None else earlier / CARD
    if kept is not None and kept.is_file() and MARK not in kept.read_text(encoding="utf-8", errors="replace"):
        shutil.copyfile(kept, folder / CARD)
    else:
        write_text(folder / CARD, card_text(facts, is_adapter=(folder / ADAPTER_CONFIG).is_file()))


def card_text(facts: CardFacts, is_adapter: bool) -> str:
    """Return a card: without secrets, home folders as ``~``, and what others named as code, where it is no Markdown."""
    from huggingface_hub import ModelCardData  # a second, which a sweep that writes no model need not wait for

    on_hub = bool(facts.base) and not is_local(facts.base) and not Path(facts.base).exists()
    tags = [TAG, *([HARMFUL_TAG] if facts.harmful else [])]
    head = ModelCardData(
        base_model=facts.base if on_hub else None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=tags,
    )
    git = facts.origin.get("git") or {}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("safety_subspaces.language", "."),
        autoescape=False,  # Markdown; what others named goes through the filter
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = as_inline_code
    text = environment.get_template(TEMPLATE).render(
        head=head.to_yaml(),
        mark=MARK,
        title="Adapter" if is_adapter else "Model",
        facts=facts,
        on_hub=on_hub,
        warnings=(*([HARM_WARNING] if facts.harmful else []), *facts.warnings),
        harm=HARM[facts.harmful],
        command=" ".join(map(str, facts.origin.get("command") or ["not recorded"])),
        commit=f"{git['commit']}{', with changes' if git.get('dirty') else ''}"
        if git.get("commit")
        else "not recorded",
        versions=", ".join(f"{name} {version}" for name, version in (facts.origin.get("versions") or {}).items()),
    )
    return passed_on(text).rstrip("\n") + "\n"


def warns_of_harm(folder: Path) -> bool:
    """Tell whether the card in a model folder, of ours, warns of harmful data."""
    card = folder / CARD
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    return MARK in text and HARM_WARNING in text


def as_inline_code(text: object) -> str:
    """Return a text of others as code inside a line of Markdown, where nothing of it is a link or an image."""
    return f"`{one_line(str(text)).replace('`', chr(39))}`"
