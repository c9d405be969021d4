"""The main loop of a relay or consumer: it repeats a step, and waits after a failed one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import structlog
from kafka.errors import KafkaError
from sqlalchemy.exc import SQLAlchemyError

from settle_outbox.runtime.process import Backoff, FatalError, StoppedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Engine

    from settle_outbox.runtime.health import Health
    from settle_outbox.runtime.process import OutageEvents, Stop
    from settle_outbox.storage.partition_maintenance import Maintenance

log = structlog.get_logger(__name__)

# What a process waits for, as its health file names it.
BROKER = "broker"
DATABASE = "database"
_UNEXPECTED = "an unexpected error; see the log"


class LoopEvents(NamedTuple):
    """The log events of the loop of a relay or a consumer."""

    started: str
    stopped: str
    broker: OutageEvents
    database: OutageEvents
    unexpected: OutageEvents


class Loop:
    """Repeats the steps of a relay or consumer until a stop is requested.

    After a failed step it waits, longer each time. It does so if the database or the broker is
    unavailable, and after any unexpected error, because a defect must not end delivery.

    Args:
        events: its log events.
        service: the service's name.
        stop: ends the loop after the current step.
        health: writes the heartbeats.
        engine: of the service's database.
        maintenance: of the outbox's or inbox's table partitions; it runs between steps.
        checks: run before each maintenance. Each raises a `FatalError` if the database is in a
            state that only an operator can correct.

    Attributes:
        database: the backoff of the database. A step calls `succeeded` on it after a query.
    """

    def __init__(
        self,
        events: LoopEvents,
        service: str,
        *,
        stop: Stop,
        health: Health,
        engine: Engine,
        maintenance: Maintenance,
        checks: Sequence[Callable[[Engine], None]] = (),
    ) -> None:
        self._events = events
        self._service = service
        self._stop = stop
        self._health = health
        self._engine = engine
        self._maintenance = maintenance
        self._checks = checks
        self.database = Backoff(events.database)
        self._broker = Backoff(events.broker)
        self._unexpected = Backoff(events.unexpected, traceback=True)

    def run(self, step: Callable[[], None], disconnect: Callable[[Exception | None], None]) -> None:
        """Repeat a step until a stop is requested.

        Args:
            step: does one batch, or waits for one. It calls `step_succeeded`.
            disconnect: closes the connections that are useless after an error. At the end of the
                loop it gets None and closes all of them.

        Raises:
            FatalError: only an operator can correct it.
        """
        log.info(self._events.started, service=self._service, pid=os.getpid())
        self._health.beat("starting")
        try:
            while not self._stop.requested:
                self._run_once(step, disconnect)
        finally:
            disconnect(None)
            self._engine.dispose()
        self._health.remove()
        log.info(self._events.stopped, service=self._service)

    def step_succeeded(self, state: str = "ready", detail: str = "") -> None:
        """End the backoff of the broker and of unexpected errors, and write a heartbeat.

        Args:
            state: of the process; see `Health.beat`.
            detail: the reason for a state other than ready. In the state ready, the heartbeat shows
                the problem of the last maintenance instead.
        """
        self._broker.succeeded()
        self._unexpected.succeeded()
        self._health.beat(state, self._maintenance.problem if state == "ready" else detail)

    def _run_once(
        self, step: Callable[[], None], disconnect: Callable[[Exception | None], None]
    ) -> None:
        try:
            self._maintain_if_due()
            step()
        except StoppedError:
            return
        except FatalError:
            raise
        except Exception as error:  # noqa: BLE001 - logged; a defect must not end delivery
            disconnect(error)
            self._wait_after(error)

    def _wait_after(self, error: Exception) -> None:
        if isinstance(error, KafkaError):
            backoff, waiting_for = self._broker, BROKER
        elif isinstance(error, SQLAlchemyError):
            # Discard pooled connections. After a failover they belong to the old server, and after
            # a change of PostgreSQL's settings they keep the old settings.
            self._engine.dispose()
            backoff, waiting_for = self.database, DATABASE
        else:
            backoff, waiting_for = self._unexpected, _UNEXPECTED
        self._health.beat("waiting", waiting_for)
        self._stop.wait(backoff.failed(error))

    def _maintain_if_due(self) -> None:
        if self._maintenance.is_due:
            for check in self._checks:
                check(self._engine)
            self._maintenance.run()
            self.database.succeeded()
