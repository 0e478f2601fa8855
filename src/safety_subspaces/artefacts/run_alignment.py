"""How the aligned model of a study was made, as its manifest has it: what tells one organism from another."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safety_subspaces.artefacts.description import facts_about


@dataclass(frozen=True)
class Alignment:
    """The recipe of an alignment, whatever its seed.

    Args:
        objective: ``SFT``, ``DPO``, or what another module calls its own.
        data: Name of the corpus, or what other data call themselves.
        examples: Training examples; ``None`` where that is not said.
        learning_rate: Peak learning rate.
        details: The objective's own settings, such as ``beta 0.1``.
    """

    objective: str
    data: str
    examples: int | None
    learning_rate: float | None
    details: tuple[str, ...]

    def beside(self, other: "Alignment") -> str:
        """Say in a few words what is different from another alignment; empty where nothing is."""
        said = [self.objective] if self.objective != other.objective else []
        said += [f"data {self.data}"] if self.data != other.data else []
        if self.examples != other.examples:
            said.append("size unknown" if self.examples is None else f"{self.examples} examples")
        if self.learning_rate != other.learning_rate:
            said.append("rate unknown" if self.learning_rate is None else f"rate {self.learning_rate:g}")
        said += [detail for detail in self.details if detail not in other.details]
        lacking = [detail for detail in other.details if detail.rsplit(" ", 1)[0] not in " ".join(self.details)]
        return ", ".join([*said, *(f"no {detail.rsplit(' ', 1)[0]}" for detail in lacking)])

    def __str__(self) -> str:
        rate = "" if self.learning_rate is None else f"rate {self.learning_rate:g}"
        size = "" if self.examples is None else f"{self.examples} examples"
        return ", ".join(part for part in (self.objective, f"data {self.data}", size, rate, *self.details) if part)


def read_alignment_recipe(manifest: Mapping[str, Any]) -> Alignment | None:
    """Return the recipe of an aligned stage; ``None`` where the manifest does not say how it was trained."""
    objectives, data = facts_about("objective", manifest), facts_about("data", manifest)
    if not objectives:
        return None
    objective = objectives[0]
    return Alignment(
        objective=objective["name"],
        data=data[0]["name"] if data else "unknown",
        examples=data[0]["examples"] if data else None,
        learning_rate=objective["learning_rate"],
        details=tuple(f"{name} {value:g}" for name, value in objective["settings"].items()),
    )
