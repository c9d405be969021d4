"""Send events so that no event appears in the topic before an earlier event of its key.

kafka-python divides the events into produce batches, each for one partition. If a produce batch
fails, kafka-python would continue with later ones of the partition. The fence prevents this: the
first failure stops the producer, in its sending thread, before the thread takes more produce
batches. For each key, only the events before the first unacknowledged one count as sent. The others
stay pending, and a new producer sends them. So events may be sent twice, but never out of order.

The end of a connection also stops the producer. The next connection may lead to a broker that lost
its data and assigns the same producer ids again. Such a broker would take new events for duplicates
from another producer with the same id, drop them, and still acknowledge them.
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

from settle_outbox.kafka.clients import DELIVERY_TIMEOUT_MS, MAX_BLOCK_MS, make_producer
from settle_outbox.kafka.internals.producer import (
    stop_sending,
    wait_for_sending_to_end,
    when_connection_ends,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kafka import KafkaProducer
    from kafka.producer.future import FutureRecordMetadata

    from settle_outbox.publish.pending import PendingEvent
    from settle_outbox.service import Service
    from settle_outbox.settings import Settings

log = structlog.get_logger(__name__)

# With these errors, the broker or the producer rejects a record. The same record would fail again.
REJECTIONS = (InvalidRecordError, MessageSizeTooLargeError, RecordListTooLargeError)
# kafka-python raises these for a record that it cannot encode, before it sends anything.
_UNSENDABLE = (TypeError, ValueError, OverflowError)
_THREAD_END_TIMEOUT_MS = 2_000
# Maximum time of `Sender.send`, in which the relay holds its shards.
SEND_TIMEOUT_MS = MAX_BLOCK_MS + DELIVERY_TIMEOUT_MS + _THREAD_END_TIMEOUT_MS


@dataclass(slots=True)
class Sent:
    """The result of `Sender.send`.

    Args:
        acknowledged: the events that count as sent: the broker acknowledged the event, and all
            earlier events of its key in the batch, apart from unsendable ones.
        error: the failure that shows the cause best (`_clearer_error`), or None if nothing failed.
        unsendable: events that cannot be encoded as a record, and the error of each. They are not
            an `error`.
    """

    acknowledged: list[PendingEvent] = field(default_factory=list)
    error: KafkaError | None = None
    unsendable: dict[PendingEvent, Exception] = field(default_factory=dict)


class Sender:
    """A producer with the fence. A failure or the end of a connection stops it for good.

    Args:
        settings: the address of the broker.
        service: the service that publishes the events.
    """

    def __init__(self, settings: Settings, service: Service) -> None:
        self._service = service
        self._source = service.source.encode()
        self._stopped = False
        self._producer: KafkaProducer = make_producer(settings, f"outbox-relay{service.source}")
        when_connection_ends(self._producer, self._stop)

    @property
    def stopped(self) -> bool:
        """Whether the sender was stopped: by a failure, the end of a connection, or `close`."""
        return self._stopped

    def send(self, events: Sequence[PendingEvent]) -> Sent:
        """Send events in their order. Wait until each one is acknowledged or has failed.

        It takes at most `SEND_TIMEOUT_MS`. Errors of the broker are returned, not raised.
        """
        sent = Sent()
        futures = []
        try:
            for event in events:
                try:
                    future = self._producer.send(
                        self._service.published_topic(event.aggregatetype),
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
        """Stop at once. Records that are not yet acknowledged fail."""
        self._stop()
        # KafkaProducer.close() flushes first. If the flush times out, close() raises an error and
        # does not stop the sending thread. So the thread is stopped before. If it ends in time, no
        # record is left to flush.
        if not wait_for_sending_to_end(self._producer, _THREAD_END_TIMEOUT_MS / 1000):
            log.warning("relay.producer_thread_lingers")
        try:
            self._producer.close(timeout=0)
        except KafkaError as error:
            log.debug("relay.producer_close_failed", error=str(error))

    def _stop(self, *_: object) -> None:
        # When a produce batch fails or a connection ends, the sending thread calls this before it
        # takes more produce batches. The relay's thread calls this through `close`.
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
    """For each key, collect the events before the first unacknowledged one. Set the error."""
    blocked_keys: set[tuple[str, str]] = set()
    for position, event in enumerate(events):
        key = (event.aggregatetype, event.aggregateid)
        future = futures[position] if position < len(futures) else None
        if future is not None and future.succeeded():
            if key not in blocked_keys:
                sent.acknowledged.append(event)
            continue
        blocked_keys.add(key)
        if future is not None and future.failed():
            sent.error = _clearer_error(sent.error, future.exception)
    if blocked_keys and sent.error is None:
        sent.error = KafkaError("not acknowledged in time")


def _clearer_error(known: KafkaError | None, other: KafkaError) -> KafkaError:
    """Return the error that shows the cause better.

    A rejection shows it best. IllegalStateError does not show it: after a failure, the fence stops
    the producer, and the other events fail with this error.
    """
    if known is None or isinstance(other, REJECTIONS):
        return other
    return other if isinstance(known, IllegalStateError) else known
