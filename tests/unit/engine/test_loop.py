"""What the loop of a relay or consumer does when a step fails."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from kafka.errors import KafkaTimeoutError
from structlog.testing import capture_logs

from settle_outbox.publish.relay import EVENTS
from settle_outbox.runtime.health import Health
from settle_outbox.runtime.loop import Loop
from settle_outbox.runtime.process import FatalError, StoppedError
from support.clock import Clock, StopWithClock
from support.logs import events
from support.memory_database import unreachable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy import Engine


class Process:
    """A process that runs the steps of a test one by one, and then is stopped."""

    def __init__(
        self, directory: Path, *, checks: tuple[Callable[[Engine], None], ...] = ()
    ) -> None:
        self.stop = StopWithClock(Clock())
        self.disposed = 0
        self.maintained = 0
        self.errors: list[Exception | None] = []
        self.health: list[tuple[str, str]] = []
        self.maintenance = cast(
            "Any", SimpleNamespace(is_due=False, problem="", run=self._maintain)
        )
        self._directory = directory
        self.loop = Loop(
            EVENTS,
            "orders",
            stop=self.stop,
            health=Health(str(directory), "outbox-relay-orders"),
            engine=cast("Any", SimpleNamespace(dispose=self._dispose)),
            maintenance=self.maintenance,
            checks=checks,
        )

    def run(self, *steps: Exception | None) -> None:
        """Run one step for each argument. A step raises its argument, or succeeds for None."""
        left = list(steps)

        def step() -> None:
            self._note_health()
            error = left.pop(0)
            if not left:
                self.stop.request()
            if error is not None:
                raise error
            self.loop.step_succeeded()
            self._note_health()

        self.loop.run(step, self.errors.append)

    def _note_health(self) -> None:
        (path,) = self._directory.iterdir()
        beat = json.loads(path.read_text(encoding="utf-8"))
        if not self.health or self.health[-1] != (beat["state"], beat["detail"]):
            self.health.append((beat["state"], beat["detail"]))

    def _dispose(self) -> None:
        self.disposed += 1

    def _maintain(self) -> None:
        self.maintained += 1
        self.maintenance.is_due = False


def test_an_outage_of_the_broker_is_logged_and_waited_out(tmp_path: Path) -> None:
    process = Process(tmp_path)
    outage = KafkaTimeoutError()

    with capture_logs() as lines:
        process.run(None, outage, outage, None)

    assert events(lines, "relay") == [
        "relay.started",
        "relay.broker_down",
        "relay.broker_up",
        "relay.stopped",
    ]
    assert process.health == [("starting", ""), ("ready", ""), ("waiting", "broker"), ("ready", "")]
    assert process.errors == [outage, outage, None]
    assert process.disposed == 1, "the connections to the database are kept until the end"
    assert list(tmp_path.iterdir()) == []


def test_after_an_error_of_the_database_its_connections_are_dropped(tmp_path: Path) -> None:
    process = Process(tmp_path)

    with capture_logs() as lines:
        process.run(unreachable(), None)

    assert events(lines, "relay")[1] == "relay.database_down"
    assert ("waiting", "database") in process.health
    assert process.disposed == 2


def test_an_unexpected_error_is_logged_with_its_traceback_and_does_not_end_the_loop(
    tmp_path: Path,
) -> None:
    process = Process(tmp_path)
    defect = ZeroDivisionError()

    with capture_logs() as lines:
        process.run(defect, None)

    (line,) = [line for line in lines if line["event"] == "relay.loop_down"]
    assert line["exc_info"] is defect
    assert process.health[-1] == ("ready", "")


def test_work_that_ends_because_of_a_stop_is_not_an_error(tmp_path: Path) -> None:
    process = Process(tmp_path)

    with capture_logs() as lines:
        process.run(StoppedError())

    assert events(lines, "relay") == ["relay.started", "relay.stopped"]
    assert process.errors == [None]


def test_an_error_that_only_an_operator_can_resolve_ends_the_loop(tmp_path: Path) -> None:
    process = Process(tmp_path)

    with pytest.raises(FatalError):
        process.run(FatalError("the outbox was moved"), None)

    assert process.errors == [None]
    assert process.disposed == 1
    assert len(list(tmp_path.iterdir())) == 1, "the file stays, so the health check fails"


def test_the_database_is_checked_before_its_partitions_are_maintained(tmp_path: Path) -> None:
    maintained_at_check: list[int] = []
    process = Process(tmp_path, checks=(lambda _: maintained_at_check.append(process.maintained),))
    process.maintenance.is_due = True

    process.run(None, None)

    assert maintained_at_check == [0]
    assert process.maintained == 1


def test_a_process_that_is_ready_shows_the_problem_of_its_maintenance(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.maintenance.problem = "partition upkeep failed: outbox"

    process.run(None)

    assert process.health[-1] == ("ready", "partition upkeep failed: outbox")
