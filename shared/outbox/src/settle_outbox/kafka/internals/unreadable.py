"""The errors for a partition, or a batch in it, that a consumer cannot read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kafka.errors import KafkaError, UnsupportedCodecError

from settle_outbox.errors import describe_error
from settle_outbox.kafka.record_stream import TooLargeError

if TYPE_CHECKING:
    from kafka import TopicPartition


class UnreadablePartitionError(KafkaError):  # type: ignore[misc]  # kafka-python is untyped
    """One partition cannot be read now. Other partitions may be readable.

    Args:
        partition: the partition.
        offset: the offset at which reading failed.
        cause: the error.
    """

    def __init__(self, partition: TopicPartition, offset: int, cause: Exception) -> None:
        self.reason = describe_error(cause)
        super().__init__(
            f"{partition.topic}-{partition.partition} cannot be read at {offset}: {self.reason}"
        )
        self.partition = partition
        self.offset = offset
        self.cause = cause


class UnreadableBatchError(UnreadablePartitionError):
    """A batch of records cannot be read.

    Args:
        partition: the partition of the batch.
        offset: the first offset in the batch that was not read.
        cause: the error.
        last_offset: the probable last offset of the batch. Reading may continue after it.
        value: the bytes of the batch as the broker sent them, or a `TooLarge`.
    """

    def __init__(
        self,
        partition: TopicPartition,
        offset: int,
        cause: Exception,
        *,
        last_offset: int,
        value: bytes,
    ) -> None:
        super().__init__(partition, offset, cause)
        self.last_offset = last_offset
        self.value = value

    @property
    def lacks_codec(self) -> bool:
        """Whether the batch may be valid, but its codec is unknown or not installed."""
        return isinstance(self.cause, UnsupportedCodecError)

    @property
    def is_too_large(self) -> bool:
        """Whether the batch may be valid, but exceeds a limit."""
        return isinstance(self.cause, TooLargeError)
