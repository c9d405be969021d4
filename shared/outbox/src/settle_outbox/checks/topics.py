"""Check the topics: existence, partitions, retention, and whether they accept events."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from kafka import TopicPartition
from kafka.admin import ConfigResourceType, OffsetSpec
from kafka.errors import KafkaConnectionError

from settle_outbox.checks.check import NOT_REPORTED, duration, fail, grade, ok, warn
from settle_outbox.checks.clocks import REMEDY, SKEW_FAIL_S, SKEW_WARN_S
from settle_outbox.checks.delivery import LATE_FAIL_S, LATE_WARN_S
from settle_outbox.kafka.clients import MAX_REQUEST_BYTES
from settle_outbox.kafka.topics import read_settings_of
from settle_outbox.publish.outbox import PAYLOAD_MAX_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kafka import KafkaAdminClient

    from settle_outbox.checks.check import Finding
    from settle_outbox.settings import Settings

NO_LEADER = -1


def describe(admin: KafkaAdminClient, topics: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the broker's description of each topic that exists."""
    answer = admin.describe_topics(sorted(topics))
    return {topic["name"]: topic for topic in answer if topic["error_code"] == 0}


def partitions_of(topic: dict[str, Any]) -> list[TopicPartition]:
    """Return the partitions of a described topic."""
    return [
        TopicPartition(topic["name"], partition["partition_index"])
        for partition in topic["partitions"]
    ]


def check_topic(
    topic: str, found: dict[str, Any] | None, settings: Settings, *, brokers: int
) -> Iterator[Finding]:
    """Check that a topic exists, has leaders and in-sync copies, and is as configured.

    Args:
        topic: its name.
        found: its description; None if it does not exist.
        settings: of a service that uses it.
        brokers: the number of brokers.
    """
    name = f"topic {topic}"
    if found is None:
        yield fail(
            name,
            "missing; its other checks were left out",
            "start the relay of the service that publishes it: it creates the topic and sends"
            " the events again",
        )
        return
    partitions = found["partitions"]
    leaderless = [each["partition_index"] for each in partitions if each["leader_id"] == NO_LEADER]
    behind = [
        each["partition_index"]
        for each in partitions
        if len(each["isr_nodes"]) < len(each["replica_nodes"])
    ]
    copies = min(len(each["replica_nodes"]) for each in partitions)
    seen = f"{len(partitions)} partitions, {copies} cop{'y' if copies == 1 else 'ies'} of each"
    if leaderless:
        yield fail(name, f"{seen}; no leader: {leaderless}", "start the brokers that hold them")
    elif len(partitions) != settings.topic_partitions:
        yield warn(
            name,
            f"{seen}; TOPIC_PARTITIONS is {settings.topic_partitions}",
            "correct the setting; to add partitions, see docs/how-to/add-partitions.md",
        )
    elif copies < settings.topic_replication:
        yield warn(
            name,
            f"{seen}; TOPIC_REPLICATION is {settings.topic_replication}",
            "add copies with kafka-reassign-partitions: an existing topic is never altered",
        )
    elif copies == 1 < brokers:
        yield warn(
            name,
            f"{seen} on {brokers} brokers: its events are lost with the disk of one",
            "add copies with kafka-reassign-partitions, and set TOPIC_REPLICATION for new topics",
        )
    elif behind:
        yield warn(name, f"{seen}; copies lag behind: {behind}", "check the brokers that hold them")
    else:
        yield ok(name, seen)


def check_retention(admin: KafkaAdminClient, topic: str, settings: Settings) -> Iterator[Finding]:
    """Check that the topic keeps events long enough, but not longer than the inbox knows them."""
    name = f"retention {topic}"
    found = read_settings_of(admin, ConfigResourceType.TOPIC, topic)
    if "retention.ms" not in found:
        yield ok(name, NOT_REPORTED)
        return
    kept_s = int(found["retention.ms"]) / 1000
    if "compact" in found.get("cleanup.policy", "delete"):
        yield fail(
            name,
            "compacted: only the last event of each key is kept",
            f"kafka-configs --alter --topic {topic} --add-config cleanup.policy=delete",
        )
        return
    latest_s = settings.inbox_retention_s - settings.replay_window_s
    if not 0 <= kept_s < latest_s:
        kept = f"for {duration(kept_s)}" if kept_s >= 0 else "forever"
        yield fail(
            name,
            f"kept {kept}, and with REPLAY_WINDOW_S ({duration(settings.replay_window_s)}) "
            f"longer than the inbox knows events ({duration(settings.inbox_retention_s)})",
            f"set retention.ms below {latest_s * 1000}, or raise INBOX_RETENTION_S: an event that"
            " the inbox has forgotten becomes a dead letter",
        )
    elif kept_s != settings.topic_retention_s:
        yield warn(
            name,
            f"kept for {duration(kept_s)}, TOPIC_RETENTION_S is "
            f"{duration(settings.topic_retention_s)}",
            "change retention.ms or the setting, so that they are equal",
        )
    elif int(found.get("retention.bytes", -1)) >= 0:
        yield warn(
            name,
            f"kept for {duration(kept_s)}, and no more than {found['retention.bytes']}"
            " bytes per partition",
            "set retention.bytes to -1: events may be deleted before they are read",
        )
    elif found.get("message.timestamp.type") == "CreateTime":
        yield warn(
            name,
            f"kept for {duration(kept_s)} by the clocks of the relays: the events of a relay whose"
            " clock is days behind are deleted at once",
            f"kafka-configs --alter --topic {topic} --add-config "
            "message.timestamp.type=LogAppendTime",
        )
    else:
        yield ok(name, f"kept for {duration(kept_s)}")


def check_sending(
    admin: KafkaAdminClient, topic: dict[str, Any], settings: Settings
) -> Iterator[Finding]:
    """Check that the topic accepts records of 1 MiB, and loses no acknowledged record."""
    name = f"sending {topic['name']}"
    found = read_settings_of(admin, ConfigResourceType.TOPIC, topic["name"])
    if not {"min.insync.replicas", "max.message.bytes"} <= found.keys():
        yield ok(name, NOT_REPORTED)
        return
    minimum, largest = int(found["min.insync.replicas"]), int(found["max.message.bytes"])
    copies = min(len(each["replica_nodes"]) for each in topic["partitions"])
    in_sync = min(len(each["isr_nodes"]) for each in topic["partitions"])
    if in_sync < minimum:
        when = "now" if copies >= minimum else "at any time"
        yield fail(
            name,
            f"min.insync.replicas is {minimum}, {in_sync} of {copies} copies are in sync: no event"
            f" is accepted {when}",
            "start the missing brokers, or lower min.insync.replicas",
        )
    elif largest < PAYLOAD_MAX_BYTES:
        yield fail(
            name,
            f"max.message.bytes is {largest}: the outbox accepts events of up to"
            f" {PAYLOAD_MAX_BYTES} bytes, and the broker would refuse them",
            f"set it to {MAX_REQUEST_BYTES}",
        )
    elif largest < MAX_REQUEST_BYTES:
        yield warn(
            name,
            f"max.message.bytes is {largest}, the relay sends up to {MAX_REQUEST_BYTES}",
            f"set it to {MAX_REQUEST_BYTES}",
        )
    elif max(settings.topic_replication, copies) > 1 and minimum == 1:
        yield warn(
            name,
            "min.insync.replicas is 1: an event that only one copy has acknowledged is lost with"
            " its broker",
            "set it to 2",
        )
    elif found.get("unclean.leader.election.enable") == "true":
        yield warn(
            name,
            "unclean.leader.election.enable: acknowledged events can be lost",
            "set it to false",
        )
    else:
        yield ok(name, f"acks=all by at least {minimum} copies, up to {largest} bytes")


def check_transactions(admin: KafkaAdminClient, topic: dict[str, Any]) -> Iterator[Finding]:
    """Check for open Kafka transactions: consumers read nothing behind the start of one."""
    name = f"transactions {topic['name']}"
    try:
        states = admin.describe_producers(partitions_of(topic))
    except KafkaConnectionError:
        yield ok(name, NOT_REPORTED)  # the embedded broker closes the connection
        return
    open_ones = [
        (time.time() - producer.last_timestamp / 1000, partition, producer)
        for partition, state in states.items()
        for producer in state.active_producers
        if producer.current_transaction_start_offset >= 0
    ]
    if not open_ones:
        yield ok(name, "none is open")
        return
    age_s, partition, producer = max(open_ones, key=lambda each: each[0])
    yield grade(
        name,
        age_s,
        f"{len(open_ones)} open; producer {producer.producer_id} wrote last {duration(age_s)} ago,"
        f" and holds back partition {partition.partition} from offset"
        f" {producer.current_transaction_start_offset} on",
        "end the producer's transaction, or abort it: kafka-transactions --bootstrap-server ..."
        f" abort --topic {partition.topic} --partition {partition.partition}"
        f" --start-offset {producer.current_transaction_start_offset}",
        warn_over=LATE_WARN_S,
        fail_over=LATE_FAIL_S,
    )


def check_newest(admin: KafkaAdminClient, topic: dict[str, Any]) -> Iterator[Finding]:
    """Check that the newest record is not from the future. Otherwise a clock is wrong."""
    name = f"clock {topic['name']}"
    try:
        newest = dict.fromkeys(partitions_of(topic), OffsetSpec.MAX_TIMESTAMP)
        offsets = admin.list_partition_offsets(newest)
    except KafkaConnectionError:
        yield ok(name, NOT_REPORTED)  # the embedded broker closes the connection
        return
    newest_ms = max(offset.timestamp for offset in offsets.values())
    if newest_ms < 0:
        yield ok(name, "not checked: the topic is empty")
        return
    ahead_s = newest_ms / 1000 - time.time()
    when = f"{duration(abs(ahead_s))} {'from now' if ahead_s > 0 else 'ago'}"
    yield grade(
        name,
        ahead_s,
        f"newest record: {when}",
        REMEDY,
        warn_over=SKEW_WARN_S,
        fail_over=SKEW_FAIL_S,
    )
