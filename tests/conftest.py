"""The order of the files: workers take them as they come, and none should be left alone with a long one at the end."""

import pytest

# By what each takes; what is not here takes less.
LONGEST_FIRST = (
    "test_exactness.py",
    "test_configs.py",
    "test_watchers.py",
    "test_dying_rank.py",
    "test_export.py",
    "test_run_folder.py",
    "test_readme.py",
    "test_subspace_projection.py",
    "test_validate.py",
    "test_report_page.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
