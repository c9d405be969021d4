"""The consumer reads events from Kafka and applies each one once.

How it works: `Loop` calls `_poll_and_apply` again and again. One such step does this:

1. Connect to Kafka and join the consumer group, if necessary (`consumed_topics`, `kafka.offsets`).
2. Resume partitions whose wait is over (`paused_partitions`).
3. Poll records (`partition_reader`).
4. Apply them (`applier`): inbox rows, effects of handlers and dead letters, in one transaction.
   If the last owner of a partition died, apply its records in small groups (`careful_mode`).
5. Commit the offsets. If the process dies before this, Kafka delivers the records again, and the
   inbox recognizes them.

Threads: the consumer works in the main thread. kafka-python has a thread for heartbeats of the
group. The engine's daemon threads are listed in `runtime.threads`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog
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

from settle_outbox.consume.applier import APPLY_MAX_S, Applier
from settle_outbox.consume.careful_mode import CarefulApplier
from settle_outbox.consume.consumed_topics import ConsumedTopics
from settle_outbox.consume.failures import HandlerLimits, TransientDatabaseError
from settle_outbox.consume.handler.sessions import IDLE_MS, LOCK_WAIT_MS, make_handler_sessions
from settle_outbox.consume.partition_reader import PartitionReader
from settle_outbox.consume.paused_partitions import Pause, PausedPartitions
from settle_outbox.consume.repairs import REPAIR_SLICE_S, Repairs
from settle_outbox.kafka.clients import (
    MAX_POLL_INTERVAL_MS,
    SESSION_TIMEOUT_MS,
    make_admin,
    make_consumer,
)
from settle_outbox.kafka.offsets import OnRebalance, offsets_of
from settle_outbox.kafka.topics import close_quietly, is_embedded
from settle_outbox.runtime.failpoints import failpoint
from settle_outbox.runtime.health import Health
from settle_outbox.runtime.loop import DATABASE, Loop, LoopEvents
from settle_outbox.runtime.process import TRANSACTION_S, Backoff, OutageEvents
from settle_outbox.settings import LATEST
from settle_outbox.storage.partition_maintenance import Maintenance
from settle_outbox.storage.partitions import inbox_partitions

if TYPE_CHECKING:
    from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

    from settle_outbox.consume.partition_reader import Batch
    from settle_outbox.runtime.process import Stop
    from settle_outbox.service import Service
    from settle_outbox.settings import Settings

log = structlog.get_logger(__name__)

# Maximum time of a poll. After a SIGTERM, the consumer first finishes its poll and its batch.
POLL_MS = 500
COMMIT_TIMEOUT_MS = 5_000
CLOSE_TIMEOUT_MS = 3_000
# Interval at which a consumer looks for a topic that does not exist yet.
TOPIC_WAIT_S = 1.0
# Maximum time of a join on the embedded broker. A join takes half of SESSION_TIMEOUT_MS there, or
# up to 9 s after a member died. To end a join, the group is deleted with its offsets. Even if this
# happens too early, it is safe: records are only read again.
EMBEDDED_JOIN_TIMEOUT_S = 6.0
# Maximum time of a join on other brokers. The batch of another member can delay a join, normally by
# less than 10 s. A second join with a new client does not disturb that member. Without this limit,
# a lost response would block the consumer until MAX_POLL_INTERVAL_MS.
JOIN_TIMEOUT_S = 20.0
# Maximum delay until an operator's `resume` is noticed.
RESUME_CHECK_INTERVAL_S = 1.0
# Maximum delay until a request to repair a dead letter is noticed.
REPAIR_CHECK_INTERVAL_S = 1.0

if EMBEDDED_JOIN_TIMEOUT_S * 1000 <= SESSION_TIMEOUT_MS / 2:
    raise AssertionError("the embedded broker lets a joining member wait for half of its session")

# Maximum time between two polls: a batch whose last transaction begins at APPLY_MAX_S, then a
# repair and its answer.
_POLL_AGAIN_S = APPLY_MAX_S + REPAIR_SLICE_S + 2 * TRANSACTION_S + LOCK_WAIT_MS / 1000
if MAX_POLL_INTERVAL_MS <= _POLL_AGAIN_S * 1000:
    raise AssertionError("a consumer must poll again before it loses its partitions")

# Errors of a commit during a rebalance. Do not close the consumer then, because it joins the group
# again by itself.
_REBALANCING = (
    CommitFailedError,
    IllegalGenerationError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)

EVENTS = LoopEvents(
    started="consumer.started",
    stopped="consumer.stopped",
    broker=OutageEvents("consumer.broker_down", "consumer.broker_still_down", "consumer.broker_up"),
    database=OutageEvents(
        "consumer.database_down",
        "consumer.database_still_down",
        "consumer.database_up",
        refused="consumer.database_refused",
        still_refused="consumer.database_still_refused",
    ),
    unexpected=OutageEvents("consumer.loop_down", "consumer.loop_still_down", "consumer.loop_up"),
)

REPAIR_EVENTS = OutageEvents(
    "consumer.repairs_down",
    "consumer.repairs_still_down",
    "consumer.repairs_up",
    refused="consumer.repairs_refused",
    still_refused="consumer.repairs_still_refused",
)


class Consumer:
    """One member of a service's consumer group. There may be one for each partition.

    Args:
        service: the service, as `load_service` returns it.
        settings: of that service.
        stop: ends the loop after the current batch.
    """

    def __init__(self, service: Service, settings: Settings, stop: Stop) -> None:
        self._service = service
        self._group = settings.consumer_group
        self._settings = settings
        self._stop = stop
        self._engine, sessions = make_handler_sessions(service, settings)
        limits = HandlerLimits(
            pause_s=IDLE_MS / 1000,
            total_s=TRANSACTION_S,
            retry_attempts=settings.retry_attempts,
            brake_failures=settings.brake_failures,
        )
        self._health = Health(settings.health_dir, f"inbox-consumer-{service.name}")
        self._applier = Applier(service, sessions, limits, self._health.beat_again)
        self._careful_applier = CarefulApplier(
            self._applier, sessions, batch_limit=settings.consumer_batch
        )
        self._repairs = Repairs(
            service,
            sessions,
            retention_s=settings.inbox_retention_s,
            beat=self._health.beat_again,
        )
        self._repairs_backoff = Backoff(REPAIR_EVENTS)
        self._repairs_due_at = 0.0
        self._reader = PartitionReader()
        self._loop = Loop(
            EVENTS,
            service.name,
            stop=stop,
            health=self._health,
            engine=self._engine,
            maintenance=Maintenance(
                self._engine, inbox_partitions(settings.inbox_retention_s), self._health.beat_again
            ),
        )
        self._admin: KafkaAdminClient | None = None
        self._consumer: KafkaConsumer | None = None
        self._paused = PausedPartitions()
        self._resume_checked_at = 0.0
        self._joining_since: float | None = None
        self._is_embedded = False
        self._topics = ConsumedTopics(service, settings)

    def run(self) -> None:
        """Consume events until a stop is requested."""
        self._loop.run(self._poll_and_apply, self._disconnect)

    def _poll_and_apply(self) -> None:
        """Poll once, and apply the records."""
        self._repair_if_due()
        consumer = self._connect()
        if consumer is None:
            self._wait_for_topics()
            return
        self._paused.resume_due(consumer)
        self._resume_released(consumer)
        batch = self._reader.poll(
            consumer, timeout_ms=POLL_MS, max_records=self._settings.consumer_batch
        )
        if batch:
            self._apply_and_commit(consumer, batch)
        joined = self._has_joined(consumer)
        self._check_topics_if_due()
        self._loop.step_succeeded(*self._state(joined=joined))

    def _repair_if_due(self) -> None:
        """Carry out requests to repair dead letters. Kafka is not needed for that.

        Repairs take at most a fifth of the time, so that new events are applied meanwhile. If the
        database cannot be reached, the consumer still polls; see `_apply_and_commit`.
        """
        began = time.monotonic()
        if began < self._repairs_due_at:
            return
        try:
            self._repairs.carry_out_unclaimed()
        except SQLAlchemyError as error:
            self._engine.dispose()
            wait_s = self._repairs_backoff.failed(error)
        else:
            self._repairs_backoff.succeeded()
            wait_s = max(REPAIR_CHECK_INTERVAL_S, 4 * (time.monotonic() - began))
        self._repairs_due_at = time.monotonic() + wait_s

    def _apply_and_commit(self, consumer: KafkaConsumer, batch: Batch) -> None:
        """Apply a batch, and commit the offsets of the applied records.

        The partitions of the other records are paused and read again later. The consumer still
        polls meanwhile, so it keeps its partitions.
        """
        self._paused.pause_again(consumer, batch)
        try:
            pauses = self._careful_applier.apply(batch, consumer.highwater)
        except (SQLAlchemyError, TransientDatabaseError) as error:
            # Some records may be applied, and the inbox has those. Discard the connection, because
            # its session settings may be the cause.
            self._engine.dispose()
            wait_s = self._loop.database.failed(error)
            pauses = {
                partition: Pause(batch[partition][0].offset, wait_s, DATABASE, None)
                for partition in batch
            }
        else:
            self._loop.database.succeeded()
        failpoint("consumer.applied")
        self._commit(consumer, batch, pauses)
        self._paused.pause(consumer, pauses)
        failpoint("consumer.committed")

    def _commit(
        self, consumer: KafkaConsumer, batch: Batch, pauses: dict[TopicPartition, Pause]
    ) -> None:
        applied = {}
        for partition, records in batch.items():
            pause = pauses.get(partition)
            before = [record for record in records if pause is None or record.offset < pause.offset]
            if before:
                applied[partition] = before
        if not applied:
            return
        try:
            consumer.commit(offsets_of(applied, self._topics.ids), timeout_ms=COMMIT_TIMEOUT_MS)
        except _REBALANCING as error:
            # The next owner of the partitions reads these records again.
            log.debug("consumer.commit_refused", error=type(error).__name__)

    def _resume_released(self, consumer: KafkaConsumer) -> None:
        """Resume partitions whose subscription an operator or another consumer has released."""
        stopped = self._paused.subscriptions()
        if stopped and time.monotonic() - self._resume_checked_at >= RESUME_CHECK_INTERVAL_S:
            self._resume_checked_at = time.monotonic()
            self._paused.resume(consumer, stopped - self._applier.refresh_stopped())

    def _state(self, *, joined: bool) -> tuple[str, str]:
        """Return the state for the health file, and its detail."""
        if not joined:
            return "starting", "joining the group"
        stopped = self._paused.details(stopped=True)
        if stopped:
            return "stopped", "; ".join(stopped)
        waiting = self._paused.details(stopped=False)
        if unreadable := self._reader.describe_paused():
            waiting.append(unreadable)
        if waiting:
            return "waiting", "; ".join(waiting)
        return "ready", ""

    def _connect(self) -> KafkaConsumer | None:
        """Join the group, if necessary. Return None if none of the topics exists."""
        if self._consumer is None:
            admin = self._connect_admin()
            if not self._topics.find(admin):
                return None
            self._is_embedded = is_embedded(admin)
            self._topics.check_retention(admin)
            if self._settings.new_group_start == LATEST:
                self._topics.start_new_group_at_end(admin, self._engine)
            consumer = make_consumer(self._settings, self._group)
            self._consumer = consumer
            self._paused = PausedPartitions()
            listener = OnRebalance(
                lambda assigned: self._topics.skip_stale_offsets(
                    self._connect_admin(), consumer, assigned
                ),
                self._careful_applier.release,
            )
            consumer.subscribe(sorted(self._topics.ids), listener=listener)
            self._joining_since = None
        return self._consumer

    def _disconnect(self, error: Exception | None) -> None:
        """Leave the group, unless a database error is the reason.

        Records whose offsets are not committed are read again. The inbox has the applied ones.
        """
        if not isinstance(error, SQLAlchemyError):
            self._leave_group()

    def _leave_group(self) -> None:
        if self._consumer is not None:
            # Do this before `close`, after which another consumer can get the partitions.
            self._careful_applier.release()
            try:
                self._consumer.close(autocommit=False, timeout_ms=CLOSE_TIMEOUT_MS)
            except (KafkaError, OSError, RuntimeError) as error:
                log.debug("consumer.close_failed", error=str(error))
            self._consumer = None
        if self._admin is not None:
            close_quietly(self._admin)
            self._admin = None

    def _has_joined(self, consumer: KafkaConsumer) -> bool:
        """Return whether the consumer has joined its group. Retry a join that takes too long."""
        if consumer.group_metadata().state is MemberState.STABLE:
            self._joining_since = None
            return True
        now = time.monotonic()
        if self._joining_since is None:
            self._joining_since = now
        waited_s = now - self._joining_since
        if waited_s > JOIN_TIMEOUT_S or (
            self._is_embedded and waited_s > EMBEDDED_JOIN_TIMEOUT_S and self._delete_group()
        ):
            log.warning("consumer.join_stuck", waited_s=round(waited_s), action="join again")
            self._join_again()
        return False

    def _check_topics_if_due(self) -> None:
        """Join the group again if a topic was replaced, deleted or created."""
        if self._topics.is_due and self._topics.have_changed(self._connect_admin()):
            self._join_again()

    def _wait_for_topics(self) -> None:
        """Wait for the relays that create the topics."""
        missing = ", ".join(self._topics.missing)
        self._loop.step_succeeded("waiting", f"topic {missing} does not exist yet")
        self._stop.wait(TOPIC_WAIT_S)

    def _join_again(self) -> None:
        """Leave the group, so that the next step joins it with a new client.

        The embedded broker waits forever for members from before its restart, and for a member that
        died during a join. So the group is deleted there if it has no other member. This also
        deletes the group's offsets: records are read again, and the inbox recognizes them.
        """
        self._leave_group()
        if self._is_embedded:
            self._delete_group()

    def _delete_group(self) -> bool:
        """Delete the group. Return False if the broker refuses, because the group has members."""
        try:
            results = self._connect_admin().delete_groups([self._group])
        except BrokerResponseError:
            return False
        return bool(results.get(self._group) == "OK")

    def _connect_admin(self) -> KafkaAdminClient:
        if self._admin is None:
            self._admin = make_admin(self._settings, f"inbox-consumer-admin-{self._service.name}")
        return self._admin
