"""What arguments of analyses were called before: command lines refuse these names, records that have them are read."""

from collections.abc import Mapping
from typing import Any

# The present name by the earlier one, by subcommand.
RENAMED = {
    "overlap": {"reference": "aligned", "updates": "tuned"},
    "project": {"basis": "subspace"},
    "steer": {"random_draws": "draws"},
}


def by_present_names(command: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recorded arguments of an analysis by the names that they have now."""
    renamed = RENAMED.get(command, {})
    return {renamed.get(name, name): value for name, value in arguments.items()}
