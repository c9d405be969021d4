"""The two languages of the README have the same content."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
RUSSIAN = (ROOT / "README.ru.md").read_text(encoding="utf-8")

FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)]+)\)")


def test_the_same_commands_and_diagrams() -> None:
    assert FENCED.findall(ENGLISH) == FENCED.findall(RUSSIAN)
    assert FENCED.findall(ENGLISH)


def tables(text: str) -> list[list[str]]:
    """Return the first cells of the rows of each table. They are equal in both languages."""
    found: list[list[str]] = []
    inside = False
    for line in FENCED.sub("", text).splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        if not inside:
            found.append([])
            inside = True
        found[-1].append(line)
    return [[row.split("|")[1].strip() for row in rows[2:]] for rows in found]


def test_the_same_tables() -> None:
    assert tables(ENGLISH) == tables(RUSSIAN)
    assert [len(rows) for rows in tables(ENGLISH)] > [1, 1]


def test_the_same_figures_and_names_in_tables() -> None:
    def details(text: str) -> list[list[str]]:
        rows = [line for line in FENCED.sub("", text).splitlines() if line.startswith("|")]
        return [sorted(CODE.findall(row)) + re.findall(r"\d+(?:\.\d+)?", row) for row in rows]

    assert details(ENGLISH) == details(RUSSIAN)


def test_the_same_headings_and_links() -> None:
    def shape(text: str) -> list[str]:
        return [line.split()[0] for line in FENCED.sub("", text).splitlines() if line[:1] == "#"]

    assert shape(ENGLISH) == shape(RUSSIAN)
    each_other = {"README.md", "README.ru.md"}
    assert set(LINK.findall(ENGLISH)) - each_other == set(LINK.findall(RUSSIAN)) - each_other


@pytest.mark.parametrize("text", [ENGLISH, RUSSIAN], ids=["English", "Russian"])
def test_links_lead_somewhere(text: str) -> None:
    for target in LINK.findall(text):
        assert target.startswith("https://") or (ROOT / target.partition("#")[0]).exists(), target


def test_every_setting_is_in_the_table() -> None:
    """A user cannot find a setting that the README does not name."""
    files = ("shared/settings.py", "shared/outbox/src/settle_outbox/settings.py")
    source = "".join((ROOT / each).read_text(encoding="utf-8") for each in files)
    read = set(re.findall(r'"([A-Z][A-Z_]+[A-Z])"', source)) - {"DEBUG", "INFO", "WARNING", "ERROR"}
    documented = set(CODE.findall("\n".join(row for rows in tables(ENGLISH) for row in rows)))
    # The variables of one service begin with its name.
    documented |= {name.removeprefix("ORDERS_") for name in documented}
    assert read <= documented, read - documented
