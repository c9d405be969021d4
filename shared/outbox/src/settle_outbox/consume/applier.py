"""Apply records, each event exactly once, even if the handler fails for some of them.

All records that a poll returns are tried in one transaction (`batch_transaction`). If the handler
fails, the batch is split into halves until one event fails alone. `failures` decides about that
event: it becomes a dead letter, waits for another attempt, or stops its subscription. In the last
two cases, the partition waits at this event. All other records are applied.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from kafka import TopicPartition
from sqlalchemy.exc import SQLAlchemyError

from settle_outbox.consume.batch_transaction import (
    Batch,
    BatchTransaction,
    HandlerFailedError,
    SubscriptionStoppedError,
)
from settle_outbox.consume.failures import (
    FailureHandling,
    HandlerLimits,
    TransientDatabaseError,
)
from settle_outbox.consume.paused_partitions import Pause
from settle_outbox.consume.records import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from kafka.consumer.fetcher import ConsumerRecord
    from sqlalchemy.orm import Session, sessionmaker

    from settle_outbox.consume.circuit_breaker import SubscriptionKey
    from settle_outbox.consume.failures import ProcessDiedError
    from settle_outbox.consume.records import Parsed
    from settle_outbox.service import Service

# After this time, the rest of the records waits for the next poll.
APPLY_MAX_S = 60.0


class Applier:
    """Applies records to a service's database.

    Args:
        service: the service whose handlers are called.
        sessions: makes sessions of the service's database. Their SQLAlchemy engine must have the
            options `handler.guard.GUARDABLE`.
        limits: of the handlers.
        beat: writes a heartbeat. It is called before each transaction, and by another thread while
            a handler runs within its limits.
    """

    def __init__(
        self,
        service: Service,
        sessions: sessionmaker[Session],
        limits: HandlerLimits,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._beat = beat
        self._transaction = BatchTransaction(sessions, limits, beat)
        self._failures = FailureHandling(sessions, limits)
        self._subscriptions = {
            subscription.key: subscription for subscription in service.subscriptions
        }

    def apply(
        self, records: Iterable[ConsumerRecord], deadline: float | None = None
    ) -> dict[TopicPartition, Pause]:
        """Apply records in their order.

        Args:
            records: the records.
            deadline: time by the monotonic clock after which the rest waits for the next poll.
                None means `APPLY_MAX_S` from now.

        Returns:
            The partitions that must wait, each with the offset of its first record that was not
            applied. All records before that offset were applied, skipped, or became dead letters.

        Raises:
            SQLAlchemyError: the database failed. Some records may already be applied. It is safe
                to pass all of them again.
            TransientDatabaseError: likewise, for example `KeyCollisionError`.
        """
        if deadline is None:
            deadline = time.monotonic() + APPLY_MAX_S
        return self._apply_parsed(
            [parse(record, self._subscriptions) for record in records], deadline
        )

    def give_up(
        self, record: ConsumerRecord, error: ProcessDiedError
    ) -> dict[TopicPartition, Pause]:
        """Apply a record as if its handler had failed. Neither its data nor its handler is touched.

        Returns and raises what `apply` does.
        """
        item = parse(record, {})  # without a subscription, the data is not read
        if item.event is not None:
            subscription = self._subscriptions.get((record.topic, item.event.type))
            item = replace(item, subscription=subscription, failure=error)
        return self._apply_parsed([item], time.monotonic() + APPLY_MAX_S)

    def _apply_parsed(
        self, parsed: Sequence[Parsed], deadline: float
    ) -> dict[TopicPartition, Pause]:
        pauses: dict[TopicPartition, Pause] = {}
        batches = deque([Batch(parsed)])
        while batches:
            batch = batches.popleft()
            batch.items = items = [item for item in batch.items if not _is_paused(item, pauses)]
            if not items:
                continue
            self._beat()
            if time.monotonic() > deadline:
                for item in items:
                    _add_pause(pauses, item, Pause(item.record.offset, 0.0, "", None))
                continue
            try:
                self._apply(batch)
            except SubscriptionStoppedError as stopped:
                batches.extendleft(reversed(self._split_at_stopped(items, stopped, pauses)))
            except (SQLAlchemyError, TransientDatabaseError):
                raise
            except Exception as error:  # noqa: BLE001 - `decide` records it
                if len(items) > 1:
                    # Parse again, because the handler may have changed the events' data.
                    again = [parse(item.record, self._subscriptions) for item in items]
                    middle = len(again) // 2
                    batches.extendleft([Batch(again[middle:]), Batch(again[:middle])])
                    continue
                cause = error.cause if isinstance(error, HandlerFailedError) else error
                pause = self._failures.decide(items[0], cause)
                if pause is not None:
                    _add_pause(pauses, items[0], pause)
        return pauses

    def refresh_stopped(self) -> set[SubscriptionKey]:
        """Read which subscriptions are stopped."""
        return self._failures.refresh_stopped()

    def _apply(self, batch: Batch) -> None:
        self._transaction.run(batch)
        for subscription, breaker in batch.released:
            self._failures.succeeded(subscription, was_stopped=breaker.stopped)

    def _split_at_stopped(
        self,
        items: list[Parsed],
        stop: SubscriptionStoppedError,
        pauses: dict[TopicPartition, Pause],
    ) -> list[Batch]:
        """Split a batch to probe one event of a stopped subscription, or let its partition wait."""
        subscription = stop.subscription
        candidates = [
            number for number, item in enumerate(items) if item.subscription is subscription
        ]
        # Prefer an event of another partition than last time, because that event may succeed.
        last = self._failures.last_probed(subscription)
        position = next(
            (number for number in candidates if items[number].record.partition != last),
            candidates[0],
        )
        if self._failures.may_probe(subscription):
            first, rest = items[position], items[position + 1 :]
            return [Batch(items[:position]), Batch([first], is_probe=True), Batch(rest)]
        item = items[position]
        pause = self._failures.pause_until_probe(item, subscription, stop.breaker.error)
        _add_pause(pauses, item, pause)
        return [Batch(items)]


def _is_paused(item: Parsed, pauses: Mapping[TopicPartition, Pause]) -> bool:
    pause = pauses.get(TopicPartition(item.record.topic, item.record.partition))
    return pause is not None and item.record.offset >= pause.offset


def _add_pause(pauses: dict[TopicPartition, Pause], item: Parsed, pause: Pause) -> None:
    """Pause the partition of an item, unless it is already paused at an earlier record."""
    pauses.setdefault(TopicPartition(item.record.topic, item.record.partition), pause)
