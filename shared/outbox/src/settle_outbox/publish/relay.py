"""The relay sends the events of an outbox to Kafka, in the order of each key.

How it works: `Loop` calls `_relay_or_wait` again and again. One such step does this:

1. Run the cleanup jobs of the service, if they are due.
2. Connect to Kafka, if necessary: create missing topics (`kafka.topics`), and queue the events
   of a replaced topic again (`lost_topics`).
3. In one short transaction (`pending`): lock some shards, read their oldest events, send them
   (`sender`), and mark those that Kafka acknowledged. Events that can never be sent go to
   ``outbox_refused`` (`refused_events`).
4. If nothing was pending, wait for a notification (`notifications.listen`) or the next poll.

Threads: the relay works in the main thread. kafka-python has a thread for the producer and one for
the admin client. The thread ``database-deadlines`` cuts a transaction that takes too long.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog
from kafka.errors import KafkaError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from settle_outbox.errors import describe_error
from settle_outbox.kafka.clients import make_admin
from settle_outbox.kafka.topics import close_quietly, ensure_topics, find_cluster
from settle_outbox.notifications.listen import Listener
from settle_outbox.publish.lost_topics import Destination, record_topics
from settle_outbox.publish.pending import lock_shards, mark_sent, read_pending
from settle_outbox.publish.refused_events import (
    RejectedEventSearch,
    mark_orphans_refused,
    mark_refused,
    mark_undeclared_refused,
)
from settle_outbox.publish.sender import REJECTIONS, SEND_TIMEOUT_MS, Sender
from settle_outbox.runtime.failpoints import failpoint
from settle_outbox.runtime.health import Health
from settle_outbox.runtime.loop import Loop, LoopEvents
from settle_outbox.runtime.process import TRANSACTION_S, Backoff, FatalError, OutageEvents
from settle_outbox.storage.database import make_engine
from settle_outbox.storage.partition_maintenance import Maintenance
from settle_outbox.storage.partitions import outbox_partitions
from settle_outbox.storage.sequences import check_sequences

if TYPE_CHECKING:
    from datetime import datetime

    from kafka import KafkaAdminClient
    from sqlalchemy import Engine

    from settle_outbox.runtime.process import Stop
    from settle_outbox.service import Service
    from settle_outbox.settings import Settings

log = structlog.get_logger(__name__)

# Maximum number of shards that one batch locks. Other relays can lock the rest.
SHARDS_PER_BATCH = 8
# PostgreSQL ends the transaction of a frozen relay after this time, which unlocks its shards.
LEASE_MS = 10_000
TOPIC_CHECK_INTERVAL_S = 5.0
CLEANUP_INTERVAL_S = 1.0

if LEASE_MS <= SEND_TIMEOUT_MS:
    raise AssertionError("a relay must lose its shards only after its producer has given up")

EVENTS = LoopEvents(
    started="relay.started",
    stopped="relay.stopped",
    broker=OutageEvents("relay.broker_down", "relay.broker_still_down", "relay.broker_up"),
    database=OutageEvents(
        "relay.database_down",
        "relay.database_still_down",
        "relay.database_up",
        refused="relay.database_refused",
        still_refused="relay.database_still_refused",
    ),
    unexpected=OutageEvents("relay.loop_down", "relay.loop_still_down", "relay.loop_up"),
)
_CLEANUP_EVENTS = OutageEvents("relay.cleanup_down", "relay.cleanup_still_down", "relay.cleanup_up")

_BEGIN = text(
    f"""
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET LOCAL idle_in_transaction_session_timeout = {LEASE_MS};
    SET LOCAL lock_timeout = 5000;
    SET LOCAL statement_timeout = 30000
    """
)


class ShardCountError(FatalError):
    """The number of shards in the database is inconsistent, or differs from OUTBOX_SHARDS."""


class Relay:
    """One relay of a service's outbox. Any number of them may run at the same time.

    Args:
        service: the service, as `load_service` returns it.
        settings: of that service.
        stop: ends the loop after the current batch.
    """

    def __init__(self, service: Service, settings: Settings, stop: Stop) -> None:
        self._service = service
        self._settings = settings
        self._stop = stop
        self._engine: Engine = make_engine(
            settings.database_url,
            application_name=f"outbox-relay {service.name}",
            pool_size=1,
            deadline_s=TRANSACTION_S,
        )
        self._listener = Listener(settings.database_url, stop)
        self._health = Health(settings.health_dir, f"outbox-relay-{service.name}")
        self._loop = Loop(
            EVENTS,
            service.name,
            stop=stop,
            health=self._health,
            engine=self._engine,
            maintenance=Maintenance(
                self._engine,
                outbox_partitions(settings.outbox_retention_s),
                self._health.beat_again,
            ),
            checks=(self._check_shard_count, check_sequences),
        )
        self._admin: KafkaAdminClient | None = None
        self._sender: Sender | None = None
        self._recorded_at: list[datetime] = []
        self._topics_checked_at = 0.0
        self._cleanup_due_at = 0.0
        self._cleanup_backoff = Backoff(_CLEANUP_EVENTS, traceback=True)
        self._search = RejectedEventSearch()

    def run(self) -> None:
        """Send events until a stop is requested.

        Raises:
            ShardCountError: the number of shards is wrong.
            ClusterLeftError: the outbox was moved to another Kafka cluster.
            SequenceBehindError: new events would overtake earlier ones.
        """
        self._loop.run(self._relay_or_wait, self._disconnect)

    def _relay_or_wait(self) -> None:
        """Send one batch. If there was none, wait for events."""
        self._clean_up_if_due()
        self._listener.ensure()
        relayed = self._relay_batch(self._connect())
        self._loop.database.succeeded()
        self._loop.step_succeeded()
        if not relayed:
            self._listener.wait(self._settings.relay_poll_s)
        self._check_topics_if_due()

    def _connect(self) -> Sender:
        """Connect to the broker and check the topics, if there is no usable sender."""
        if self._sender is not None and self._sender.stopped:
            # A broker ends idle connections, and all connections when it restarts.
            self._disconnect_broker()
        if self._sender is None:
            self._recorded_at = self._check_topics()
            self._sender = Sender(self._settings, self._service)
        return self._sender

    def _disconnect(self, error: Exception | None) -> None:
        """Close the connections that are useless after an error; with None, close all of them.

        The sender is always closed. After a database error, another relay may hold the shards. Then
        this producer must not send the records that it still has.
        """
        self._disconnect_broker()
        if not isinstance(error, KafkaError):
            self._listener.close()

    def _disconnect_broker(self) -> None:
        if self._sender is not None:
            self._sender.close()
            self._sender = None
        if self._admin is not None:
            close_quietly(self._admin)
            self._admin = None

    def _relay_batch(self, sender: Sender) -> int:
        """Send one batch. Its shards stay locked until the acknowledged events are marked.

        Returns:
            The number of events that were read.

        Raises:
            KafkaError: some events were not acknowledged, for another reason than a rejection. The
                acknowledged ones are marked.
        """
        with self._engine.begin() as connection:
            connection.execute(_BEGIN)
            shards = lock_shards(connection, 1 if self._search.is_on else SHARDS_PER_BATCH)
            if not shards:
                return 0
            limit = 1 if self._search.is_on else self._settings.relay_batch
            events = read_pending(connection, shards, limit, self._recorded_at)
            failpoint("relay.locked")
            mark_orphans_refused(connection, set(shards) - {event.shard for event in events})
            declared = mark_undeclared_refused(connection, self._service, events)
            sent = sender.send(declared)
            failpoint("relay.sent")
            mark_sent(connection, sent.acknowledged)
            for event, error in sent.unsendable.items():
                mark_refused(connection, event, describe_error(error))
            sendable = [event for event in declared if event not in sent.unsendable]
            self._search.batch_sent(connection, sendable, sent.error)
        failpoint("relay.marked")
        if sent.acknowledged:
            log.info(
                "relay.sent",
                events=len(sent.acknowledged),
                last=sent.acknowledged[-1].seq,
                requests=[event.requestid for event in sent.acknowledged if event.requestid],
            )
        # A rejected record is not an outage. The sender is closed, and `_connect` makes a new one.
        if sent.error is not None and not isinstance(sent.error, REJECTIONS):
            raise sent.error
        return len(events)

    def _check_topics_if_due(self) -> None:
        if time.monotonic() - self._topics_checked_at < TOPIC_CHECK_INTERVAL_S:
            return
        if self._check_topics() != self._recorded_at:
            # A new producer knows the current topics and partitions. The old one must send nothing.
            self._disconnect_broker()

    def _check_topics(self) -> list[datetime]:
        """Create missing topics. If a topic or the cluster was replaced, queue its events again.

        A replaced topic is empty, but its events are no longer pending. Without this step they
        would be lost.

        Returns:
            When each topic was recorded; see `read_pending`.

        Raises:
            ClusterLeftError: the outbox was moved to another Kafka cluster.
        """
        if self._admin is None:
            self._admin = make_admin(self._settings, f"outbox-relay-admin/{self._service.name}")
        topics = self._service.published_topics
        ids = ensure_topics(self._admin, topics, self._settings)
        destination = Destination(
            find_cluster(self._admin),
            # Some brokers return no ids. Then a replaced topic cannot be detected.
            {topic: topic_id for topic, topic_id in ids.items() if topic_id is not None},
            dict(zip(topics, self._service.aggregatetypes, strict=True)),
        )
        self._topics_checked_at = time.monotonic()
        window = timedelta(seconds=self._settings.replay_window_s)
        with self._engine.begin() as connection:
            connection.execute(_BEGIN)
            recorded = record_topics(connection, destination, window, self._on_replay_piece)
        for topic, queued in recorded.queued.items():
            log.warning("relay.topic_lost", topic=topic, queued_again=queued)
        return recorded.noted_at

    def _on_replay_piece(self) -> None:
        """Write a heartbeat during a replay, which may take long. Stop if that is requested."""
        self._health.beat("waiting", "events are queued again for a topic that was replaced")
        self._stop.raise_if_requested()

    def _clean_up_if_due(self) -> None:
        """Run the cleanup jobs. Each removes a limited number of rows, so no event waits long."""
        if time.monotonic() < self._cleanup_due_at:
            return
        try:
            has_more = [clean_up(self._engine) for clean_up in self._service.cleanup_jobs]
        except SQLAlchemyError:
            raise
        except Exception as error:  # noqa: BLE001 - logged; delivery does not depend on it
            self._cleanup_due_at = time.monotonic() + self._cleanup_backoff.failed(error)
            return
        self._cleanup_backoff.succeeded()
        if not any(has_more):
            self._cleanup_due_at = time.monotonic() + CLEANUP_INTERVAL_S

    def _check_shard_count(self, engine: Engine) -> None:
        with engine.connect() as connection:
            shards, rows = connection.execute(
                text("SELECT outbox_shard_count(), (SELECT count(*) FROM outbox_shards)")
            ).one()
        expected = self._settings.outbox_shards
        if rows != shards:
            raise ShardCountError(
                f"The database of {self._service.name} is inconsistent: outbox_shard_count() "
                f"returns {shards}, but outbox_shards has {rows} rows."
            )
        if expected is not None and expected != shards:
            raise ShardCountError(
                f"OUTBOX_SHARDS is {expected}, but the database of {self._service.name} has "
                f"{shards} shards. Remove the setting, or correct it."
            )
