"""Waiters see every change, and their number is limited."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from shared.web.waiting.waiters import Waiters
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

# The time limit of each wait. A wait that is woken must end well before, within WOKEN_WITHIN_S.
TIME_LIMIT_S = 60
WOKEN_WITHIN_S = 30
KEY = uuid4()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def never(_: object) -> bool:
    return False


def read_zero() -> int:
    return 0


def test_a_woken_waiter_reads_the_state_again(pool: ThreadPoolExecutor) -> None:
    waiters = Waiters(limit=1)
    state: list[str] = []
    waiting = pool.submit(waiters.wait, KEY, TIME_LIMIT_S, lambda: list(state), bool)
    wait_until(lambda: waiters.keys() == [KEY])
    waiters.wake([uuid4(), KEY])  # the state is unchanged, so the wait continues
    state.append("final")
    waiters.wake([KEY])
    assert waiting.result(10) == (["final"], True)
    assert not waiters.keys()
    assert not waiters.present.is_set()


def test_a_change_between_two_reads_is_not_missed() -> None:
    """The state changes right after it was read, before the wait begins."""
    waiters = Waiters(limit=1)
    seen: list[int] = []

    def read() -> int:
        seen.append(1)
        if len(seen) == 1:
            waiters.wake([KEY])
        return len(seen)

    began = time.monotonic()
    assert waiters.wait(KEY, TIME_LIMIT_S, read, lambda found: found > 1) == (2, True)
    assert time.monotonic() - began < WOKEN_WITHIN_S


def test_a_wait_ends_at_its_time_limit() -> None:
    waiters = Waiters(limit=1)
    reads: list[int] = []
    assert waiters.wait(KEY, 0.05, lambda: reads.append(1), never) == (None, True)
    assert len(reads) == 2
    assert waiters.wait(KEY, 0, lambda: reads.append(1), never) == (None, True)
    assert len(reads) == 3


def test_the_number_of_waiters_is_limited(pool: ThreadPoolExecutor) -> None:
    waiters = Waiters(limit=2)
    waiting = [pool.submit(waiters.wait, uuid4(), TIME_LIMIT_S, read_zero, never) for _ in range(2)]
    wait_until(lambda: len(waiters.keys()) == 2)
    assert waiters.wait(KEY, TIME_LIMIT_S, read_zero, never) == (0, False)
    assert waiters.wait(KEY, TIME_LIMIT_S, int, lambda _: True) == (0, True)
    waiters.release()
    assert [each.result(10) for each in waiting] == [(0, False)] * 2


def test_an_error_ends_the_wait_and_removes_the_waiter() -> None:
    waiters = Waiters(limit=1)

    def read() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        waiters.wait(KEY, TIME_LIMIT_S, read, never)
    assert not waiters.keys()
    assert waiters.wait(KEY, 0, read_zero, never) == (0, True)


def test_no_wait_begins_after_the_release() -> None:
    waiters = Waiters(limit=1)
    waiters.release()
    assert waiters.wait(KEY, TIME_LIMIT_S, read_zero, never) == (0, False)
