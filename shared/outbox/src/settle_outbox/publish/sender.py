"""Send a batch so that no event appears in the topic before an earlier one of its key.

kafka-python continues with a partition's later batches after one of them failed. The fence prevents
that. The first failure stops the producer, in the thread that sends, before it takes up the next
batch. The events of each key are marked up to its first one that was not acknowledged. Another
producer sends the rest again. Duplicates are allowed; gaps that are filled later are not.

A producer never outlives a connection either. Behind the next connection may be a broker that lost
its data and assigns the same producer ids again. It would take the old producer's events for
duplicates of another producer's, and acknowledge events that it drops.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC
from typing import TYPE_CHECKING

import structlog
from kafka.errors import (
    IllegalStateError,
    InvalidRecordError,
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
)

from settle_outbox.kafka.clients import DELIVERY_TIMEOUT_MS, make_producer
from settle_outbox.kafka.internals.producer import (
    stop_sending,
    wait_for_sending_to_end,
    when_connection_ends,
)
from settle_outbox.service import topic_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kafka import KafkaProducer
    from kafka.producer.future import FutureRecordMetadata

    from settle_outbox.publish.pending import PendingEvent
    from settle_outbox.settings import Settings

log = structlog.get_logger(__name__)

# The broker, or the producer, refuses a record with these each time, whatever is done.
REJECTIONS = (InvalidRecordError, MessageSizeTooLargeError, RecordListTooLargeError)
# What kafka-python raises, before it sends anything, for a record that it cannot build.
_UNSENDABLE = (TypeError, ValueError, OverflowError)
_THREAD_END_S = 2.0


@dataclass(slots=True)
class Sent:
    """What became of a batch.

    Args:
        acknowledged: the broker has them, and every earlier event of their keys.
        error: the first failure; None when all were acknowledged.
        unsendable: events whose content makes no record, and why; the others were sent.
    """

    acknowledged: list[PendingEvent] = field(default_factory=list)
    error: KafkaError | None = None
    unsendable: dict[PendingEvent, Exception] = field(default_factory=dict)


class Sender:
    """A producer behind a fence. After a failure, or when a connection ended, make another.

    Args:
        settings: where the broker is.
        source: the ``ce_source`` of the events.
    """

    def __init__(self, settings: Settings, source: str) -> None:
        self._source = source.encode()
        self._topic_prefix = settings.topic_prefix
        self._stopped = False
        self._producer: KafkaProducer = make_producer(settings, f"outbox-relay{source}")
        when_connection_ends(self._producer, self._stop)

    @property
    def stopped(self) -> bool:
        """Whether it sends no more: a batch failed, or a connection to a broker ended."""
        return self._stopped

    def send(self, events: Sequence[PendingEvent]) -> Sent:
        """Send events in their order and wait until each is acknowledged or has failed.

        Takes at most MAX_BLOCK_MS + DELIVERY_TIMEOUT_MS. A failure of the broker is returned, not
        raised.
        """
        sent = Sent()
        futures = []
        try:
            for event in events:
                try:
                    future = self._producer.send(
                        f"{self._topic_prefix}{topic_of(event.aggregatetype)}",
                        value=event.payload,
                        key=event.aggregateid.encode(),
                        headers=event_headers(event, self._source),
                    )
                except _UNSENDABLE as error:
                    sent.unsendable[event] = error
                    continue
                future.add_errback(self._stop)
                futures.append(future)
            self._producer.flush(timeout=DELIVERY_TIMEOUT_MS / 1000)
        except KafkaError as error:
            sent.error = error
        if sent.error is not None or any(not future.succeeded() for future in futures):
            self.close()
        _collect_acknowledged(
            sent, [event for event in events if event not in sent.unsendable], futures
        )
        return sent

    def close(self) -> None:
        """Stop at once; what is not yet acknowledged fails."""
        self._stop()
        # KafkaProducer.close() flushes first, and when that times out it raises and leaves its
        # thread sending; by now the thread has nothing left to send.
        if not wait_for_sending_to_end(self._producer, _THREAD_END_S):
            log.warning("relay.producer_thread_lingers")
        try:
            self._producer.close(timeout=0)
        except KafkaError as error:
            log.debug("relay.producer_close_failed", error=str(error))

    def _stop(self, *_failure: object) -> None:
        # Called by the sending thread itself when a batch fails or its connection ends, before it
        # takes up another.
        self._stopped = True
        stop_sending(self._producer)


def event_headers(event: PendingEvent, source: bytes) -> list[tuple[str, bytes]]:
    """Return the headers of an event: CloudEvents 1.0, Kafka protocol binding, binary mode."""
    headers = [
        ("ce_id", str(event.id).encode()),
        ("ce_type", event.type.encode()),
        ("ce_source", source),
        ("ce_specversion", b"1.0"),
        (
            "ce_time",
            event.created_at.astimezone(UTC).isoformat().replace("+00:00", "Z").encode(),
        ),
        ("ce_sequence", str(event.seq).encode()),
        ("content-type", b"application/json"),
    ]
    if event.requestid is not None:
        headers.append(("ce_requestid", event.requestid.encode()))
    if event.traceparent is not None:
        headers.append(("traceparent", event.traceparent.encode()))
    return headers


def _collect_acknowledged(
    sent: Sent, events: Sequence[PendingEvent], futures: Sequence[FutureRecordMetadata]
) -> None:
    """Collect the events of each key before its first one that was not acknowledged."""
    gaps: set[tuple[str, str]] = set()
    for position, event in enumerate(events):
        key = (event.aggregatetype, event.aggregateid)
        future = futures[position] if position < len(futures) else None
        if future is not None and future.succeeded():
            if key not in gaps:
                sent.acknowledged.append(event)
            continue
        gaps.add(key)
        if future is not None and future.failed():
            sent.error = _clearer_error(sent.error, future.exception)
    if gaps and sent.error is None:
        sent.error = KafkaError("not acknowledged in time")


def _clearer_error(known: KafkaError | None, other: KafkaError) -> KafkaError:
    """Return the failure of a batch that shows the cause: the fence itself fails the rest."""
    if known is None or isinstance(other, REJECTIONS):
        return other
    return other if isinstance(known, IllegalStateError) else known
