"""Kafka clients with explicit options.

A test lists the options that keep their defaults, each with the reason.
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

# A relay holds its shards while it sends. MAX_BLOCK_MS and DELIVERY_TIMEOUT_MS limit that time, and
# `publish.relay` checks that the database does not end the relay's transaction before.
MAX_BLOCK_MS = 2_000
REQUEST_TIMEOUT_MS = 3_000
DELIVERY_TIMEOUT_MS = 5_000
BOOTSTRAP_TIMEOUT_MS = 3_000
SESSION_TIMEOUT_MS = 6_000
# When a member leaves its group, the others take over its partitions after their next heartbeat.
HEARTBEAT_MS = 500
MAX_POLL_INTERVAL_MS = 420_000
# A producer must not send a record that is too large for a consumer of this project.
MAX_REQUEST_BYTES = RECORD_MAX_BYTES

# Maximum of one partition in one fetch. The broker sends the first batch whole, even if larger.
_PARTITION_FETCH_BYTES = RECORD_MAX_BYTES

# Maximum size of a response. A larger one ends the connection.
RECEIVE_MAX_BYTES = 100_000_000
# The same for consumers. Only the response to a fetch may be larger (`fetch_response`). The
# embedded broker may send one batch more than requested.
_CONSUMER_RECEIVE_MAX_BYTES = FETCH_MAX_BYTES + _PARTITION_FETCH_BYTES
IDLE_CONNECTION_MS = 540_000
METADATA_MAX_AGE_MS = 30_000
RETRY_BACKOFF_MS = 100


def _connection(settings: Settings, client_id: str) -> dict[str, Any]:
    """Return the options that all clients share."""
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
        # Try all addresses of a bootstrap name.
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
    """Connect a producer. All in-sync replicas acknowledge its records. Brokers drop duplicates.

    Raises:
        KafkaError: no broker can be reached.
    """
    producer = connect(
        KafkaProducer,
        **_connection(settings, client_id),
        acks="all",
        enable_idempotence=True,
        # Kafka transactions are not needed: the outbox decides what is sent.
        transactional_id=None,
        # DELIVERY_TIMEOUT_MS limits the attempts.
        retries=float("inf"),
        allow_auto_create_topics=False,
        max_block_ms=MAX_BLOCK_MS,
        request_timeout_ms=REQUEST_TIMEOUT_MS,
        delivery_timeout_ms=DELIVERY_TIMEOUT_MS,
        # The same partition as with Java's clients: murmur2 of the key.
        partitioner=DefaultPartitioner(),
        compression_type=None,
        linger_ms=5,
        batch_size=128 * 1024,
        max_request_size=MAX_REQUEST_BYTES,
    )
    disable_topic_creation(producer)
    return producer


def make_consumer(settings: Settings, group_id: str) -> KafkaConsumer:
    """Connect a consumer of a group. It starts at the oldest record and commits no offsets itself.

    Raises:
        KafkaError: no broker can be reached.
    """
    return _consumer(
        settings,
        f"inbox-consumer-{group_id}",
        group_id=group_id,
        # Each start is a new member, because a process has no stable name.
        group_instance_id=None,
        # All members must support a common strategy. Both distribute partitions evenly.
        partition_assignment_strategy=(RangePartitionAssignor, RoundRobinPartitionAssignor),
        max_poll_records=settings.consumer_batch,
        max_poll_interval_ms=MAX_POLL_INTERVAL_MS,
        session_timeout_ms=SESSION_TIMEOUT_MS,
        heartbeat_interval_ms=HEARTBEAT_MS,
    )


def make_reader(settings: Settings) -> KafkaConsumer:
    """Connect a consumer without a group, which reads the partitions that are assigned to it.

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
        # Skip aborted records, and wait for open transactions.
        isolation_level="read_committed",
        check_crcs=True,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        allow_auto_create_topics=False,
        exclude_internal_topics=True,
        request_timeout_ms=10_000,
        fetch_min_bytes=1,
        # Apache Kafka responds as soon as there is a record. The embedded broker checks only a few
        # times within this time, so keep it short (benchmarks/README.md).
        fetch_max_wait_ms=50,
        fetch_max_bytes=FETCH_MAX_BYTES,
        max_partition_fetch_bytes=_PARTITION_FETCH_BYTES,
        enable_incremental_fetch_sessions=True,
        **options,
    )
    disable_topic_creation(consumer)
    drop_fetched_when_paused(consumer)
    return consumer
