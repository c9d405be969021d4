"""The broker: whether it is reached, how it is, its disk, and what it demands of our clients."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from kafka.admin import ConfigResource, ConfigResourceType

from settle.doctor.check import UNTOLD, fail, ok, size, warn
from settle.stack.definition import BOOTSTRAP, BROKER
from settle_outbox.kafka.clients import SESSION_TIMEOUT_MS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kafka import KafkaAdminClient

    from settle.doctor.check import Check

ASK_TIMEOUT_S = 2.0
DISK_WARN_SHARE = 0.10
DISK_FAIL_SHARE = 0.03


def check_reached(bootstrap: str) -> Iterator[Check]:
    """Whether one of its addresses takes a connection."""
    refused = []
    for address in bootstrap.split(","):
        host, _, port = address.strip().rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=ASK_TIMEOUT_S).close()
        except (OSError, ValueError) as error:
            refused.append(f"{address}: {error}")
        else:
            yield ok(BROKER, f"reached at {address}")
            return
    yield fail(BROKER, "; ".join(refused), f"settle logs {BROKER}, or check {BOOTSTRAP}")


def check_cluster(admin: KafkaAdminClient) -> Iterator[Check]:
    """Whether it has a controller, and how many brokers it is."""
    cluster = admin.describe_cluster()
    count = len(cluster["brokers"])
    found = f"{count} broker{'s' * (count != 1)}, controller {cluster['controller_id']}"
    if cluster["controller_id"] == -1:
        yield fail("cluster", found, "see the brokers' logs: they have elected no controller")
    else:
        yield ok("cluster", found)


def check_disk(admin: KafkaAdminClient) -> Iterator[Check]:
    """The room that is left where the brokers keep the topics (KIP-827: Kafka 3.3 and later)."""
    name = "broker disk"
    folders = [
        (f"broker {told['broker']} {folder['log_dir']}", folder)
        for told in admin.describe_log_dirs()
        for folder in told["log_dirs"]
    ]
    broken = [where for where, folder in folders if folder["error_code"]]
    if broken:
        yield fail(name, f"does not work: {', '.join(broken)}", "see the broker's log; mend it")
        return
    rooms = [
        (folder["usable_bytes"] / folder["total_bytes"], folder["usable_bytes"], where)
        for where, folder in folders
        if folder.get("total_bytes", -1) > 0
    ]
    if not rooms:
        yield ok(name, UNTOLD)
        return
    share, usable, where = min(rooms)
    found = f"{size(usable)} free ({share:.0%}), {where}"
    remedy = "give it room, or shorten TOPIC_RETENTION_S and the topics' retention.ms"
    if share < DISK_FAIL_SHARE:
        yield fail(name, found, remedy)
    elif share < DISK_WARN_SHARE:
        yield warn(name, found, remedy)
    else:
        yield ok(name, found)


def check_consumer_settings(admin: KafkaAdminClient) -> Iterator[Check]:
    """Whether the brokers take our consumers' session time-out; they refuse the join if not."""
    name = "session time-out"
    for broker in admin.describe_cluster()["brokers"]:
        told = settings_of(admin, ConfigResourceType.BROKER, str(broker["broker_id"]))
        least = int(told.get("group.min.session.timeout.ms", 0))
        most = int(told.get("group.max.session.timeout.ms", SESSION_TIMEOUT_MS))
        if not least <= SESSION_TIMEOUT_MS <= most:
            yield fail(
                name,
                f"consumers ask for {SESSION_TIMEOUT_MS} ms, broker {broker['broker_id']} takes "
                f"{least} to {most}",
                "set group.min.session.timeout.ms and group.max.session.timeout.ms around it",
            )
            return
        if not told:
            yield ok(name, UNTOLD)
            return
    yield ok(name, f"{SESSION_TIMEOUT_MS} ms, within what every broker takes")


def settings_of(admin: KafkaAdminClient, kind: ConfigResourceType, name: str) -> dict[str, str]:
    """What a topic or a broker is set to, by the settings' names; empty when it is not told."""
    told = admin.describe_configs([ConfigResource(kind, name)], config_filter="all")
    found = told.get(kind.name.lower(), {}).get(name, {})
    return {
        setting: entry["value"] for setting, entry in found.items() if entry["value"] is not None
    }
