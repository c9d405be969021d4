"""The queries of the list of orders, without a database."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from services.orders.listing import _page_query

if TYPE_CHECKING:
    from collections.abc import Iterator

THREADS = 8


@pytest.fixture
def _frequent_switches() -> Iterator[None]:
    """Let threads take the interpreter from each other in the middle of everything."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_frequent_switches")
@pytest.mark.parametrize("filters", [frozenset[str](), frozenset({"user_id"})])
def test_a_query_can_be_used_by_several_threads_at_once(filters: frozenset[str]) -> None:
    """The first use by several threads must not leave it half prepared: every page would fail."""
    seen = set()
    for _ in range(15):
        _page_query.cache_clear()
        query = _page_query(filters, is_first=True)
        start = threading.Barrier(THREADS)

        def use(_: int) -> str:
            start.wait()  # noqa: B023  # the threads end before the next round
            return str(query)  # noqa: B023

        with ThreadPoolExecutor(THREADS) as threads:
            seen |= set(threads.map(use, range(THREADS)))

    (sql,) = seen
    assert "FROM orders, " not in sql  # as in a half-prepared query
