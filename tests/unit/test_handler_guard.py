"""Find statements that end a transaction, and measure how long a handler runs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from settle_outbox.consume.handler.guard import HandlerRun, TransactionEndedError
from settle_outbox.runtime.active_clock import ActiveClock


class FakeTime:
    """The wall clock and the processor time of a process, set by the test."""

    def __init__(self) -> None:
        self.wall_s = 1000.0
        self.cpu_s = 0.0

    def advance(self, seconds: float, *, cpu_s: float = 0.0) -> None:
        self.wall_s += seconds
        self.cpu_s += cpu_s


@pytest.fixture
def fake_time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    clocks = SimpleNamespace(monotonic=lambda: fake.wall_s, process_time=lambda: fake.cpu_s)
    monkeypatch.setattr("settle_outbox.runtime.active_clock.time", clocks)
    monkeypatch.setattr(ActiveClock, "start", lambda _: None)
    return fake


def ticking(clock: ActiveClock, fake: FakeTime, seconds: float) -> None:
    for _ in range(round(seconds / 0.2)):
        fake.advance(0.2)
        clock.now()


def test_a_handler_that_sleeps_uses_up_its_time(fake_time: FakeTime) -> None:
    clock = ActiveClock()
    run = HandlerRun(clock.now)

    ticking(clock, fake_time, 11)
    run.measure()

    assert run.longest_pause_s == pytest.approx(11)
    assert run.exceeded(pause_s=10, total_s=120)


def test_a_frozen_process_does_not_use_up_its_time(fake_time: FakeTime) -> None:
    clock = ActiveClock()
    run = HandlerRun(clock.now)

    ticking(clock, fake_time, 1)
    fake_time.advance(300)  # stopped and continued
    run.measure()

    assert run.longest_pause_s < 2
    assert not run.exceeded(pause_s=10, total_s=120)


def test_a_handler_that_blocks_other_threads_uses_up_its_time(
    fake_time: FakeTime,
) -> None:
    clock = ActiveClock()
    run = HandlerRun(clock.now)

    fake_time.advance(15, cpu_s=14)
    run.measure()

    assert run.exceeded(pause_s=10, total_s=120)


def test_statements_end_a_pause_but_not_the_total(fake_time: FakeTime) -> None:
    clock = ActiveClock()
    run = HandlerRun(clock.now)

    for _ in range(20):
        ticking(clock, fake_time, 6)
        run.statement_begins("SELECT 1")
        run.statement_ended(None)
    run.measure()

    assert not run.exceeded(pause_s=10, total_s=130)
    assert run.exceeded(pause_s=10, total_s=120)


@pytest.mark.parametrize(
    "statement",
    [
        "COMMIT",
        "  commit work;",
        "SELECT 1; commit",
        "END",
        "ROLLBACK",
        "rollback AND CHAIN",
        "-- a comment\nCOMMIT",
        "/* a; */ abort",
        "PREPARE TRANSACTION 'x'",
        "UPDATE effects SET a = 'x;'; end",
        "SELECT $a$;$a$; COMMIT",
        "/* a /* b */ ' */ COMMIT; select ''",
        "select 1 as a$b$; COMMIT; select 2 as c$b$",
        "select 1 as e, name'\\'; COMMIT; --'",
        "--x\rCOMMIT",
    ],
)
def test_a_statement_that_ends_the_transaction_is_refused(
    fake_time: FakeTime, statement: str
) -> None:
    run = HandlerRun(ActiveClock().now)

    with pytest.raises(TransactionEndedError, match="begin_nested"):
        run.statement_begins(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "ROLLBACK TO SAVEPOINT a",
        "rollback work to a",
        "RELEASE SAVEPOINT a",
        "SELECT CASE WHEN true THEN 2 END",
        "SELECT 'x; commit'",
        "SELECT a like'%\\' or b = '; end of day'",
        "/* never closed; COMMIT",
        "SELECT $a$; COMMIT;$a$",
        "SELECT E'it\\'s; COMMIT'",
        'INSERT INTO "a; commit" VALUES (1)',
        "PREPARE x AS SELECT 1",
        "UPDATE orders SET ended = true WHERE commit = 1",
    ],
)
def test_other_statements_are_allowed(fake_time: FakeTime, statement: str) -> None:
    HandlerRun(ActiveClock().now).statement_begins(statement)
