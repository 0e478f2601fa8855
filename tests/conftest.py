"""The order of the files: workers take them as they come, and none should be left alone with a long one at the end."""

import gc
import sys

import pytest

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
