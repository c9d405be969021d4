"""Kafka clients, with every option that matters given explicitly; none is left to a default."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.errors import KafkaError
from kafka.net.compat import KafkaNetClient

from shared.outbox.header_names import accept_any_header_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from kafka.cluster import ClusterMetadata
    from kafka.net.connection import KafkaConnection

    from shared.settings import Settings

_Client = TypeVar("_Client")

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
# As a broker takes unless told otherwise (message.max.bytes).
MAX_REQUEST_BYTES = 1024 * 1024

_RECONNECT = {"reconnect_backoff_ms": 50, "reconnect_backoff_max_ms": 1_000}


def make_admin(settings: Settings, client_id: str) -> KafkaAdminClient:
    """Connect an administration client.

    Raises:
        KafkaError: no broker can be reached.
    """
    return _connected(
        KafkaAdminClient,
        bootstrap_servers=list(settings.kafka_bootstrap_servers),
        client_id=client_id,
        request_timeout_ms=REQUEST_TIMEOUT_MS,
        bootstrap_timeout_ms=BOOTSTRAP_TIMEOUT_MS,
        **_RECONNECT,
    )


def make_producer(settings: Settings, client_id: str) -> KafkaProducer:
    """Connect a producer whose records are acknowledged by all replicas, each kept once.

    Keys are placed by the default partitioner, murmur2, as Java's clients place them.

    Raises:
        KafkaError: no broker can be reached.
    """
    producer = _connected(
        KafkaProducer,
        bootstrap_servers=list(settings.kafka_bootstrap_servers),
        client_id=client_id,
        acks="all",
        enable_idempotence=True,
        max_in_flight_requests_per_connection=5,
        allow_auto_create_topics=False,
        max_block_ms=MAX_BLOCK_MS,
        request_timeout_ms=REQUEST_TIMEOUT_MS,
        delivery_timeout_ms=DELIVERY_TIMEOUT_MS,
        bootstrap_timeout_ms=BOOTSTRAP_TIMEOUT_MS,
        linger_ms=5,
        batch_size=128 * 1024,
        max_request_size=MAX_REQUEST_BYTES,
        **_RECONNECT,
    )
    _never_create_topics(producer._metadata)  # noqa: SLF001
    return producer


def when_connection_ends(producer: KafkaProducer, call: Callable[..., object]) -> None:
    """Have a producer call back, in the thread that sends, when a connection to a broker ends.

    By itself it connects anew and goes on, whatever it meets there. It is called before anything
    is sent over another connection.
    """
    manager = producer._sender._client._manager  # noqa: SLF001 - there is no public hook
    connect = manager.get_connection
    watched: WeakSet[KafkaConnection] = WeakSet()

    def watch(node_id: int | str, connection: KafkaConnection) -> None:
        # A bootstrap connection carries no events, and is closed when it has done its work.
        if connection not in watched and not manager.cluster.is_bootstrap(node_id):
            watched.add(connection)
            connection.close_future.add_both(call)

    def get_connection(node_id: int | str, *arguments: Any, **options: Any) -> KafkaConnection:
        connection = connect(node_id, *arguments, **options)
        watch(node_id, connection)
        return connection

    manager.get_connection = get_connection
    for node_id, connection in list(manager._conns.items()):  # noqa: SLF001
        watch(node_id, connection)


def make_consumer(settings: Settings, group_id: str) -> KafkaConsumer:
    """Connect a consumer that commits offsets only when told, and starts with the oldest record.

    Raises:
        KafkaError: no broker can be reached.
    """
    return _consumer(
        settings,
        client_id=f"inbox-consumer-{group_id}",
        group_id=group_id,
        max_poll_records=settings.consumer_batch,
        max_poll_interval_ms=MAX_POLL_INTERVAL_MS,
        session_timeout_ms=SESSION_TIMEOUT_MS,
        heartbeat_interval_ms=HEARTBEAT_MS,
        fetch_max_bytes=8 * 1024 * 1024,
    )


def make_reader(settings: Settings) -> KafkaConsumer:
    """Connect a consumer that is in no group, to read partitions that it is assigned to.

    Raises:
        KafkaError: no broker can be reached.
    """
    return _consumer(
        settings,
        client_id="settle-reader",
        group_id=None,
        max_poll_records=2_000,
        fetch_max_bytes=4 * 1024 * 1024,
    )


def _consumer(settings: Settings, **options: Any) -> KafkaConsumer:
    accept_any_header_name()
    consumer = _connected(
        KafkaConsumer,
        bootstrap_servers=list(settings.kafka_bootstrap_servers),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        allow_auto_create_topics=False,
        request_timeout_ms=10_000,
        bootstrap_timeout_ms=BOOTSTRAP_TIMEOUT_MS,
        fetch_min_bytes=1,
        # Apache Kafka answers as soon as there is a record; the embedded broker looks only every so
        # often while a fetch waits, by a share of this time (500: 0 to 100 ms late; 50: 3 to 11).
        fetch_max_wait_ms=50,
        max_partition_fetch_bytes=2 * 1024 * 1024,
        metadata_max_age_ms=30_000,
        **_RECONNECT,
        **options,
    )
    _never_create_topics(consumer._cluster)  # noqa: SLF001
    return consumer


def _connected(client_class: Callable[..., _Client], **options: Any) -> _Client:
    """Make a client; if no broker answers, leave nothing of it behind.

    kafka-python 3.0.12 starts a client's thread before it connects, and does not end it when that
    fails: an hour's outage would leave hundreds.
    """
    nets: list[KafkaNetClient] = []

    def net_client(**net_options: Any) -> KafkaNetClient:
        nets.append(KafkaNetClient(**net_options))
        return nets[-1]

    try:
        return client_class(kafka_client=net_client, **options)
    except KafkaError:
        for net in nets:
            net.close()
        raise


def _never_create_topics(cluster: ClusterMetadata) -> None:
    """Give `allow_auto_create_topics` to where kafka-python 3.0.12 asks for it, but never puts it.

    A broker that forgot a topic would make it anew for whoever is still connected, with a
    partition count of its own.
    """
    cluster.config["allow_auto_create_topics"] = False
