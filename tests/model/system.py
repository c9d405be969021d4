"""The two services with their databases, and topics in memory between them.

The topics replace the broker. They keep the records of the real sender. A test can give any of them
to the real appliers, in any order and any number of times.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import patch
from zlib import crc32

import structlog
from kafka.consumer.fetcher import ConsumerRecord
from kafka.future import Future
from sqlalchemy import create_engine, event, text
from sqlalchemy.orm import Session, sessionmaker

from settle_outbox.consume.applier import Applier
from settle_outbox.consume.failures import HandlerLimits
from settle_outbox.consume.handler.guard import GUARDABLE
from settle_outbox.publish.pending import lock_shards, mark_sent, read_pending
from settle_outbox.publish.sender import Sender
from settle_outbox.service import load_service
from settle_outbox.uuid7 import lowest_id
from support.delivery import ORDERS, PARTITIONS, PAYMENTS
from support.web import open_app

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Executor

    from flask.testing import FlaskClient

    from settle_outbox.settings import Settings

ALL = 1_000_000
# The default limits of a consumer.
LIMITS = HandlerLimits(pause_s=10, total_s=120, retry_attempts=10, brake_failures=20)

# The inboxes remember no event with an id below this one.
BEGINS_AT = lowest_id(datetime.now(UTC) - timedelta(days=1))

# The tables that are emptied for the next example. Triggers are disabled meanwhile.
_ENGINE_TABLES = (
    "outbox",
    "outbox_pending",
    "outbox_refused",
    "inbox",
    "inbox_horizon",
    "inbox_skipped",
    "dead_letters",
)
_FORGET = {
    "payments": (*_ENGINE_TABLES, "transfers", "payments", "accounts WHERE user_id IS NOT NULL"),
    "orders": (*_ENGINE_TABLES, "orders"),
}

_DELIVERY = """
    'inbox', (SELECT json_object_agg(id, json_build_array(outcome, split_part(detail, ':', 1)))
              FROM inbox),
    'dead_letters', (SELECT json_agg(json_build_array(topic, partition, "offset", reason)
                                     ORDER BY topic, partition, "offset") FROM dead_letters),
    'skipped', (SELECT json_agg(type ORDER BY type) FROM inbox_skipped),
    'pending', (SELECT count(*) FROM outbox_pending),
    'published', (SELECT json_agg(json_build_array(
                 aggregateid, type, convert_from(payload, 'UTF8')::jsonb - 'created_at'
             ) ORDER BY seq) FROM outbox)
"""
_STATE = {
    "payments": text(
        f"""
        SELECT json_build_object({_DELIVERY},
            'balances', (SELECT json_object_agg(user_id, balance) FROM accounts
                         WHERE user_id IS NOT NULL),
            'transfers', (SELECT json_agg(json_build_array(
                              coalesce(f.name, f.user_id::text), coalesce(t.name, t.user_id::text),
                              amount, kind, order_id) ORDER BY transfers.id)
                          FROM transfers JOIN accounts f ON f.id = from_account_id
                          JOIN accounts t ON t.id = to_account_id),
            'decisions', (SELECT json_object_agg(order_id,
                              json_build_array(user_id, amount, status, reason)) FROM payments))
        """
    ),
    "orders": text(
        f"""
        SELECT json_build_object({_DELIVERY},
            'orders', (SELECT json_object_agg(id, json_build_array(
                           user_id, amount, description, status, failure_reason)) FROM orders))
        """
    ),
}


class Topics:
    """Topics in memory. The sender uses them as a producer that acknowledges at once."""

    def __init__(self) -> None:
        self.records: dict[str, list[ConsumerRecord]] = {ORDERS: [], PAYMENTS: []}

    def send(
        self, topic: str, *, value: bytes | None, key: bytes, headers: list[tuple[str, Any]]
    ) -> Future:
        """Store a record in its key's partition."""
        partition = crc32(key) % PARTITIONS
        record = ConsumerRecord(
            topic=topic,
            partition=partition,
            leader_epoch=0,
            offset=sum(other.partition == partition for other in self.records[topic]),
            timestamp=0,
            timestamp_type=0,
            key=key,
            value=value,
            headers=headers,
            checksum=None,
            serialized_key_size=len(key),
            serialized_value_size=-1 if value is None else len(value),
            serialized_header_size=-1,
        )
        self.records[topic].append(record)
        return Future().success(record)

    def flush(self, timeout: float) -> None:
        """Do nothing, because every record is acknowledged at once."""


class KilledError(BaseException):
    """The process is killed. It is a BaseException, so nothing catches it."""


class System:
    """Payments and orders: their APIs, and the senders and appliers of their events.

    Args:
        urls: The database URLs, by service.
        clients: The API clients, by service.
        threads: At least two threads, for concurrent steps.
    """

    def __init__(
        self, urls: dict[str, str], clients: dict[str, FlaskClient], threads: Executor
    ) -> None:
        self.clients = clients
        self.topics = Topics()
        self._threads = threads
        self._engines = {
            service: create_engine(url, connect_args=GUARDABLE) for service, url in urls.items()
        }
        self._appliers = {
            service: Applier(load_service(service), sessionmaker(engine), LIMITS)
            for service, engine in self._engines.items()
        }
        self._dying_appliers = {
            service: Applier(
                load_service(service), _killed_before_commit(sessionmaker(engine)), LIMITS
            )
            for service, engine in self._engines.items()
        }

    def close(self) -> None:
        """Close the connections to the databases."""
        for engine in self._engines.values():
            engine.dispose()

    def forget(self) -> None:
        """Empty the databases and the topics."""
        self.topics = Topics()
        for service, engine in self._engines.items():
            with engine.begin() as connection:
                connection.execute(text("SET LOCAL session_replication_role = replica"))
                for table in _FORGET[service]:
                    connection.execute(text(f"DELETE FROM {table}"))
                connection.execute(
                    text("INSERT INTO inbox_horizon VALUES (:begin)"), {"begin": BEGINS_AT}
                )

    def relay(self, service: str, count: int, *, mark: bool) -> list[ConsumerRecord]:
        """Send the oldest pending events. Without `mark`, they stay pending: the relay died."""
        with (
            patch.multiple(
                "settle_outbox.publish.sender",
                make_producer=lambda *_: self.topics,
                when_connection_ends=lambda *_: None,  # there is no connection
            ),
            self._engines[service].begin() as connection,
        ):
            shards = lock_shards(connection, ALL)
            events = read_pending(connection, shards, ALL, [])[:count] if shards else []
            # No setting is read, because there is no broker.
            settings = cast("Settings", SimpleNamespace())
            sent = Sender(settings, load_service(service)).send(events)
            assert sent.error is None
            if mark:
                mark_sent(connection, sent.acknowledged)
        topic = f"{service}.events"
        return self.topics.records[topic][len(self.topics.records[topic]) - len(events) :]

    def apply(self, service: str, records: Sequence[ConsumerRecord]) -> None:
        """Give records to a consumer of a service."""
        self._appliers[service].apply(records)

    def apply_at_once(self, service: str, records: Sequence[ConsumerRecord]) -> None:
        """Give the same records to two consumers at the same time."""
        for done in [self._threads.submit(self.apply, service, records) for _ in range(2)]:
            done.result(60)

    def apply_and_die(self, service: str, records: Sequence[ConsumerRecord]) -> None:
        """Give records to a consumer that is killed before its commit."""
        try:
            self._dying_appliers[service].apply(records)
        except KilledError:
            return
        raise AssertionError("the consumer did not reach its commit")

    def state(self, service: str) -> dict[str, Any]:
        """Return all relevant data of a database, without empty tables."""
        with self._engines[service].connect() as connection:
            found: dict[str, Any] = connection.execute(_STATE[service]).scalar_one()
        return {name: value for name, value in found.items() if value}


def _killed_before_commit(sessions: sessionmaker[Session]) -> sessionmaker[Session]:
    """Make the process die before each commit of these sessions."""

    @event.listens_for(sessions, "before_commit")
    def die(_session: Session) -> None:
        raise KilledError

    return sessions


@contextmanager
def open_system(payments_url: str, orders_url: str, threads: Executor) -> Iterator[System]:
    """Open both services, and drop all log lines."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with ExitStack() as stack:
        stack.callback(structlog.configure, **before)
        urls = {"payments": payments_url, "orders": orders_url}
        clients = {
            service: stack.enter_context(open_app(service, url)).test_client()
            for service, url in urls.items()
        }
        system = System(urls, clients, threads)
        stack.callback(system.close)
        yield system
