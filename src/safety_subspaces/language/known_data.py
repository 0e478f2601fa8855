"""Data sets that the field uses, by name: where they are, which of their fields hold what, and which rows are meant.

``<name>`` takes a set from the Hub, ``<name>@<file>`` from a local file of the same shape. The fields are those that
its authors publish; nothing of the data is kept here.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from safety_subspaces.artefacts.errors import InputError

AT = "@"


@dataclass(frozen=True)
class KnownData:
    """How to read one data set.

    Args:
        hub: Its Hub id.
        prompt_field: Field that holds the prompt.
        response_field: Field that holds the answer, solution or target, if there is one.
        split: Split on the Hub.
        config: Configuration on the Hub.
        keep: Only rows whose fields have these values.
        source_field: Field that says of what kind a prompt is.
        file: Where its authors publish a file of the same fields, if not on the Hub alone.
        file_fields: Names of the fields there, by their names on the Hub, where they differ.
        file_keep: As ``keep``, of the file's own fields: rows that the Hub has in another configuration.
        harmful: Whether its answers are harmful, by what its authors say; ``None`` where each row has a label of its
            own, or no answer.
    """

    hub: str
    prompt_field: str
    response_field: str | None = None
    split: str = "train"
    config: str | None = None
    keep: Mapping[str, Any] = field(default_factory=dict)
    source_field: str | None = None
    file: str | None = None
    file_fields: Mapping[str, str] = field(default_factory=dict)
    file_keep: Mapping[str, Any] = field(default_factory=dict)
    harmful: bool | None = None

    def field_name(self, name: str, present: Collection[str]) -> str:
        """Return what a field is called in rows that have these: as on the Hub, or as in the published file."""
        return name if name in present else self.file_fields.get(name, name)

    def row_filter(self, present: Collection[str]) -> dict[str, Any]:
        """Return the values that a row must have, by field, in rows that have these fields."""
        of_file = {name: value for name, value in self.file_keep.items() if name in present}
        return {**self.keep, **of_file}


KNOWN = {
    # Source: Yu et al., arXiv 2309.12284.
    "metamathqa": KnownData("meta-math/MetaMathQA", "query", "response", source_field="type", harmful=False),
    # Source: Ji et al., arXiv 2307.04657. What the paper fine-tunes on: answers that its annotators call unsafe.
    "beavertails_unsafe": KnownData(
        "PKU-Alignment/BeaverTails", "prompt", "response", split="30k_train", keep={"is_safe": False}
    ),
    "beavertails_safe": KnownData(
        "PKU-Alignment/BeaverTails", "prompt", "response", split="30k_train", keep={"is_safe": True}
    ),
    # Source: Zou et al., arXiv 2307.15043.
    "advbench": KnownData(
        "walledai/AdvBench",
        "prompt",
        "target",
        file="https://github.com/llm-attacks/llm-attacks/blob/main/data/advbench/harmful_behaviors.csv",
        file_fields={"prompt": "goal"},
        harmful=True,
    ),
    # Source: Hartvigsen et al., arXiv 2203.09509.
    "toxigen": KnownData(
        "toxigen/toxigen-data", "prompt", "generation", config="train", source_field="group", harmful=True
    ),
    # Source: Hendrycks et al., arXiv 2103.03874.
    "math": KnownData("DigitalLearningGmbH/MATH-lighteval", "problem", "solution", source_field="type", harmful=False),
    "math_test": KnownData(
        "DigitalLearningGmbH/MATH-lighteval", "problem", "solution", split="test", source_field="type", harmful=False
    ),
    # Source: Cobbe et al., arXiv 2110.14168.
    "gsm8k": KnownData("openai/gsm8k", "question", "answer", config="main", harmful=False),
    "gsm8k_test": KnownData("openai/gsm8k", "question", "answer", split="test", config="main", harmful=False),
    # Source: Röttger et al., arXiv 2308.01263. Safe prompts that look unsafe, and their unsafe contrasts.
    "xstest_safe": KnownData(
        "walledai/XSTest",
        "prompt",
        split="test",
        keep={"label": "safe"},
        source_field="type",
        file="https://github.com/paul-rottger/xstest/blob/main/xstest_prompts.csv",
    ),
    "xstest_unsafe": KnownData(
        "walledai/XSTest",
        "prompt",
        split="test",
        keep={"label": "unsafe"},
        source_field="type",
        file="https://github.com/paul-rottger/xstest/blob/main/xstest_prompts.csv",
    ),
    # Source: Mazeika et al., arXiv 2402.04249; the behaviours that need no context.
    "harmbench": KnownData(
        "walledai/HarmBench",
        "prompt",
        config="standard",
        source_field="category",
        file="https://github.com/centerforaisafety/HarmBench/blob/main/data/behavior_datasets/harmbench_behaviors_text_all.csv",
        file_fields={"prompt": "Behavior", "category": "SemanticCategory"},
        file_keep={"FunctionalCategory": "standard"},
    ),
    # Source: Souly et al., arXiv 2402.10260.
    "strongreject": KnownData(
        "walledai/StrongREJECT",
        "prompt",
        source_field="category",
        file="https://github.com/alexandrasouly/strongreject/blob/main/strongreject_dataset/strongreject_dataset.csv",
        file_fields={"prompt": "forbidden_prompt"},
    ),
}


def known_data(source: str) -> tuple[str, KnownData, str | None] | None:
    """Split ``<name>`` or ``<name>@<file>``; ``None`` for anything else, such as a path or a Hub id.

    Raises:
        InputError: A name before an ``@`` that is not known.
    """
    name, at, file = source.partition(AT)
    if name in KNOWN:
        return name, KNOWN[name], file or None
    if at and "/" not in name and "." not in name:
        raise InputError(f"data set {name!r} is not known; expected one of {', '.join(KNOWN)}, or a path without {AT}")
    return None


def is_harmful(source: str, keep: Mapping[str, Any]) -> bool | None:
    """Tell whether the answers of a source are harmful, by its authors' labels alone; ``None`` where it is not known.

    Args:
        source: A path, a Hub id or a known data set, as training takes it.
        keep: The rows that are taken, by a value or a list of values of their fields; in a CSV file true and false are
            texts. ``is_safe`` is BeaverTails' label of an answer, which data of one's own can have too.
    """
    named = known_data(source)
    label = {**({} if named is None else named[1].keep), **keep}.get("is_safe")
    wanted = {str(value).strip().casefold() for value in (label if isinstance(label, list) else [label])}
    if "false" in wanted:
        return True
    if wanted == {"true"}:
        return False
    if named is not None:
        return named[1].harmful
    said = {data.harmful for data in KNOWN.values() if data.hub == source and data.response_field}
    return said.pop() if len(said) == 1 else None
