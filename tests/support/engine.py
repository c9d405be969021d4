"""The engine without servers: a relay and a consumer with a cluster and a database in memory."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from settle_outbox import Service
from settle_outbox.consume import (
    applier,
    batch_transaction,
    careful_mode,
    consumed_topics,
    consumer,
    failures,
    partition_reader,
    paused_partitions,
)
from settle_outbox.consume.handler import call as handler_call
from settle_outbox.publish import relay, sender
from support.clock import Clock, StopWithClock
from support.delivery import Delivery
from support.memory_database import MemoryDatabase
from support.memory_kafka import Admin, Cluster, Consumer, Producer

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from settle_outbox.settings import Settings

_NO_DATABASE = "postgresql+psycopg2://127.0.0.1:1/none"
_NOWHERE = Delivery(_NO_DATABASE, _NO_DATABASE, bootstrap="127.0.0.1:1")


class KilledError(BaseException):
    """The process is killed. This is a BaseException, so the code under test does not catch it."""


class World:
    """A cluster, a database, and the processes that use them.

    Attributes:
        stop: The stop of the running process.
        is_over: Called when the process has nothing to do. If it returns True, the process stops.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        self.cluster = Cluster(self.clock)
        self.database = MemoryDatabase()
        self.stop = StopWithClock(self.clock)
        self.is_over: Callable[[], bool] = lambda: True
        self.cluster.when_idle = self._idle
        self._patch(monkeypatch)

    def _patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (
            applier,
            careful_mode,
            consumed_topics,
            consumer,
            failures,
            partition_reader,
            paused_partitions,
            relay,
        ):
            monkeypatch.setattr(module, "time", self.clock)
        maintenance = SimpleNamespace(is_due=False, problem="")
        for module in (relay, consumer):
            monkeypatch.setattr(module, "make_admin", lambda *_, **__: Admin(self.cluster))
            monkeypatch.setattr(module, "Maintenance", lambda *_: maintenance)
        monkeypatch.setattr(sender, "make_producer", lambda *_, **__: Producer(self.cluster))
        monkeypatch.setattr(relay, "Listener", lambda *_: _Listener(self))
        monkeypatch.setattr(
            consumer, "make_consumer", lambda _, group, **__: Consumer(self.cluster, group)
        )
        monkeypatch.setattr(relay, "make_engine", lambda *_, **__: self.database)
        monkeypatch.setattr(
            consumer, "make_handler_sessions", lambda *_: (self.database, self.database)
        )
        # No test with this engine makes a repair request. The tests of repairs are in
        # tests/integration/test_dead_letter_repairs.py.
        no_requests = SimpleNamespace(carry_out_unclaimed=lambda **_: None)
        monkeypatch.setattr(consumer, "Repairs", lambda *_, **__: no_requests)
        monkeypatch.setattr(
            batch_transaction,
            "ActiveClock",
            lambda _: SimpleNamespace(now=self.clock.monotonic, beating=lambda _: nullcontext()),
        )
        monkeypatch.setattr(handler_call, "guarded", lambda *_: nullcontext())

    def _settings(self, **changed: Any) -> Settings:
        return _NOWHERE.settings("orders", **changed)

    def relay(self, **changed: Any) -> relay.Relay:
        """Return a relay of a service that publishes orders."""
        self.stop = StopWithClock(self.clock)
        return relay.Relay(Service("orders", ("orders",), ()), self._settings(**changed), self.stop)

    def consumer(self, service: Service, **changed: Any) -> consumer.Consumer:
        """Return a consumer of a service."""
        self.stop = StopWithClock(self.clock)
        return consumer.Consumer(service, self._settings(**changed), self.stop)

    def _idle(self) -> None:
        if self.is_over():
            self.stop.request()


class _Listener:
    """A stand-in for the relay's listener. A wait for a notification takes one poll interval."""

    def __init__(self, world: World) -> None:
        self._world = world

    def ensure(self) -> None:
        """Do nothing, because it always listens."""

    def wait(self, seconds: float) -> None:
        self._world.cluster.when_idle()
        self._world.clock.advance(seconds)

    def close(self) -> None:
        """Do nothing, because it has no connection."""
