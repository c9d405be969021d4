"""Kafka clients. Every option that matters is given explicitly.

A test lists the options that are left to their defaults, each with its reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from kafka.partitioner import DefaultPartitioner

from settle_outbox.kafka.fetch_response import FETCH_MAX_BYTES
from settle_outbox.kafka.internals.client import connect, disable_topic_creation
from settle_outbox.kafka.internals.consumer import drop_fetched_when_paused, patch_consumers
from settle_outbox.kafka.record_stream import RECORD_MAX_BYTES

if TYPE_CHECKING:
    from settle_outbox.settings import Settings

# A relay holds its shards for at most these two and the 2 s that its sender's thread has to end:
# 9 s. The database ends its transaction after LEASE_MS (see relay); the sum must stay below.
MAX_BLOCK_MS = 2_000
REQUEST_TIMEOUT_MS = 3_000
DELIVERY_TIMEOUT_MS = 5_000
BOOTSTRAP_TIMEOUT_MS = 3_000
# An embedded broker makes a joining member wait for half of it.
SESSION_TIMEOUT_MS = 6_000
HEARTBEAT_MS = 1_500
MAX_POLL_INTERVAL_MS = 300_000
# A producer sends no record that a consumer here would refuse.
MAX_REQUEST_BYTES = RECORD_MAX_BYTES

# Of one partition in one fetch. The broker sends a first batch whole, however large it is.
_PARTITION_FETCH_BYTES = RECORD_MAX_BYTES

# A response larger than this ends the connection.
RECEIVE_MAX_BYTES = 100_000_000
# The same for consumers, but for the response to a fetch with a batch over FETCH_MAX_BYTES: see
# fetch_response. An embedded broker may send a batch more than it is asked for.
_CONSUMER_RECEIVE_MAX_BYTES = FETCH_MAX_BYTES + _PARTITION_FETCH_BYTES
IDLE_CONNECTION_MS = 540_000
METADATA_MAX_AGE_MS = 30_000
RETRY_BACKOFF_MS = 100


def _connection(settings: Settings, client_id: str) -> dict[str, Any]:
    """Return the options that all clients have in common."""
    return {
        "bootstrap_servers": list(settings.kafka_bootstrap_servers),
        "client_id": client_id,
        "security_protocol": "PLAINTEXT",
        "bootstrap_timeout_ms": BOOTSTRAP_TIMEOUT_MS,
        "reconnect_backoff_ms": 50,
        "reconnect_backoff_max_ms": 1_000,
        "retry_backoff_ms": RETRY_BACKOFF_MS,
        "connections_max_idle_ms": IDLE_CONNECTION_MS,
        "metadata_max_age_ms": METADATA_MAX_AGE_MS,
        "max_in_flight_requests_per_connection": 5,
        "receive_message_max_bytes": RECEIVE_MAX_BYTES,
        # A bootstrap name with several addresses is tried at each of them.
        "client_dns_lookup": "use_all_dns_ips",
        # None asks each broker for the versions that it supports.
        "api_version": None,
    }


def make_admin(settings: Settings, client_id: str) -> KafkaAdminClient:
    """Connect an administration client.

    Raises:
        KafkaError: no broker can be reached.
    """
    return connect(
        KafkaAdminClient,
        **_connection(settings, client_id),
        request_timeout_ms=REQUEST_TIMEOUT_MS,
    )


def make_producer(settings: Settings, client_id: str) -> KafkaProducer:
    """Connect a producer whose records are acknowledged by all replicas, each kept once.

    Raises:
        KafkaError: no broker can be reached.
    """
    producer = connect(
        KafkaProducer,
        **_connection(settings, client_id),
        acks="all",
        enable_idempotence=True,
        # The database's transaction is what makes an event; the outbox sends it again if need be.
        transactional_id=None,
        # DELIVERY_TIMEOUT_MS bounds the attempts.
        retries=float("inf"),
        allow_auto_create_topics=False,
        max_block_ms=MAX_BLOCK_MS,
        request_timeout_ms=REQUEST_TIMEOUT_MS,
        delivery_timeout_ms=DELIVERY_TIMEOUT_MS,
        # murmur2 of the key, as Java's clients place it.
        partitioner=DefaultPartitioner(),
        compression_type=None,
        linger_ms=5,
        batch_size=128 * 1024,
        max_request_size=MAX_REQUEST_BYTES,
    )
    disable_topic_creation(producer)
    return producer


def make_consumer(settings: Settings, group_id: str) -> KafkaConsumer:
    """Connect a consumer that commits offsets only when told, and starts with the oldest record.

    Raises:
        KafkaError: no broker can be reached.
    """
    return _consumer(
        settings,
        f"inbox-consumer-{group_id}",
        group_id=group_id,
        # Each start is a new member: a process has no name that outlives it.
        group_instance_id=None,
        # Both spread partitions evenly enough; every member must know one in common.
        partition_assignment_strategy=(RangePartitionAssignor, RoundRobinPartitionAssignor),
        max_poll_records=settings.consumer_batch,
        max_poll_interval_ms=MAX_POLL_INTERVAL_MS,
        session_timeout_ms=SESSION_TIMEOUT_MS,
        heartbeat_interval_ms=HEARTBEAT_MS,
    )


def make_reader(settings: Settings) -> KafkaConsumer:
    """Connect a consumer that is in no group, to read partitions that it is assigned to.

    Raises:
        KafkaError: no broker can be reached.
    """
    return _consumer(
        settings,
        "settle-reader",
        group_id=None,
        max_poll_records=2_000,
    )


def _consumer(settings: Settings, client_id: str, **options: Any) -> KafkaConsumer:
    patch_consumers()
    consumer = connect(
        KafkaConsumer,
        **_connection(settings, client_id)
        | {"receive_message_max_bytes": _CONSUMER_RECEIVE_MAX_BYTES},
        # What a producer has aborted never happened, and what is not committed yet has not.
        isolation_level="read_committed",
        check_crcs=True,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        allow_auto_create_topics=False,
        exclude_internal_topics=True,
        request_timeout_ms=10_000,
        fetch_min_bytes=1,
        # Apache Kafka answers as soon as there is a record; the embedded broker looks only every so
        # often while a fetch waits, by a share of this time (500: 0 to 100 ms late; 50: 3 to 11).
        fetch_max_wait_ms=50,
        fetch_max_bytes=FETCH_MAX_BYTES,
        max_partition_fetch_bytes=_PARTITION_FETCH_BYTES,
        enable_incremental_fetch_sessions=True,
        **options,
    )
    disable_topic_creation(consumer)
    drop_fetched_when_paused(consumer)
    return consumer
