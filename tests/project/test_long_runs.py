"""A long run stays as light as it began: what `benchmarks/long_runs.py` measured, and the same in small."""

import gc
import json
from pathlib import Path
from statistics import median

import pytest
from support.tiny import ROOT, save_tiny_model

from safety_subspaces.analysis.activations.command import activations
from safety_subspaces.analysis.evaluate.command import evaluate

MEASURED = json.loads((ROOT / "docs" / "long_runs.json").read_text(encoding="utf-8"))
FLAT = 0.02  # what memory and handles may be higher in the last window than in the early one, as a share


def held() -> tuple[int, int]:
    """Open handles, and objects that the collector knows."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir())), len(gc.get_objects())


def middle(points: list[dict[str, float]], low: float, high: float, measure: str) -> float:
    ends = points[-1]["pass"]
    return median(point[measure] for point in points if low * ends <= point["pass"] <= high * ends)


@pytest.mark.parametrize(("kind", "size"), [("training", 3000), ("activations", 100_000), ("evaluation", 100_000)])
def test_the_measured_runs_are_as_long_as_is_said_and_flat(kind: str, size: int) -> None:
    run = MEASURED[kind]
    assert size in run.values()
    assert len(run["points"]) >= 95
    assert run["peak_memory_bytes"] >= max(point["memory_bytes"] for point in run["points"])
    for measure in ("memory_bytes", "handles"):
        change = middle(run["points"], 0.9, 1, measure) / middle(run["points"], 0.1, 0.2, measure) - 1
        assert change == pytest.approx(run["changes"][measure])
        assert change <= FLAT


def test_ten_times_the_prompts_leave_no_more_handles_and_objects(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")

    def run(count: int, name: str) -> tuple[int, int]:
        lines = [json.dumps({"set": "harmful", "prompt": f"mend the {number} kettle"}) for number in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        prompts = str(tmp_path / f"{name}.jsonl")
        before = held()
        evaluate({"tiny": model}, str(tmp_path / name), prompts, judge="phrases", max_new_tokens=1, batch_size=16)
        activations(
            {"tiny": model}, {"a": prompts, "b": "organism:utility"}, str(tmp_path / f"{name}_states"), limit=count,
            sample=16, controls=1, permutations=1, batch_size=16, cache="none",
        )  # fmt: skip
        return tuple(after - earlier for after, earlier in zip(held(), before, strict=True))  # type: ignore[return-value]

    run(20, "warm")  # what is imported and cached at the first use
    few, many = run(20, "few"), run(200, "many")
    assert few[0] == many[0] == 0
    assert many[1] - few[1] < 100  # of 200 prompts that are kept there would be thousands
