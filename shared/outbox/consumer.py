"""The consumer: it takes events from the broker into the inbox and has them applied."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import structlog
from kafka import OffsetAndMetadata
from kafka.errors import (
    BrokerResponseError,
    CommitFailedError,
    IllegalGenerationError,
    KafkaError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)
from kafka.structs import MemberState
from sqlalchemy.exc import SQLAlchemyError

from shared.database import make_engine, make_sessions
from shared.failpoints import failpoint
from shared.outbox.applier import Applier
from shared.outbox.clients import make_admin, make_consumer
from shared.outbox.health import Health
from shared.outbox.partitions import Maintenance, inbox_partitions
from shared.outbox.process import TRANSACTION_S, Backoff, FatalError, Stop
from shared.outbox.topics import close_quietly, ensure_topics
from shared.outbox.wakeup import notify_after_commit

if TYPE_CHECKING:
    from uuid import UUID

    from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
    from kafka.consumer.fetcher import ConsumerRecord
    from sqlalchemy import Engine

    from shared.outbox.service import Service
    from shared.settings import Settings

log = structlog.get_logger(__name__)

# Also how long a SIGTERM may go unnoticed.
POLL_MS = 500
COMMIT_TIMEOUT_MS = 5_000
CLOSE_TIMEOUT_MS = 3_000
TOPIC_CHECK_S = 5.0
# On the embedded broker, joining takes half of the session's time-out (clients.py). After a member
# died it takes up to 9 s; to end that early costs a second reading of the topic, no more.
JOIN_STUCK_S = 6.0
# A consumer that is frozen in a transaction loses it after this time: whoever was given its
# partitions waits for the inbox rows in it, and deposits wait for the accounts.
IDLE_MS = 10_000

# What a commit ends with while the group is giving its partitions out anew. The consumer must not
# be closed for it: it is joining.
_REFUSED = (
    CommitFailedError,
    IllegalGenerationError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)

_Batch = dict["TopicPartition", list["ConsumerRecord"]]


class Consumer:
    """One consumer of a service's group. Any number may run, up to one a partition.

    Args:
        service: whose inbox and handlers; its name is the group's.
        settings: of that service's process.
        stop: ends it, the batch under way finished.
    """

    def __init__(self, service: Service, settings: Settings, stop: Stop) -> None:
        self._service = service
        self._settings = settings
        self._stop = stop
        self._engine: Engine = make_engine(
            settings.database_url,
            application_name=f"inbox-consumer {service.name}",
            pool_size=1,
            session_settings={"idle_in_transaction_session_timeout": str(IDLE_MS)},
            deadline_s=TRANSACTION_S,
        )
        sessions = make_sessions(self._engine)
        notify_after_commit(sessions, settings.database_url)
        self._applier = Applier(service, sessions)
        self._health = Health(settings.health_dir, f"inbox-consumer-{service.name}")
        self._broker = Backoff("consumer.broker")
        self._database = Backoff("consumer.database")
        self._loop = Backoff("consumer.loop", traceback=True)
        self._admin: KafkaAdminClient | None = None
        self._consumer: KafkaConsumer | None = None
        self._joining_since: float | None = None
        self._topic_ids: dict[str, UUID | None] = {}
        self._topics_checked_at = 0.0
        self._maintenance = Maintenance(
            self._engine,
            inbox_partitions(settings.inbox_retention_s),
            self._health.repeat,
        )

    def run(self) -> None:
        """Consume until asked to stop."""
        log.info("consumer.started", service=self._service.name, pid=os.getpid())
        self._health.beat("starting")
        try:
            while not self._stop.requested:
                self._turn()
        finally:
            self._disconnect()
            self._engine.dispose()
        self._health.remove()
        log.info("consumer.stopped", service=self._service.name)

    def _turn(self) -> None:
        """One poll and what it brought. Trouble with a neighbour is waited out."""
        try:
            self._maintain_if_due()
            consumer = self._connect()
            batch: _Batch = consumer.poll(
                timeout_ms=POLL_MS, max_records=self._settings.consumer_batch
            )
            if batch:
                self._take(consumer, batch)
            joined = self._has_joined(consumer)
            self._check_topics_if_due()
            self._broker.succeeded()
            self._loop.succeeded()
            trouble = self._maintenance.trouble
            self._health.beat(*("ready", trouble) if joined else ("starting", "joining the group"))
        except KafkaError as error:
            # Whatever was read and not committed is read again; the inbox knows it.
            self._disconnect()
            self._pause(self._broker, error, "broker")
        except SQLAlchemyError as error:
            self._pause(self._database, error, "database")
        except FatalError:
            raise
        except Exception as error:  # noqa: BLE001 - logged; a defect must not end consumption
            # What was read and not committed is read again.
            self._disconnect()
            self._pause(self._loop, error, "an unexpected error is logged")

    def _pause(self, backoff: Backoff, error: Exception, neighbour: str) -> None:
        self._health.beat("waiting", neighbour)
        self._stop.wait(backoff.failed(error))

    def _take(self, consumer: KafkaConsumer, batch: _Batch) -> None:
        """Apply a batch, however long the database is away, then commit its offsets."""
        records = [record for partition in batch.values() for record in partition]
        if not self._apply(records):
            return
        failpoint("consumer.applied")
        offsets = {
            partition: OffsetAndMetadata(
                batch[partition][-1].offset + 1, "", batch[partition][-1].leader_epoch
            )
            for partition in batch
        }
        try:
            consumer.commit(offsets, timeout_ms=COMMIT_TIMEOUT_MS)
        except _REFUSED as error:
            # The group is giving the partitions out anew; whoever gets them reads these again.
            log.debug("consumer.commit_refused", error=type(error).__name__)
        failpoint("consumer.committed")

    def _apply(self, records: list[ConsumerRecord]) -> bool:
        """Apply records; False when asked to stop before it could be done.

        Heartbeats go on meanwhile, on the client's own thread. Should the database be away for
        longer than max_poll_interval_ms, another member is given the records; the inbox lets only
        one of the two apply each.
        """
        while not self._stop.requested:
            try:
                self._applier.apply(records)
            except SQLAlchemyError as error:
                self._pause(self._database, error, "database")
                continue
            self._database.succeeded()
            return True
        return False

    def _connect(self) -> KafkaConsumer:
        if self._consumer is None:
            self._topic_ids = self._ensure_topics()
            consumer = make_consumer(self._settings, self._service.name)
            consumer.subscribe(list(self._service.consumed_topics))
            self._consumer = consumer
            self._joining_since = None
        return self._consumer

    def _disconnect(self) -> None:
        if self._consumer is not None:
            try:
                self._consumer.close(autocommit=False, timeout_ms=CLOSE_TIMEOUT_MS)
            except (KafkaError, OSError, RuntimeError) as error:
                log.debug("consumer.close_failed", error=str(error))
            self._consumer = None
        if self._admin is not None:
            close_quietly(self._admin)
            self._admin = None

    def _has_joined(self, consumer: KafkaConsumer) -> bool:
        """Whether the group has taken this consumer in; when that never ends, it is ended."""
        if consumer.group_metadata().state is MemberState.STABLE:
            self._joining_since = None
            return True
        now = time.monotonic()
        if self._joining_since is None:
            self._joining_since = now
        elif now - self._joining_since > JOIN_STUCK_S:
            self._joining_since = now
            # Apache Kafka refuses, for this consumer is a member: another may just be slow.
            if self._delete_group():
                log.warning("consumer.join_stuck", instead="joining anew")
                self._join_anew()
        return False

    def _check_topics_if_due(self) -> None:
        """Join anew when a topic is not the one it was: its offsets mean something else now."""
        if time.monotonic() - self._topics_checked_at < TOPIC_CHECK_S:
            return
        ids = self._ensure_topics()
        if ids != self._topic_ids:
            log.warning("consumer.topic_lost", topics=sorted(ids), instead="joining anew")
            self._join_anew()

    def _join_anew(self) -> None:
        """Leave the group, and have the broker forget it where nobody else is in it.

        The embedded broker waits for ever for members of before it came back empty, and for one
        that ended while it joined. With a group go its offsets: records come again, and the inbox
        drops what it knows.
        """
        self._disconnect()
        self._delete_group()

    def _delete_group(self) -> bool:
        """Whether the broker forgot the group; none does that has members (NON_EMPTY_GROUP)."""
        try:
            answer = self._administration().delete_groups([self._service.name])
        except BrokerResponseError:
            return False
        return bool(answer.get(self._service.name) == "OK")

    def _ensure_topics(self) -> dict[str, UUID | None]:
        self._topics_checked_at = time.monotonic()
        return ensure_topics(self._administration(), self._service.consumed_topics, self._settings)

    def _administration(self) -> KafkaAdminClient:
        if self._admin is None:
            self._admin = make_admin(self._settings, f"inbox-consumer-admin-{self._service.name}")
        return self._admin

    def _maintain_if_due(self) -> None:
        if self._maintenance.is_due:
            self._maintenance.run()
            self._database.succeeded()
