"""Each option of kafka-python's clients is set, or its default was reviewed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock, patch

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer

from settle_outbox.kafka import clients
from settle_outbox.kafka.header_text import HEADER_MAX_LENGTH
from settle_outbox.kafka.record_stream import BATCH_RECORDS_MAX, RECORD_MAX_BYTES
from settle_outbox.publish.outbox import KEY_MAX_LENGTH, PAYLOAD_MAX_BYTES
from settle_outbox.settings import read_settings
from support.environ import environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from settle_outbox.settings import Settings

BYTES = "the engine reads and writes bytes"
NO_AUTO_COMMIT = "offsets are committed by hand"
NO_GROUP = "the reader is in no group"
NO_TRANSACTIONS = "there is no transactional_id"
PLAINTEXT = "security_protocol is PLAINTEXT"
SYSTEM = "the operating system chooses well"
UNREAD = "nobody reads kafka-python's metrics"

EVERYWHERE = {
    "kafka_client": "internals.client.connect sets it",
    "metric_reporters": UNREAD,
    "metrics_num_samples": UNREAD,
    "metrics_sample_window_ms": UNREAD,
    "proxy_url": "no proxy stands before a broker",
    "receive_buffer_bytes": SYSTEM,
    "selector": SYSTEM,
    "send_buffer_bytes": SYSTEM,
    "socket_options": "TCP_NODELAY, so that small requests go at once",
    "socks5_proxy": "no proxy stands before a broker",
    **dict.fromkeys(
        (
            "sasl_kerberos_domain_name",
            "sasl_kerberos_name",
            "sasl_kerberos_service_name",
            "sasl_mechanism",
            "sasl_oauth_token_provider",
            "sasl_plain_password",
            "sasl_plain_username",
            "ssl_cafile",
            "ssl_certfile",
            "ssl_check_hostname",
            "ssl_context",
            "ssl_crlfile",
            "ssl_keyfile",
            "ssl_password",
        ),
        PLAINTEXT,
    ),
}
CONSUMER_AND_PRODUCER = {"metrics_enabled": UNREAD, "ssl_ciphers": PLAINTEXT}
CONSUMERS = {
    **EVERYWHERE,
    **CONSUMER_AND_PRODUCER,
    "auto_commit_interval_ms": NO_AUTO_COMMIT,
    "client_rack": "records are fetched from the leader",
    "consumer_timeout_ms": "ends an iteration; the engine polls",
    "default_offset_commit_callback": NO_AUTO_COMMIT,
    "key_deserializer": BYTES,
    "metric_group_prefix": UNREAD,
    "value_deserializer": BYTES,
}
REVIEWED: dict[str, dict[str, str]] = {
    "admin": EVERYWHERE,
    "producer": {
        **EVERYWHERE,
        **CONSUMER_AND_PRODUCER,
        "key_serializer": BYTES,
        "transaction_timeout_ms": NO_TRANSACTIONS,
        "value_serializer": BYTES,
    },
    "consumer": CONSUMERS,
    "reader": {
        **CONSUMERS,
        "group_instance_id": NO_GROUP,
        "heartbeat_interval_ms": NO_GROUP,
        "max_poll_interval_ms": NO_GROUP,
        "partition_assignment_strategy": NO_GROUP,
        "session_timeout_ms": NO_GROUP,
    },
}
MAKERS: dict[str, Callable[[Settings], object]] = {
    "admin": lambda settings: clients.make_admin(settings, "test"),
    "producer": lambda settings: clients.make_producer(settings, "test"),
    "consumer": lambda settings: clients.make_consumer(settings, "test"),
    "reader": clients.make_reader,
}
CLASSES = {
    "admin": KafkaAdminClient,
    "producer": KafkaProducer,
    "consumer": KafkaConsumer,
    "reader": KafkaConsumer,
}


@pytest.fixture
def settings() -> Iterator[Settings]:
    environ = {
        "ORDERS_DATABASE_URL": "postgresql+psycopg2://nowhere/orders",
        "KAFKA_BOOTSTRAP_SERVERS": "nowhere:1",
    }
    with environment(environ):
        yield read_settings("orders")


def options_of(client: str, settings: Settings) -> dict[str, Any]:
    """Return the options that a client is made with."""
    with patch.object(clients, "connect", return_value=MagicMock()) as connect:
        MAKERS[client](settings)
    (made,) = connect.call_args_list
    assert made.args == (CLASSES[client],)
    return dict(made.kwargs)


@pytest.mark.parametrize("client", MAKERS)
def test_each_option_is_set_or_was_reviewed(client: str, settings: Settings) -> None:
    known = set(CLASSES[client].DEFAULT_CONFIG)

    options = options_of(client, settings)

    assert known - options.keys() == REVIEWED[client].keys()
    assert options.keys() <= known


@pytest.mark.parametrize("client", ["consumer", "reader"])
def test_only_committed_records_with_a_correct_checksum_are_read(
    client: str, settings: Settings
) -> None:
    options = options_of(client, settings)

    assert options["isolation_level"] == "read_committed"
    assert options["check_crcs"] is True
    assert options["enable_auto_commit"] is False


def test_a_fetch_has_room_for_the_largest_record(settings: Settings) -> None:
    options = options_of("consumer", settings)

    assert options["max_partition_fetch_bytes"] >= clients.MAX_REQUEST_BYTES
    assert options["max_partition_fetch_bytes"] <= options["fetch_max_bytes"]
    assert options["fetch_max_bytes"] < options["receive_message_max_bytes"]


def test_the_largest_record_of_a_relay_can_be_read(settings: Settings) -> None:
    """An event has a payload, a key and 9 headers. A character takes at most 4 bytes."""
    largest = PAYLOAD_MAX_BYTES + 4 * KEY_MAX_LENGTH + 9 * 4 * HEADER_MAX_LENGTH

    options = options_of("producer", settings)

    assert largest < options["max_request_size"] <= RECORD_MAX_BYTES
    assert settings.consumer_batch < BATCH_RECORDS_MAX
