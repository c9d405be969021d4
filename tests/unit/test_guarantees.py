"""Every promise names the tests that show it, and these tests exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROMISES = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "reference" / "guarantee-tests.md").read_text(encoding="utf-8")

NAMED = sorted(set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE)))


def first_cells(text: str, *headers: str) -> list[str]:
    """Return the first cell of each row of the tables that have one of these headers."""
    found, inside = [], False
    for line in text.splitlines():
        if line.startswith(headers):
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not line.startswith("|---"):
            found.append(line.split("|")[1].strip())
    return found


def test_tests_are_named() -> None:
    assert len(NAMED) > 20


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_test_that_is_named_exists(file: str, name: str) -> None:
    (path,) = (ROOT / "tests").rglob(file)
    assert re.search(rf"^ *def {name}\(", path.read_text(encoding="utf-8"), re.MULTILINE)


def test_no_test_is_named_in_another_form() -> None:
    """The check above sees only this form."""
    assert len(re.findall(r"\btest_\w+\.py::", PAGE)) == len(
        re.findall(r"`test_\w+\.py::test_\w+`", PAGE)
    )


def test_each_line_of_the_guarantees_has_its_line_of_tests() -> None:
    promised = first_cells(PROMISES, "| | promise |", "| what | what happens |")
    shown = first_cells(PAGE, "| | promise |", "| what |")

    assert len(promised) > 80
    assert promised == shown


def test_every_failpoint_is_documented() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "shared").rglob("*.py")]
    places = set(re.findall(r'\bfailpoint\("([^"]+)"\)', "".join(sources)))

    assert places
    assert {place for place in places if f"`{place}`" not in PROMISES} == set()
