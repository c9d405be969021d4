"""The page of guarantees names tests; each of them is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")

NAMED = sorted(set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE)))


def test_tests_are_named() -> None:
    assert len(NAMED) > 20


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_test_that_is_named_exists(file: str, name: str) -> None:
    (path,) = (ROOT / "tests").rglob(file)
    assert re.search(rf"^ *def {name}\(", path.read_text(encoding="utf-8"), re.MULTILINE)


def test_no_test_is_named_in_another_form() -> None:
    """Or the check above would pass it by."""
    assert len(re.findall(r"\btest_\w+\.py::", PAGE)) == len(
        re.findall(r"`test_\w+\.py::test_\w+`", PAGE)
    )


def test_every_failpoint_is_told() -> None:
    """Whoever wants to try it finds all the places."""
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "shared").rglob("*.py")]
    places = set(re.findall(r'\bfailpoint\("([^"]+)"\)', "".join(sources)))
    assert places
    assert {place for place in places if f"`{place}`" not in PAGE} == set()
