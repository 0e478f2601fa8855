"""The order of the files, so that no worker is left alone with a long one at the end, and what each begins with."""

import gc
import sys
import threading
from collections.abc import Iterator

import pytest

from safety_subspaces.artefacts import trust

# By what each takes; what is not here takes less.
LONGEST_FIRST = (
    "test_exactness.py",
    "test_paper_configs.py",
    "test_configs.py",
    "test_readme.py",
    "test_faults.py",
    "test_run_folder.py",
    "test_watchers.py",
    "test_report_page.py",
    "test_dying_rank.py",
    "test_export.py",
    "test_across_seeds.py",
    "test_alignments.py",
    "test_project_analysis.py",
    "test_tensor_work.py",
    "test_constrained.py",
    "test_subspace_projection.py",
    "test_reading.py",
    "test_validate.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Keep xdist from sorting the files anew, by how many tests they hold: the longest hold few."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(scope="module", autouse=True)
def as_a_process_begins() -> Iterator[None]:
    """Give the next file the process as this one got it: a command that runs in it restricts what may be imported."""
    with pytest.MonkeyPatch.context() as patch:
        for place, name in ((trust, "_importable"), (sys, "argv"), (sys, "excepthook"), (threading, "excepthook")):
            patch.setattr(place, name, getattr(place, name))
        patch.setattr(sys, "path", list(sys.path))
        yield


def pytest_collection_finish() -> None:
    """Have the collector pass over what was imported: Trainers and ZeRO often collect, a third of a second each."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """End the process that the tests' commands are forked from, where one was started."""
    if (
        "support.tiny" in sys.modules
    ):  # its imports take seconds, which the process that hands out the tests need not spend
        sys.modules["support.tiny"].end_zygote()
