"""The errors of a consumer that cannot read a partition, or a batch in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kafka.errors import KafkaError, UnsupportedCodecError

from settle_outbox.kafka.record_stream import TooLargeError

if TYPE_CHECKING:
    from kafka import TopicPartition


class UnreadablePartitionError(KafkaError):  # type: ignore[misc]  # kafka-python is untyped
    """One partition cannot be read now. The broker and the other partitions may be well.

    Args:
        partition: which one.
        offset: where reading stopped.
        cause: what was raised there.
    """

    def __init__(self, partition: TopicPartition, offset: int, cause: Exception) -> None:
        self.reason = f"{type(cause).__name__}: {cause}"
        super().__init__(
            f"{partition.topic}-{partition.partition} cannot be read at {offset}: {self.reason}"
        )
        self.partition = partition
        self.offset = offset
        self.cause = cause


class UnreadableBatchError(UnreadablePartitionError):
    """A batch of records cannot be read.

    Args:
        partition: where it is.
        offset: the first offset in it that was not read.
        cause: what was raised there.
        last_offset: its last offset, as far as it can be known; reading may continue after it.
        value: its bytes, as the broker sent them; a `TooLarge` if they are not to be kept.
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
        """Return whether the batch is sound, and only its compression is unknown here."""
        return isinstance(self.cause, UnsupportedCodecError)

    @property
    def is_too_large(self) -> bool:
        """Return whether the batch may be sound, and is only over a limit."""
        return isinstance(self.cause, TooLargeError)
