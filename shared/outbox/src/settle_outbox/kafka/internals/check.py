"""The list of the private parts of kafka-python that are used, and a check that they exist."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kafka import KafkaConsumer, KafkaProducer, __version__, codec
from kafka.consumer.fetcher import Fetcher
from kafka.coordinator.base import BaseCoordinator
from kafka.net.compat import KafkaNetClient
from kafka.net.connection import KafkaConnection
from kafka.net.manager import KafkaConnectionManager
from kafka.net.transport import KafkaTCPTransport
from kafka.producer.sender import Sender
from kafka.protocol import parser
from kafka.protocol.parser import KafkaProtocol
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.memory_records import MemoryRecords

from settle_outbox.runtime.process import FatalError

if TYPE_CHECKING:
    from types import ModuleType

VERSION = "3.0.12"


class PrivateParts(NamedTuple):
    """Private parts of one class or module of kafka-python.

    Args:
        owner: the class or module.
        names: of its methods and attributes.
        guarded_by: the test that fails if they work differently.
    """

    owner: type | ModuleType
    names: tuple[str, ...]
    guarded_by: str


# The tests that fail if a private part works differently.
_NO_THREAD_LEFT = "test_clients.py::test_a_client_that_finds_no_broker_leaves_no_thread"
_RECEIVED = "test_kafka_internals.py::test_a_connection_receives_a_limited_number_of_bytes"
_NO_TOPIC_CREATED = "test_kafka_internals.py::test_no_client_asks_a_broker_to_create_topics"
_FENCE = "test_fence.py::test_the_fence_stops_a_producer_that_would_continue_after_a_failure"
_CONNECTION_END = "test_emptied_broker.py::test_a_sender_stops_when_its_connection_is_lost"
_PAUSED_PARTITION = "test_kafka_internals.py::test_records_of_a_paused_partition_are_not_kept"
_DAMAGED_CONNECTION = (
    "test_unreadable_batches.py::test_a_damaged_connection_is_replaced_and_nothing_is_given_up"
)
_CORRUPT_BATCH = (
    "test_kafka_internals.py::test_a_corrupt_batch_is_reported_whole_after_the_records_before_it"
)
_CODECS = "test_kafka_internals.py::test_a_batch_of_each_codec_is_read"
_ABORTED_RECORDS = "test_transactions.py::test_a_topic_that_ends_in_aborted_records_is_no_lag"
_DAMAGED_LOG = (
    "test_unreadable_batches.py"
    "::test_a_log_that_the_broker_itself_cannot_read_stops_its_partition_alone"
)
_JOIN_AWAITED = "test_topics.py::test_a_join_outlasts_the_poll_that_began_it"
_POLL_BYTES = "test_kafka_internals.py::test_a_poll_ends_at_the_record_that_reaches_its_byte_limit"
_CORRUPT_RECORD = (
    "test_kafka_internals.py::test_the_records_before_a_corrupt_record_of_a_batch_are_read"
)
_LARGE_RESPONSE = "test_fetch_response.py::test_another_large_answer_ends_the_connection"
_LARGE_BATCH = "test_fetch_response.py::test_a_too_large_batch_is_measured_while_it_arrives"

PRIVATE_PARTS = (
    # Every client
    PrivateParts(KafkaNetClient, ("close",), _NO_THREAD_LEFT),
    PrivateParts(KafkaTCPTransport, ("_sock", "_sock_recv"), _RECEIVED),
    PrivateParts(KafkaConsumer, ("_cluster",), _NO_TOPIC_CREATED),
    PrivateParts(KafkaProducer, ("_metadata",), _NO_TOPIC_CREATED),
    # The producer
    PrivateParts(KafkaProducer, ("_sender",), _FENCE),
    PrivateParts(Sender, ("_client", "force_close", "join"), _FENCE),
    PrivateParts(KafkaNetClient, ("_manager",), _CONNECTION_END),
    PrivateParts(KafkaConnectionManager, ("_conns", "cluster", "get_connection"), _CONNECTION_END),
    PrivateParts(KafkaConnection, ("close_future",), _CONNECTION_END),
    # The consumer
    PrivateParts(KafkaConsumer, ("_fetcher",), _PAUSED_PARTITION),
    PrivateParts(
        Fetcher, ("_paused_completed_fetches", "_paused_partition_records"), _PAUSED_PARTITION
    ),
    PrivateParts(KafkaConsumer, ("_client", "_cluster"), _DAMAGED_CONNECTION),
    PrivateParts(KafkaConnectionManager, ("call_soon", "close"), _DAMAGED_CONNECTION),
    PrivateParts(KafkaConsumer, ("_subscription",), _ABORTED_RECORDS),
    PrivateParts(Fetcher, ("_parse_fetched_data", "_subscriptions"), _DAMAGED_LOG),
    PrivateParts(Fetcher, ("_append",), _POLL_BYTES),
    PrivateParts(
        BaseCoordinator,
        ("_do_join_and_sync_async", "config", "request_rejoin", "state"),
        _JOIN_AWAITED,
    ),
    PrivateParts(
        Fetcher.PartitionRecords,
        ("_maybe_raise_next_inline_exception", "_next_inline_exception", "record_iterator", "take"),
        _CORRUPT_RECORD,
    ),
    PrivateParts(
        Fetcher.PartitionRecords,
        ("_unpack_records", "drain", "fetch_offset", "next_fetch_offset"),
        _CORRUPT_BATCH,
    ),
    PrivateParts(
        KafkaProtocol,
        ("_max_frame_size", "_validate_frame_size", "in_flight_requests"),
        _LARGE_RESPONSE,
    ),
    PrivateParts(parser, ("KafkaBytes",), _LARGE_BATCH),
    PrivateParts(MemoryRecords, ("_next_slice", "next_batch"), _CORRUPT_BATCH),
    PrivateParts(
        DefaultRecordBatch, ("HEADER_STRUCT", "__iter__", "_assert_has_codec", "_buffer"), _CODECS
    ),
    PrivateParts(codec, ("lz4", "snappy", "zstd"), _CODECS),
)


class KafkaVersionError(FatalError):
    """The installed kafka-python is not the version that the engine supports."""


def check() -> None:
    """Check that kafka-python has the pinned version and all used parts.

    Raises:
        KafkaVersionError: the version is another one, or a part is missing.
    """
    if __version__ != VERSION:
        raise KafkaVersionError(
            f"kafka-python {__version__} is installed, but settle-outbox supports only {VERSION},"
            " because it uses private parts of it to keep the order of events. Run: pip install"
            f" kafka-python=={VERSION}"
        )
    for part in PRIVATE_PARTS:
        for name in part.names:
            if not _has(part.owner, name):
                raise KafkaVersionError(
                    f"The installed kafka-python {__version__} has no {part.owner.__name__}.{name},"
                    " which settle-outbox uses. Its files may have been changed. Run: pip install"
                    f" --force-reinstall kafka-python=={VERSION}"
                )


def _has(owner: object, name: str) -> bool:
    """Return whether a class or module has an attribute, or a class sets it in `__init__`."""
    if hasattr(owner, name):
        return True
    code = getattr(getattr(owner, "__init__", None), "__code__", None)
    return code is not None and name in code.co_names
