"""The main loop of a relay or consumer: one step after another, and a wait after a failed one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import structlog
from kafka.errors import KafkaError
from sqlalchemy.exc import SQLAlchemyError

from settle_outbox.runtime.process import Backoff, FatalError, StoppedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Engine

    from settle_outbox.runtime.health import Health
    from settle_outbox.runtime.process import Stop
    from settle_outbox.storage.partition_maintenance import Maintenance

log = structlog.get_logger(__name__)

# What a process waits for, in its health.
BROKER = "broker"
DATABASE = "database"
_UNEXPECTED = "an unexpected error; see the log"


class Loop:
    """Repeats the steps of a relay or consumer until the process is asked to stop.

    After a step that failed it waits, longer each time. It does so while the database or the broker
    is unavailable, and after an unexpected error: a defect must not end delivery.

    Args:
        name: ``relay`` or ``consumer``; the events of the log begin with it.
        service: the service's name.
        stop: ends the loop after the step under way.
        health: where the heartbeats go.
        engine: of the service's database.
        maintenance: of the service's partitions; it runs between steps.
        checks: run before each maintenance; each raises a `FatalError` if the database is in a
            state that only an operator can correct.

    Attributes:
        database: back-off of the database. A step calls `succeeded` on it after a query.
    """

    def __init__(
        self,
        name: str,
        service: str,
        *,
        stop: Stop,
        health: Health,
        engine: Engine,
        maintenance: Maintenance,
        checks: Sequence[Callable[[Engine], None]] = (),
    ) -> None:
        self._name = name
        self._service = service
        self._stop = stop
        self._health = health
        self._engine = engine
        self._maintenance = maintenance
        self._checks = checks
        self.database = Backoff(f"{name}.database")
        self._broker = Backoff(f"{name}.broker")
        self._defect = Backoff(f"{name}.loop", traceback=True)

    def run(self, step: Callable[[], None], disconnect: Callable[[Exception | None], None]) -> None:
        """Repeat a step until asked to stop.

        Args:
            step: does one batch, or waits for one. It calls `step_succeeded`.
            disconnect: closes the connections that are useless after an error. With None, the loop
                ends: it closes all of them.

        Raises:
            FatalError: only an operator can resolve it.
        """
        log.info(f"{self._name}.started", service=self._service, pid=os.getpid())
        self._health.beat("starting")
        try:
            while not self._stop.requested:
                self._run_once(step, disconnect)
        finally:
            disconnect(None)
            self._engine.dispose()
        self._health.remove()
        log.info(f"{self._name}.stopped", service=self._service)

    def step_succeeded(self, state: str = "ready", detail: str = "") -> None:
        """End the back-offs of the broker and of unexpected errors, and write the health file.

        Args:
            state: of the process; see `Health.beat`.
            detail: reason for a state other than ready. In the state ready, an error of the
                maintenance is shown instead.
        """
        self._broker.succeeded()
        self._defect.succeeded()
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
            # Drop pooled connections: after a failover or a change of settings they belong to the
            # old server, or keep the old settings.
            self._engine.dispose()
            backoff, waiting_for = self.database, DATABASE
        else:
            backoff, waiting_for = self._defect, _UNEXPECTED
        self._health.beat("waiting", waiting_for)
        self._stop.wait(backoff.failed(error))

    def _maintain_if_due(self) -> None:
        if self._maintenance.is_due:
            for check in self._checks:
                check(self._engine)
            self._maintenance.run()
            self.database.succeeded()
