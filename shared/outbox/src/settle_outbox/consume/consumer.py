"""The consumer: it reads events from the broker and applies them through the inbox."""

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

from settle_outbox.consume.applier import Applier
from settle_outbox.consume.consumed_topics import ConsumedTopics
from settle_outbox.consume.failures import HandlerLimits, TransientDatabaseError
from settle_outbox.consume.handler_guard import GUARDABLE
from settle_outbox.consume.partition_reader import PartitionReader
from settle_outbox.consume.paused_partitions import Pause, PausedPartitions
from settle_outbox.kafka.clients import make_admin, make_consumer
from settle_outbox.kafka.offsets import OnAssignment, offsets_of
from settle_outbox.kafka.topics import close_quietly, is_embedded
from settle_outbox.notifications.notify import notify_after_commit
from settle_outbox.runtime.failpoints import failpoint
from settle_outbox.runtime.health import Health
from settle_outbox.runtime.loop import DATABASE, Loop, LoopEvents
from settle_outbox.runtime.process import TRANSACTION_S, OutageEvents
from settle_outbox.settings import LATEST
from settle_outbox.storage.database import make_engine, make_sessions
from settle_outbox.storage.partition_maintenance import Maintenance
from settle_outbox.storage.partitions import inbox_partitions

if TYPE_CHECKING:
    from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
    from kafka.consumer.fetcher import ConsumerRecord
    from sqlalchemy import Engine

    from settle_outbox.runtime.process import Stop
    from settle_outbox.service import Service
    from settle_outbox.settings import Settings

log = structlog.get_logger(__name__)

# Also how long a SIGTERM may go unnoticed.
POLL_MS = 500
COMMIT_TIMEOUT_MS = 5_000
CLOSE_TIMEOUT_MS = 3_000
# How often a consumer looks for a topic that does not exist yet.
TOPIC_WAIT_S = 1.0
# On the embedded broker a join takes half of SESSION_TIMEOUT_MS, or up to 9 s after a member died.
# To end a join too early is safe: the topic is only read again.
JOIN_STUCK_S = 6.0
# Another member's batch can delay a join on any broker, normally by less than 10 s. Connecting
# again does not disturb that member. Without this limit, a lost answer would block the consumer
# until MAX_POLL_INTERVAL_MS. kafka-python was also seen to stall when it joined again after
# partitions were added.
JOIN_TIMEOUT_S = 20.0
# PostgreSQL ends the transaction of a frozen consumer after this time. Until then, the new consumer
# of its partitions waits for its inbox rows, and deposits wait for its account rows.
IDLE_MS = 10_000
# The longest wait for a row lock. After that the batch is tried again.
LOCK_WAIT_MS = 30_000
# How soon an operator's `resume` is noticed.
RESUME_CHECK_S = 1.0

# Errors of a commit during a rebalance. The consumer must not be closed: it is rejoining the group.
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

_Batch = dict["TopicPartition", list["ConsumerRecord"]]


class Consumer:
    """One consumer of a service's group. Any number may run, up to one a partition.

    Args:
        service: whose inbox and handlers.
        settings: of that service's process.
        stop: ends the loop after the current batch.
    """

    def __init__(self, service: Service, settings: Settings, stop: Stop) -> None:
        self._service = service
        self._group = settings.consumer_group
        self._settings = settings
        self._stop = stop
        self._engine: Engine = make_engine(
            settings.database_url,
            application_name=f"inbox-consumer {service.name}",
            pool_size=1,
            session_settings={
                "idle_in_transaction_session_timeout": str(IDLE_MS),
                "lock_timeout": str(LOCK_WAIT_MS),
            },
            deadline_s=TRANSACTION_S,
            driver_options=GUARDABLE,
        )
        sessions = make_sessions(self._engine, aggregatetypes=service.aggregatetypes)
        # A session that a handler goes on using after its end must not take the connection.
        sessions.configure(close_resets_only=False)
        notify_after_commit(sessions, settings.database_url)
        limits = HandlerLimits(
            pause_s=IDLE_MS / 1000,
            total_s=TRANSACTION_S,
            retry_attempts=settings.retry_attempts,
            brake_failures=settings.brake_failures,
        )
        self._health = Health(settings.health_dir, f"inbox-consumer-{service.name}")
        self._applier = Applier(service, sessions, limits, self._health.beat_again)
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
        self._held = PausedPartitions()
        self._stops_checked_at = 0.0
        self._joining_since: float | None = None
        self._is_embedded = False
        self._topics = ConsumedTopics(service, settings)

    def run(self) -> None:
        """Consume until asked to stop."""
        self._loop.run(self._poll_and_apply, self._disconnect)

    def _poll_and_apply(self) -> None:
        """Poll once, and apply the records that come."""
        consumer = self._connect()
        if consumer is None:
            self._wait_for_topics()
            return
        self._held.resume_due(consumer)
        self._release_resumed(consumer)
        batch: _Batch = self._reader.poll(
            consumer, timeout_ms=POLL_MS, max_records=self._settings.consumer_batch
        )
        if batch:
            self._apply_and_commit(consumer, batch)
        joined = self._has_joined(consumer)
        self._check_topics_if_due()
        self._loop.step_succeeded(*self._state(joined=joined))

    def _apply_and_commit(self, consumer: KafkaConsumer, batch: _Batch) -> None:
        """Apply a batch, then commit the offsets of what was applied.

        What cannot be applied now is held: its partition is paused and read again later. Meanwhile
        the consumer goes on polling, and so keeps its partitions.
        """
        self._held.pause_again(consumer, batch)
        records = [record for partition in batch.values() for record in partition]
        try:
            held = self._applier.apply(records)
        except (SQLAlchemyError, TransientDatabaseError) as error:
            # Part of the records may be applied; the inbox knows which. A session setting that a
            # handler left behind, or that was changed since, must not fail the next attempt.
            self._engine.dispose()
            wait_s = self._loop.database.failed(error)
            held = {place: Pause(batch[place][0].offset, wait_s, DATABASE, None) for place in batch}
        else:
            self._loop.database.succeeded()
        failpoint("consumer.applied")
        self._commit(consumer, batch, held)
        self._held.hold(consumer, held)
        failpoint("consumer.committed")

    def _commit(
        self, consumer: KafkaConsumer, batch: _Batch, held: dict[TopicPartition, Pause]
    ) -> None:
        done = {}
        for place, records in batch.items():
            wait = held.get(place)
            applied = [each for each in records if wait is None or each.offset < wait.offset]
            if applied:
                done[place] = applied
        if not done:
            return
        try:
            consumer.commit(offsets_of(done, self._topics.ids), timeout_ms=COMMIT_TIMEOUT_MS)
        except _REBALANCING as error:
            # A rebalance is running. The new owner reads these records again.
            log.debug("consumer.commit_refused", error=type(error).__name__)

    def _release_resumed(self, consumer: KafkaConsumer) -> None:
        """Go on at once with subscriptions that an operator, or another consumer, released."""
        waiting = self._held.subscriptions()
        if waiting and time.monotonic() - self._stops_checked_at >= RESUME_CHECK_S:
            self._stops_checked_at = time.monotonic()
            self._held.release(consumer, waiting - self._applier.refresh_stopped())

    def _state(self, *, joined: bool) -> tuple[str, str]:
        """Return the state for the process's health, and its detail."""
        if not joined:
            return "starting", "joining the group"
        stopped = self._held.details(stopped=True)
        if stopped:
            return "stopped", "; ".join(stopped)
        waiting = self._held.details(stopped=False)
        if unreadable := self._reader.describe_paused():
            waiting.append(unreadable)
        if waiting:
            return "waiting", "; ".join(waiting)
        return "ready", ""

    def _connect(self) -> KafkaConsumer | None:
        """Join the group. Return None while none of the topics exists."""
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
            self._held = PausedPartitions()
            listener = OnAssignment(
                lambda assigned: self._topics.skip_stale_offsets(
                    self._connect_admin(), consumer, assigned
                )
            )
            consumer.subscribe(sorted(self._topics.ids), listener=listener)
            self._joining_since = None
        return self._consumer

    def _disconnect(self, error: Exception | None) -> None:
        """Leave the group after an error, unless it is of the database; None always leaves it.

        Records that were read and not committed are read again; the inbox knows those it applied.
        """
        if not isinstance(error, SQLAlchemyError):
            self._leave_group()

    def _leave_group(self) -> None:
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
        """Return whether the consumer is a member of its group; end a join that takes too long."""
        if consumer.group_metadata().state is MemberState.STABLE:
            self._joining_since = None
            return True
        now = time.monotonic()
        if self._joining_since is None:
            self._joining_since = now
        waited_s = now - self._joining_since
        if waited_s > JOIN_TIMEOUT_S or (
            self._is_embedded and waited_s > JOIN_STUCK_S and self._delete_group()
        ):
            log.warning("consumer.join_stuck", waited_s=round(waited_s), action="join again")
            self._join_again()
        return False

    def _check_topics_if_due(self) -> None:
        """Join again when a topic was replaced, is gone, or has come into being."""
        if self._topics.is_due and self._topics.have_changed(self._connect_admin()):
            self._join_again()

    def _wait_for_topics(self) -> None:
        """Wait a moment for the services that publish the topics to create them."""
        missing = ", ".join(self._topics.missing)
        self._loop.step_succeeded("waiting", f"topic {missing} does not exist yet")
        self._stop.wait(TOPIC_WAIT_S)

    def _join_again(self) -> None:
        """Leave the group and join it with a new client, which holds no records.

        After a restart, the embedded broker waits forever for its old members, and for a member
        that died while joining. So the group is deleted there if it has no other member. Its
        offsets go with it: records come again, and the inbox drops those that it knows.
        """
        self._leave_group()
        if self._is_embedded:
            self._delete_group()

    def _delete_group(self) -> bool:
        """Delete the group; return False when the broker refuses, since it has members."""
        try:
            answer = self._connect_admin().delete_groups([self._group])
        except BrokerResponseError:
            return False
        return bool(answer.get(self._group) == "OK")

    def _connect_admin(self) -> KafkaAdminClient:
        if self._admin is None:
            self._admin = make_admin(self._settings, f"inbox-consumer-admin-{self._service.name}")
        return self._admin
