"""The pinned versions of a release, with hashes, are those of development and the tests."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
RENEW = "run make requirements"


def pins(name: str) -> dict[str, str]:
    """Return the versions that a file pins, by package name."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return {
        canonicalize_name(package): version
        for package, version in re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE)
    }


def needed() -> set[str]:
    """Return every package that a release needs, and those that build it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found: set[str] = set()
    waiting = [Requirement("settle"), *map(Requirement, project["build-system"]["requires"])]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        found.add(name)
        if name == "setuptools":
            continue  # it has no requirements, and is not installed for development
        for each in map(Requirement, requires(wanted.name) or ()):
            extras = wanted.extras or {""}
            if canonicalize_name(each.name) not in found and (
                each.marker is None or any(each.marker.evaluate({"extra": it}) for it in extras)
            ):
                waiting.append(each)
    return found - {"settle"}


def test_both_files_pin_the_same_versions() -> None:
    constraints, release = pins("constraints.txt"), pins("requirements.txt")

    different = {
        name: version for name, version in release.items() if constraints.get(name) != version
    }

    assert not different, RENEW


def test_a_release_installs_all_that_it_needs_and_no_more() -> None:
    assert set(pins("requirements.txt")) == needed(), RENEW


def test_every_package_of_a_release_has_hashes() -> None:
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8").replace("\\\n", "")
    lines = [line for line in text.splitlines() if not line.startswith("#")]

    assert len(lines) == len(pins("requirements.txt"))
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}\b", line) for line in lines), RENEW
