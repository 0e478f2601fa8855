"""The lock of tested versions: it satisfies the lists, holds on every machine, and its licences are listed."""

import re
import runpy
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from safety_subspaces.artefacts.extras import EXTRAS

ROOT = Path(__file__).parents[2]
# What torch needs where it is built for GPUs.
FOR_GPUS = ("nvidia-", "cuda-", "triton")
SCRIPT = runpy.run_path(str(ROOT / "docs" / "list_packages.py"))
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
LOCKED = dict(re.findall(r"^([a-z0-9-]+)==(\S+)$", LOCK, flags=re.MULTILINE))


def test_every_package_that_the_suite_asks_for_is_locked_at_a_version_that_it_takes() -> None:
    wanted = SCRIPT["wanted"]()
    assert {"torch", "pytest", "lm-eval"} <= {requirement.name for requirement in wanted}
    for requirement in wanted:
        assert requirement.specifier.contains(LOCKED[canonicalize_name(requirement.name)]), requirement


def test_an_extra_asks_for_what_the_list_asks_for_and_brings_what_messages_say() -> None:
    listed = {line.strip() for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert {*extras["deepspeed"], *extras["judge"], *extras["report"]} <= listed
    brought = {package: extra for package, extra in EXTRAS.items() if package not in ("lm_eval", "accelerate")}
    assert all(any(line.startswith(package) for line in extras[extra]) for package, extra in brought.items())


def test_the_lowest_version_of_each_listed_package_is_tried() -> None:
    oldest = {Requirement(line).name: Requirement(line).specifier for line in SCRIPT["oldest"]()}
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            (pin,) = oldest[Requirement(line).name]
            assert Requirement(line).specifier.contains(pin.version)


def test_what_is_locked_needs_nothing_that_is_not_and_no_other_version() -> None:
    packages = SCRIPT["installed"](SCRIPT["wanted"]())
    assert {name for name in packages if not name.startswith(FOR_GPUS)} == set(LOCKED)
    for name in LOCKED:
        for needed in SCRIPT["needs_of"](packages[name], ""):
            if not needed.name.startswith(FOR_GPUS):
                assert needed.specifier.contains(LOCKED[canonicalize_name(needed.name)], prereleases=True), needed


def test_the_lock_holds_on_machines_with_and_without_a_gpu() -> None:
    assert [name for name, version in LOCKED.items() if Version(version).local] == []
    assert len(LOCKED) == len([line for line in LOCK.splitlines() if not line.startswith("#")])
    assert "safety-subspaces" not in LOCKED


def test_the_licence_of_every_locked_package_is_listed() -> None:
    page = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([a-z0-9-]+) \| (\d\S*) \| (.+) \|$", page, flags=re.MULTILINE)
    assert {name: version for name, version, _ in rows} == LOCKED
    assert [name for name, _, licence in rows if licence == "not stated"] == []
