"""The list of the private parts of kafka-python that are used, and a check that they exist."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kafka import KafkaConsumer, KafkaProducer, __version__, codec
from kafka.consumer.fetcher import Fetcher
from kafka.net.compat import KafkaNetClient
from kafka.net.connection import KafkaConnection
from kafka.net.manager import KafkaConnectionManager
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


PRIVATE_PARTS = (
    # Every client
    PrivateParts(
        KafkaNetClient,
        ("close",),
        "test_clients.py::test_a_client_that_finds_no_broker_leaves_no_thread",
    ),
    PrivateParts(
        KafkaConsumer,
        ("_cluster",),
        "test_kafka_internals.py::test_no_client_asks_a_broker_to_create_topics",
    ),
    PrivateParts(
        KafkaProducer,
        ("_metadata",),
        "test_kafka_internals.py::test_no_client_asks_a_broker_to_create_topics",
    ),
    # The producer
    PrivateParts(
        KafkaProducer,
        ("_sender",),
        "test_fence.py::test_the_fence_holds_where_the_producer_goes_on",
    ),
    PrivateParts(
        Sender,
        ("_client", "force_close", "join"),
        "test_fence.py::test_the_fence_holds_where_the_producer_goes_on",
    ),
    PrivateParts(
        KafkaNetClient,
        ("_manager",),
        "test_emptied_broker.py::test_a_sender_ends_with_its_connection",
    ),
    PrivateParts(
        KafkaConnectionManager,
        ("_conns", "cluster", "get_connection"),
        "test_emptied_broker.py::test_a_sender_ends_with_its_connection",
    ),
    PrivateParts(
        KafkaConnection,
        ("close_future",),
        "test_emptied_broker.py::test_a_sender_ends_with_its_connection",
    ),
    # The consumer
    PrivateParts(
        KafkaConsumer,
        ("_fetcher",),
        "test_kafka_internals.py::test_records_of_a_paused_partition_are_not_kept",
    ),
    PrivateParts(
        Fetcher,
        ("_paused_completed_fetches", "_paused_partition_records"),
        "test_kafka_internals.py::test_records_of_a_paused_partition_are_not_kept",
    ),
    PrivateParts(
        KafkaConsumer,
        ("_client", "_cluster"),
        "test_unreadable_batches.py::test_a_damaged_connection_is_replaced_and_nothing_is_given_up",
    ),
    PrivateParts(
        KafkaConnectionManager,
        ("call_soon", "close"),
        "test_unreadable_batches.py::test_a_damaged_connection_is_replaced_and_nothing_is_given_up",
    ),
    PrivateParts(
        KafkaConsumer,
        ("_subscription",),
        "test_transactions.py::test_a_topic_that_ends_in_aborted_records_is_no_lag",
    ),
    PrivateParts(
        Fetcher,
        ("_parse_fetched_data", "_subscriptions"),
        "test_unreadable_batches.py"
        "::test_a_log_that_the_broker_itself_cannot_read_stops_its_partition_alone",
    ),
    PrivateParts(
        Fetcher, ("_append",), "test_kafka_internals.py::test_a_poll_gives_no_more_than_its_bytes"
    ),
    PrivateParts(
        Fetcher.PartitionRecords,
        ("_maybe_raise_next_inline_exception", "_next_inline_exception", "record_iterator", "take"),
        "test_kafka_internals.py::test_the_records_before_one_that_is_corrupt_inside_are_read",
    ),
    PrivateParts(
        Fetcher.PartitionRecords,
        ("_unpack_records", "drain", "fetch_offset", "next_fetch_offset"),
        "test_kafka_internals.py::test_a_corrupt_batch_is_told_whole_after_what_comes_before_it",
    ),
    PrivateParts(
        KafkaProtocol,
        ("_max_frame_size", "_validate_frame_size", "in_flight_requests"),
        "test_fetch_response.py::test_another_large_answer_ends_the_connection",
    ),
    PrivateParts(
        parser,
        ("KafkaBytes",),
        "test_fetch_response.py::test_a_batch_that_is_too_large_is_measured_while_it_arrives",
    ),
    PrivateParts(
        MemoryRecords,
        ("_next_slice", "next_batch"),
        "test_kafka_internals.py::test_a_corrupt_batch_is_told_whole_after_what_comes_before_it",
    ),
    PrivateParts(
        DefaultRecordBatch,
        ("HEADER_STRUCT", "__iter__", "_assert_has_codec", "_buffer"),
        "test_kafka_internals.py::test_a_batch_of_each_codec_is_read",
    ),
    PrivateParts(
        codec,
        ("lz4", "snappy", "zstd"),
        "test_kafka_internals.py::test_a_batch_of_each_codec_is_read",
    ),
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
