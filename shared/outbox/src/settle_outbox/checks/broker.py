"""Check the Kafka brokers: connection, controller, free disk, and the limit for consumers."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from kafka.admin import ConfigResourceType

from settle_outbox.checks.check import NOT_REPORTED, fail, ok, size, warn
from settle_outbox.kafka.clients import SESSION_TIMEOUT_MS
from settle_outbox.kafka.topics import read_settings_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kafka import KafkaAdminClient

    from settle_outbox.checks.check import Finding

BROKER = "broker"
CONNECT_TIMEOUT_S = 2.0
DISK_WARN_SHARE = 0.10
DISK_FAIL_SHARE = 0.03


def check_reached(bootstrap: str) -> Iterator[Finding]:
    """Check that one of the addresses accepts a connection.

    Args:
        bootstrap: comma-separated addresses.
    """
    failures = []
    for address in bootstrap.split(","):
        host, _, port = address.strip().rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
        except (OSError, ValueError) as error:
            failures.append(f"{address}: {error}")
        else:
            yield ok(BROKER, f"reached at {address}")
            return
    remedy = "start the broker and read its log, or correct KAFKA_BOOTSTRAP_SERVERS"
    yield fail(BROKER, "; ".join(failures), remedy)


def check_cluster(admin: KafkaAdminClient) -> Iterator[Finding]:
    """Check that the cluster has a controller, and count its brokers."""
    cluster = admin.describe_cluster()
    count = len(cluster["brokers"])
    found = f"{count} broker{'s' * (count != 1)}, controller {cluster['controller_id']}"
    if cluster["controller_id"] == -1:
        yield fail("cluster", found, "read the brokers' logs: they have elected no controller")
    else:
        yield ok("cluster", found)


def check_disk(admin: KafkaAdminClient) -> Iterator[Finding]:
    """Check the free disk space of the brokers (KIP-827: Kafka 3.3 and later)."""
    name = "broker disk"
    folders = [
        (f"broker {answer['broker']} {folder['log_dir']}", folder)
        for answer in admin.describe_log_dirs()
        for folder in answer["log_dirs"]
    ]
    broken = [where for where, folder in folders if folder["error_code"]]
    if broken:
        yield fail(name, f"offline: {', '.join(broken)}", "read the broker's log; repair the disk")
        return
    free = [
        (folder["usable_bytes"] / folder["total_bytes"], folder["usable_bytes"], where)
        for where, folder in folders
        if folder.get("total_bytes", -1) > 0
    ]
    if not free:
        yield ok(name, NOT_REPORTED)
        return
    share, usable, where = min(free)
    found = f"{size(usable)} free ({share:.0%}), {where}"
    remedy = "add disk space, or shorten TOPIC_RETENTION_S and retention.ms of the topics"
    if share < DISK_FAIL_SHARE:
        yield fail(name, found, remedy)
    elif share < DISK_WARN_SHARE:
        yield warn(name, found, remedy)
    else:
        yield ok(name, found)


def check_consumer_settings(admin: KafkaAdminClient) -> Iterator[Finding]:
    """Check that brokers accept the consumers' session time-out. Otherwise no consumer can join."""
    name = "session time-out"
    for broker in admin.describe_cluster()["brokers"]:
        settings = read_settings_of(admin, ConfigResourceType.BROKER, str(broker["broker_id"]))
        minimum = int(settings.get("group.min.session.timeout.ms", 0))
        maximum = int(settings.get("group.max.session.timeout.ms", SESSION_TIMEOUT_MS))
        if not minimum <= SESSION_TIMEOUT_MS <= maximum:
            yield fail(
                name,
                f"consumers ask for {SESSION_TIMEOUT_MS} ms, broker {broker['broker_id']} accepts"
                f" {minimum} to {maximum}",
                "change group.min.session.timeout.ms or group.max.session.timeout.ms",
            )
            return
        if not settings:
            yield ok(name, NOT_REPORTED)
            return
    yield ok(name, f"{SESSION_TIMEOUT_MS} ms, accepted by every broker")
