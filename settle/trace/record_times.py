"""Read the time when Kafka received a record."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from kafka import TopicPartition
from kafka.errors import KafkaError

from settle_outbox.kafka.clients import make_reader

if TYPE_CHECKING:
    from kafka import KafkaConsumer

    from settle_outbox.settings import Settings

_TIMEOUT_MS = 2_000


class RecordTimes:
    """Reads the times of records. A broker that does not answer is not asked again.

    Args:
        settings: with the addresses of the brokers.

    Attributes:
        is_away: whether the broker was asked, and did not answer.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._reader: KafkaConsumer | None = None
        self.is_away = False

    def close(self) -> None:
        """Disconnect from Kafka."""
        if self._reader is not None:
            self._reader.close(autocommit=False)

    def sent_at(self, topic: str, partition: int, offset: int) -> datetime | None:
        """Return the time of a record; None if it is gone, or the broker is away."""
        if self.is_away:
            return None
        try:
            return self._read(TopicPartition(topic, partition), offset)
        except (KafkaError, OSError):
            self.is_away = True
            return None

    def _read(self, partition: TopicPartition, offset: int) -> datetime | None:
        if self._reader is None:
            self._reader = make_reader(self._settings)
        reader = self._reader
        reader.assign([partition])
        first = reader.beginning_offsets([partition])[partition]
        end = reader.end_offsets([partition])[partition]
        if not first <= offset < end:
            return None
        reader.seek(partition, offset)
        for record in reader.poll(timeout_ms=_TIMEOUT_MS, max_records=1).get(partition, ()):
            if record.offset == offset:
                return datetime.fromtimestamp(record.timestamp / 1000, UTC)
        return None
