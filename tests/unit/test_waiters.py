"""A waiting request does not miss a change, and the number of waiting requests is limited."""

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

# The time limit of waits that must end long before it, within WOKEN_WITHIN_S.
TIME_LIMIT_S = 60
WOKEN_WITHIN_S = 30
AWAITED_ID = uuid4()
# The second part of what `wait` returns. With too many waiters, or after `end_all`, a wait is not
# honoured. A wait that reaches its time limit is honoured.
HONOURED, NOT_HONOURED = True, False


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def never_final(_: object) -> bool:
    return False


def always_final(_: object) -> bool:
    return True


def read_zero() -> int:
    return 0


def test_a_woken_waiter_reads_the_state_again(pool: ThreadPoolExecutor) -> None:
    waiters = Waiters(limit=1)
    state: list[str] = []
    answer = pool.submit(
        waiters.wait, AWAITED_ID, TIME_LIMIT_S, read=lambda: list(state), is_final=bool
    )
    wait_until(lambda: waiters.keys() == [AWAITED_ID])
    waiters.wake([uuid4(), AWAITED_ID])  # an unchanged state does not end the wait
    state.append("final")
    waiters.wake([AWAITED_ID])
    assert answer.result(WOKEN_WITHIN_S) == (["final"], HONOURED)
    assert not waiters.keys()
    assert not waiters.has_waiters.is_set()


def test_a_change_between_two_reads_is_not_missed() -> None:
    """The state is the number of reads. It changes right after the first read."""
    waiters = Waiters(limit=1)
    reads: list[int] = []

    def read() -> int:
        reads.append(1)
        if len(reads) == 1:
            waiters.wake([AWAITED_ID])
        return len(reads)

    began = time.monotonic()
    assert waiters.wait(AWAITED_ID, TIME_LIMIT_S, read, lambda found: found > 1) == (2, HONOURED)
    assert time.monotonic() - began < WOKEN_WITHIN_S


def test_a_wait_ends_at_its_time_limit() -> None:
    waiters = Waiters(limit=1)
    reads: list[int] = []

    def count_reads() -> int:
        reads.append(1)
        return len(reads)

    assert waiters.wait(AWAITED_ID, 0.05, count_reads, never_final) == (2, HONOURED)
    assert waiters.wait(AWAITED_ID, 0, count_reads, never_final) == (3, HONOURED)


def test_the_number_of_waiters_is_limited(pool: ThreadPoolExecutor) -> None:
    waiters = Waiters(limit=2)
    answers = [
        pool.submit(waiters.wait, uuid4(), TIME_LIMIT_S, read_zero, never_final) for _ in range(2)
    ]
    wait_until(lambda: len(waiters.keys()) == 2)
    assert waiters.wait(AWAITED_ID, TIME_LIMIT_S, read_zero, never_final) == (0, NOT_HONOURED)
    # A final state is returned at once, so it needs no place among the waiters.
    assert waiters.wait(AWAITED_ID, TIME_LIMIT_S, read_zero, always_final) == (0, HONOURED)
    waiters.end_all()
    assert [each.result(WOKEN_WITHIN_S) for each in answers] == [(0, NOT_HONOURED)] * 2


def test_an_error_ends_the_wait_and_removes_the_waiter() -> None:
    waiters = Waiters(limit=1)

    def read() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        waiters.wait(AWAITED_ID, TIME_LIMIT_S, read, never_final)
    assert not waiters.keys()
    assert waiters.wait(AWAITED_ID, 0.05, read_zero, never_final) == (0, HONOURED)


def test_no_wait_begins_after_all_were_ended() -> None:
    waiters = Waiters(limit=1)
    waiters.end_all()
    assert waiters.wait(AWAITED_ID, TIME_LIMIT_S, read_zero, never_final) == (0, NOT_HONOURED)
