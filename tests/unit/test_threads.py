"""The loop of a daemon thread continues after its step raises an error."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from structlog.testing import capture_logs

from settle_outbox.runtime import threads
from settle_outbox.runtime.threads import PAUSE_MAX_S, repeat
from shared.web import access_log
from support.waiting import wait_until

if TYPE_CHECKING:
    import pytest


def test_an_error_is_logged_and_the_step_repeated_after_a_longer_pause_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []
    calls: list[int] = []
    monkeypatch.setattr("settle_outbox.runtime.threads.time.sleep", pauses.append)

    def step() -> None:
        calls.append(1)
        if len(calls) not in {9, 11}:
            raise RuntimeError("unforeseen")

    with capture_logs() as lines:
        repeat(step, failed_event="some.thread_failed", is_over=lambda: len(calls) == 11)

    assert [line["event"] for line in lines] == ["some.thread_failed"] * 9
    assert all(line["exc_info"] for line in lines)
    assert pauses[:3] == [0.1, 0.2, 0.4]
    assert pauses[7] == PAUSE_MAX_S
    assert pauses[8] == 0.1  # short again after a success


def test_a_log_that_fails_does_not_end_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def step() -> None:
        calls.append(1)
        raise RuntimeError("unforeseen")

    def fail(*_: object, **__: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("settle_outbox.runtime.threads.time.sleep", lambda _: None)
    monkeypatch.setattr(threads.log, "exception", fail, raising=False)

    repeat(step, failed_event="some.thread_failed", is_over=lambda: len(calls) == 3)

    assert len(calls) == 3


def test_the_access_log_continues_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    waiting = [RuntimeError("unforeseen")]

    def write(event: str, lines: object) -> None:
        list(lines)  # type: ignore[call-overload]
        if waiting:
            raise waiting.pop()
        written.append(event)

    monkeypatch.setattr(access_log, "write_together", write)
    writer = access_log.AccessLogWriter()
    writer.write(logging.INFO, {})
    wait_until(lambda: not waiting, what="the error")

    def writes() -> bool:
        writer.write(logging.INFO, {})
        return bool(written)

    wait_until(writes, what="the next line")
