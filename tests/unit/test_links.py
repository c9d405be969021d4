"""Every link between the pages leads to a page and a heading that exist."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (".", "benchmarks", "docs", "docs/*", "examples/*", "shared/*", "tests")
PAGES = sorted(path for folder in FOLDERS for path in ROOT.glob(f"{folder}/*.md"))
CODE = ("deploy", "services", "settle", "shared")

FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
PAGE_IN_CODE = re.compile(r"\bdocs/[\w./-]+\.md\b")
OUTSIDE = ("https://", "http://", "mailto:")


@cache
def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def links(page: Path) -> list[str]:
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    return [each for each in LINK.findall(text) if not each.startswith(OUTSIDE)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)

    assert broken == []


def test_each_image_is_small_and_on_a_page() -> None:
    shown = {(page.parent / each).resolve() for page in PAGES for each in links(page)}

    images = [*(ROOT / "docs" / "images").iterdir()]

    assert images
    assert [each.name for each in images if each.stat().st_size > 150_000] == []
    assert [each.name for each in images if each not in shown] == []


def test_pages_that_the_code_names_exist() -> None:
    files = [path for folder in CODE for path in (ROOT / folder).rglob("*") if path.is_file()]
    named = {
        each
        for path in files
        if path.suffix in {".py", ".conf", ".service", ".sh"}
        for each in PAGE_IN_CODE.findall(path.read_text(encoding="utf-8"))
    }

    assert named
    assert [each for each in sorted(named) if not (ROOT / each).exists()] == []


def test_every_page_of_the_docs_can_be_reached_from_their_map() -> None:
    reached: set[Path] = set()
    waiting = [ROOT / "docs" / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        waiting += [
            (page.parent / link.partition("#")[0]).resolve()
            for link in links(page)
            if link.partition("#")[0]
        ]

    assert {page for page in PAGES if (ROOT / "docs") in page.parents} - reached == set()
