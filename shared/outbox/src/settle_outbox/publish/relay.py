"""The relay: it takes events from the outbox to the broker, in order, however often it dies."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog
from kafka.errors import KafkaError
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from settle_outbox.errors import SettleError
from settle_outbox.kafka.clients import make_admin
from settle_outbox.kafka.topics import close_quietly, ensure_topics, find_cluster
from settle_outbox.notifications.listen import Listener
from settle_outbox.publish.lost_topics import Destination, note_topics
from settle_outbox.publish.pending import (
    lock_shards,
    mark_sent,
    read_pending,
    refuse,
    refuse_orphans,
)
from settle_outbox.publish.sender import PERMANENT, Sender
from settle_outbox.runtime.failpoints import failpoint
from settle_outbox.runtime.health import Health
from settle_outbox.runtime.process import TRANSACTION_S, Backoff, FatalError, Stop
from settle_outbox.storage.database import make_engine
from settle_outbox.storage.partitions import Maintenance, outbox_partitions
from settle_outbox.storage.sequences import check_sequences

if TYPE_CHECKING:
    from datetime import datetime

    from kafka import KafkaAdminClient
    from sqlalchemy import Engine

    from settle_outbox.publish.pending import PendingEvent
    from settle_outbox.service import Service
    from settle_outbox.settings import Settings

log = structlog.get_logger(__name__)

# Of the shards with events, so many at once; the others are left to other relays.
SHARDS_PER_BATCH = 8
# A relay that is frozen in a transaction loses it, and its shards, after this time.
LEASE_MS = 10_000
TOPIC_CHECK_S = 5.0
EXPIRY_S = 1.0

_BEGIN = text(
    f"""
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET LOCAL idle_in_transaction_session_timeout = {LEASE_MS};
    SET LOCAL lock_timeout = 5000;
    SET LOCAL statement_timeout = 30000
    """
)


class ShardCountError(FatalError):
    """The setting OUTBOX_SHARDS and the database disagree."""


class _ReplayStoppedError(SettleError):
    """The relay was asked to stop while it put events in line again."""


class Relay:
    """One relay of a service's outbox. Any number may run at once.

    Args:
        service: whose outbox.
        settings: of that service's process.
        stop: ends it, the batch under way finished.
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
        self._broker = Backoff("relay.broker")
        self._database = Backoff("relay.database")
        self._loop = Backoff("relay.loop", traceback=True)
        self._admin: KafkaAdminClient | None = None
        self._sender: Sender | None = None
        self._noted_at: list[datetime] = []
        self._topics_checked_at = 0.0
        self._maintenance = Maintenance(
            self._engine,
            outbox_partitions(settings.outbox_retention_s),
            self._health.repeat,
        )
        self._expire_at = 0.0
        self._singly = 0

    def run(self) -> None:
        """Relay until asked to stop.

        Raises:
            ShardCountError: OUTBOX_SHARDS is set, and is not what the database has.
            ClusterLeftError: the outbox was moved to another Kafka cluster.
            SequenceBehindError: new events would overtake earlier ones.
        """
        log.info("relay.started", service=self._service.name, pid=os.getpid())
        self._health.beat("starting")
        try:
            while not self._stop.requested:
                self._turn()
        finally:
            self._disconnect()
            self._listener.close()
            self._engine.dispose()
        self._health.remove()
        log.info("relay.stopped", service=self._service.name)

    def _turn(self) -> None:
        """One batch, or one wait. Trouble with a neighbour is waited out, outside transactions."""
        try:
            self._maintain_if_due()
            self._expire_if_due()
            self._listener.ensure()
            sender = self._connect()
            relayed = self._relay_batch(sender)
            self._database.succeeded()
            self._broker.succeeded()
            self._loop.succeeded()
            self._health.beat("ready", self._maintenance.trouble)
            if not relayed:
                self._listener.wait(self._settings.relay_poll_s)
            self._check_topics_if_due()
        except KafkaError as error:
            self._disconnect()
            self._pause(self._broker, error, "broker")
        except SQLAlchemyError as error:
            # The transaction, and with it the shards, may be another's by now: what this
            # producer still holds must not be sent.
            self._disconnect()
            # The next server may be another, or the same with other settings. This one's listener
            # and session would not know.
            self._engine.dispose()
            self._listener.close()
            self._pause(self._database, error, "database")
        except _ReplayStoppedError:
            self._disconnect()
        except FatalError:
            raise
        except Exception as error:  # noqa: BLE001 - logged; a defect must not end delivery
            self._disconnect()
            self._listener.close()
            self._pause(self._loop, error, "an unexpected error is logged")

    def _pause(self, backoff: Backoff, error: Exception, neighbour: str) -> None:
        self._health.beat("waiting", neighbour)
        self._stop.wait(backoff.failed(error))

    def _connect(self) -> Sender:
        """Reach the broker, see to its topics, and only then take up sending."""
        if self._sender is not None and self._sender.stopped:
            # A broker ends connections that are idle, and when it restarts.
            self._disconnect()
        if self._sender is None:
            self._noted_at = self._check_topics()
            self._sender = Sender(self._settings, self._service.source)
        return self._sender

    def _disconnect(self) -> None:
        if self._sender is not None:
            self._sender.close()
            self._sender = None
        if self._admin is not None:
            close_quietly(self._admin)
            self._admin = None

    def _relay_batch(self, sender: Sender) -> int:
        """Send one batch; the shards are held from before the reading to after the marking.

        Returns:
            How many events it found.

        Raises:
            KafkaError: some were not acknowledged; those that were are marked.
        """
        with self._engine.begin() as connection:
            connection.execute(_BEGIN)
            shards = lock_shards(connection, 1 if self._singly else SHARDS_PER_BATCH)
            if not shards:
                return 0
            most = 1 if self._singly else self._settings.relay_batch
            events = read_pending(connection, shards, most, self._noted_at)
            failpoint("relay.locked")
            self._refuse_orphans(connection, set(shards) - {event.shard for event in events})
            declared = self._refuse_undeclared(connection, events)
            sent = sender.send(declared)
            failpoint("relay.sent")
            mark_sent(connection, sent.acknowledged)
            for event, error in sent.unsendable.items():
                _refuse(connection, event, f"{type(error).__name__}: {error}")
            tried = [event for event in declared if event not in sent.unsendable]
            self._look_for_refused(connection, tried, sent.error)
        failpoint("relay.marked")
        if sent.acknowledged:
            log.info(
                "relay.sent",
                events=len(sent.acknowledged),
                last=sent.acknowledged[-1].seq,
                requests=[event.requestid for event in sent.acknowledged if event.requestid],
            )
        # After a refusal the broker itself is well: only the sender is made anew.
        if sent.error is not None and not isinstance(sent.error, PERMANENT):
            raise sent.error
        return len(events)

    def _look_for_refused(
        self, connection: Connection, events: list[PendingEvent], error: Exception | None
    ) -> None:
        """Find the event that the broker will never take.

        A broker may refuse a whole batch for one record; so the events are sent singly for a
        while, and only one that is refused when alone is given up.
        """
        self._singly = max(0, self._singly - 1)
        if not isinstance(error, PERMANENT):
            return
        if len(events) > 1:
            self._singly = len(events)
            return
        (event,) = events
        _refuse(connection, event, f"{type(error).__name__}: {error}")

    def _refuse_orphans(self, connection: Connection, shards: set[int]) -> None:
        """Give up what is in line in shards without readable events, if its events are gone."""
        count = refuse_orphans(connection, sorted(shards)) if shards else 0
        if count:
            log.error("relay.orphans_refused", events=count)

    def _refuse_undeclared(
        self, connection: Connection, events: list[PendingEvent]
    ) -> list[PendingEvent]:
        """Refuse the events of aggregatetypes that the service does not declare.

        Their topics do not exist, so each would hold up all events, as if the broker were down.

        Returns:
            The other events.
        """
        declared = []
        for event in events:
            if event.aggregatetype in self._service.aggregatetypes:
                declared.append(event)
            else:
                _refuse(
                    connection,
                    event,
                    f"{self._service.name} does not declare the aggregatetype"
                    f" {event.aggregatetype!r}; it declares:"
                    f" {', '.join(self._service.aggregatetypes) or 'none'}.",
                )
        return declared

    def _check_topics_if_due(self) -> None:
        if time.monotonic() - self._topics_checked_at < TOPIC_CHECK_S:
            return
        if self._check_topics() != self._noted_at:
            # Only a new producer knows the topic's new partitions. This one must send no more.
            self._disconnect()

    def _check_topics(self) -> list[datetime]:
        """Create missing topics. If a topic or the cluster was replaced, send the events again.

        Otherwise events would stay unsent that are noted as sent.

        Returns:
            When the topics were noted; see `read_pending`.

        Raises:
            ClusterLeftError: the outbox was moved to another Kafka cluster.
        """
        if self._admin is None:
            self._admin = make_admin(self._settings, f"outbox-relay-admin/{self._service.name}")
        topics = self._service.published_topics
        ids = ensure_topics(self._admin, topics, self._settings)
        destination = Destination(
            find_cluster(self._admin),
            # A broker that gives no ids cannot show that a topic was replaced.
            {topic: topic_id for topic, topic_id in ids.items() if topic_id is not None},
            dict(zip(topics, self._service.aggregatetypes, strict=True)),
        )
        self._topics_checked_at = time.monotonic()
        window = timedelta(seconds=self._settings.replay_window_s)
        with self._engine.begin() as connection:
            connection.execute(_BEGIN)
            noted = note_topics(connection, destination, window, self._on_replay_piece)
        for topic, queued in noted.queued.items():
            log.warning("relay.topic_lost", topic=topic, queued_again=queued)
        return noted.noted_at

    def _on_replay_piece(self) -> None:
        """Show that the process is alive, however long a replay takes, and stop when asked to."""
        self._health.beat("waiting", "events are put in line again")
        if self._stop.requested:
            raise _ReplayStoppedError

    def _maintain_if_due(self) -> None:
        if self._maintenance.is_due:
            self._check_shard_count()
            check_sequences(self._engine)
            self._maintenance.run()

    def _expire_if_due(self) -> None:
        """Have the service's old rows removed, a piece a turn, so that no event waits long."""
        if time.monotonic() < self._expire_at:
            return
        more = [expire(self._engine, self._settings) for expire in self._service.expiries]
        if not any(more):
            self._expire_at = time.monotonic() + EXPIRY_S

    def _check_shard_count(self) -> None:
        with self._engine.connect() as connection:
            shards, rows = connection.execute(
                text("SELECT outbox_shard_count(), (SELECT count(*) FROM outbox_shards)")
            ).one()
        expected = self._settings.outbox_shards
        if rows != shards:
            raise ShardCountError(
                f"The database of {self._service.name} is inconsistent: outbox_shard_count() is "
                f"{shards}, but outbox_shards has {rows} rows."
            )
        if expected is not None and expected != shards:
            raise ShardCountError(
                f"OUTBOX_SHARDS is {expected}, but the database of {self._service.name} has "
                f"{shards} shards. Remove the setting, or correct it."
            )


def _refuse(connection: Connection, event: PendingEvent, reason: str) -> None:
    """Give up an event that can never be sent, and log it."""
    refuse(connection, event, reason)
    log.error(
        "relay.refused",
        id=str(event.id),
        seq=event.seq,
        type=event.type,
        requestid=event.requestid,
        error=reason,
    )
