"""The topics: whether they are there as they were made, keep events long enough, and take them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from kafka import TopicPartition
from kafka.admin import ConfigResourceType, OffsetSpec
from kafka.errors import KafkaConnectionError

from settle.doctor.broker import settings_of
from settle.doctor.check import UNTOLD, duration, fail, graded, ok, warn
from settle.doctor.clocks import REMEDY, SKEW_FAIL_S, SKEW_WARN_S
from settle.doctor.delivery import LATE_FAIL_S, LATE_WARN_S
from settle_outbox.kafka.clients import MAX_REQUEST_BYTES
from settle_outbox.publish.outbox import PAYLOAD_MAX_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kafka import KafkaAdminClient

    from settle.doctor.check import Check
    from settle_outbox.settings import Settings

NO_LEADER = -1


def describe(admin: KafkaAdminClient, topics: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What the broker knows of those topics that there are."""
    told = admin.describe_topics(sorted(topics))
    return {topic["name"]: topic for topic in told if topic["error_code"] == 0}


def places(topic: dict[str, Any]) -> list[TopicPartition]:
    """A described topic's partitions."""
    return [
        TopicPartition(topic["name"], partition["partition_index"])
        for partition in topic["partitions"]
    ]


def check_topic(topic: str, found: dict[str, Any] | None, settings: Settings) -> Iterator[Check]:
    """Whether it is there, led and replicated, with the count of partitions that is set."""
    name = f"topic {topic}"
    if found is None:
        yield fail(
            name,
            "missing; nothing else of it was looked at",
            "start the relay of the service that publishes it: it creates the topic, and sends"
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
            "correct the setting; to raise the topic's count, see docs/how-to/add-partitions.md",
        )
    elif copies < settings.topic_replication:
        yield warn(
            name,
            f"{seen}; TOPIC_REPLICATION is {settings.topic_replication}",
            "kafka-reassign-partitions adds copies; a topic that exists is never altered",
        )
    elif behind:
        yield warn(name, f"{seen}; copies are behind: {behind}", "see the brokers that hold them")
    else:
        yield ok(name, seen)


def check_retention(admin: KafkaAdminClient, topic: str, settings: Settings) -> Iterator[Check]:
    """Whether an event can still be read when the inbox has forgotten it, or is gone too soon."""
    name = f"retention {topic}"
    told = settings_of(admin, ConfigResourceType.TOPIC, topic)
    if "retention.ms" not in told:
        yield ok(name, UNTOLD)
        return
    kept_s = int(told["retention.ms"]) / 1000
    if "compact" in told.get("cleanup.policy", "delete"):
        yield fail(
            name,
            "compacted: of each key, all events but the last go",
            f"kafka-configs --alter --topic {topic} --add-config cleanup.policy=delete",
        )
        return
    latest_s = settings.inbox_retention_s - settings.replay_window_s
    if not 0 <= kept_s < latest_s:
        kept = duration(kept_s) if kept_s >= 0 else "ever"
        yield fail(
            name,
            f"kept for {kept}, and with REPLAY_WINDOW_S ({duration(settings.replay_window_s)}) "
            f"longer than the inbox knows events ({duration(settings.inbox_retention_s)})",
            f"set retention.ms below {latest_s * 1000}, or INBOX_RETENTION_S higher: what the "
            "inbox has forgotten becomes a dead letter",
        )
    elif kept_s != settings.topic_retention_s:
        yield warn(
            name,
            f"kept for {duration(kept_s)}, TOPIC_RETENTION_S is "
            f"{duration(settings.topic_retention_s)}",
            "make them equal: retention.ms, or the setting",
        )
    elif int(told.get("retention.bytes", -1)) >= 0:
        yield warn(
            name,
            f"kept for {duration(kept_s)}, and no more than {told['retention.bytes']}"
            " bytes a partition",
            "set retention.bytes to -1: events may go before they are read",
        )
    elif told.get("message.timestamp.type") == "CreateTime":
        yield warn(
            name,
            f"kept for {duration(kept_s)} by the clocks of the relays: those of one whose clock is "
            "days behind are gone at once",
            f"kafka-configs --alter --topic {topic} --add-config "
            "message.timestamp.type=LogAppendTime",
        )
    else:
        yield ok(name, f"kept for {duration(kept_s)}")


def check_sending(
    admin: KafkaAdminClient, topic: dict[str, Any], settings: Settings
) -> Iterator[Check]:
    """Whether it takes what the relay sends: acknowledged by all copies, of up to 1 MiB."""
    name = f"sending {topic['name']}"
    told = settings_of(admin, ConfigResourceType.TOPIC, topic["name"])
    if not {"min.insync.replicas", "max.message.bytes"} <= told.keys():
        yield ok(name, UNTOLD)
        return
    least, largest = int(told["min.insync.replicas"]), int(told["max.message.bytes"])
    copies = min(len(each["replica_nodes"]) for each in topic["partitions"])
    in_sync = min(len(each["isr_nodes"]) for each in topic["partitions"])
    if in_sync < least:
        why = "ever" if copies < least else "now"
        yield fail(
            name,
            f"min.insync.replicas is {least}, of {copies} copies {in_sync} are in "
            f"sync: nothing is taken {why}",
            "start the brokers that are missing, or set min.insync.replicas lower",
        )
    elif largest < PAYLOAD_MAX_BYTES:
        yield fail(
            name,
            f"max.message.bytes is {largest}: events of up to {PAYLOAD_MAX_BYTES} "
            "bytes are accepted, and would be refused",
            f"set it to {MAX_REQUEST_BYTES}",
        )
    elif largest < MAX_REQUEST_BYTES:
        yield warn(
            name,
            f"max.message.bytes is {largest}, the relay sends up to {MAX_REQUEST_BYTES}",
            "set it to that",
        )
    elif settings.topic_replication > 1 and least == 1:
        yield warn(
            name,
            "min.insync.replicas is 1: what one copy alone has acknowledged is lost "
            "with its broker",
            "set it to 2",
        )
    elif told.get("unclean.leader.election.enable") == "true":
        yield warn(
            name,
            "unclean.leader.election.enable: acknowledged events can be lost",
            "set it to false",
        )
    else:
        yield ok(name, f"acks=all of {least} at the least, up to {largest} bytes")


def check_transactions(admin: KafkaAdminClient, topic: dict[str, Any]) -> Iterator[Check]:
    """Check for transactions that stay open: nothing behind their first record is consumed."""
    name = f"transactions {topic['name']}"
    try:
        states = admin.describe_producers(places(topic))
    except KafkaConnectionError:
        yield ok(name, UNTOLD)  # the embedded broker hangs up
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
    yield graded(
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


def check_newest(admin: KafkaAdminClient, topic: dict[str, Any]) -> Iterator[Check]:
    """Whether its newest record comes from the future: a relay's clock, or ours, is wrong."""
    name = f"clock {topic['name']}"
    try:
        told = admin.list_partition_offsets(dict.fromkeys(places(topic), OffsetSpec.MAX_TIMESTAMP))
    except KafkaConnectionError:
        yield ok(name, UNTOLD)  # the embedded one hangs up
        return
    newest_ms = max(each.timestamp for each in told.values())
    if newest_ms < 0:
        yield ok(name, "cannot be told: the topic is empty")
        return
    ahead_s = newest_ms / 1000 - time.time()
    when = f"{duration(abs(ahead_s))} {'from now' if ahead_s > 0 else 'ago'}"
    yield graded(
        name,
        ahead_s,
        f"newest record: {when}",
        REMEDY,
        warn_over=SKEW_WARN_S,
        fail_over=SKEW_FAIL_S,
    )
