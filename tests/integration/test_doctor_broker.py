"""Each of the doctor's checks of a broker reports the problem that it looks for."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from kafka import OffsetAndMetadata, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import CoordinatorNotAvailableError

from settle.doctor.examine import configured_services, examine
from settle.stack.state import StateFolder
from settle_outbox.checks import broker as broker_checks
from settle_outbox.checks import groups, topics
from settle_outbox.kafka.clients import make_admin
from settle_outbox.kafka.topics import ensure_topics
from support.broker import KAFKA, chosen_broker
from support.delivery import ORDERS, PAYMENTS, Delivery, order_created, patient_producer
from support.doctor import UNDURABLE, Doctor
from support.environ import environment
from support.ports import free_port
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kafka import KafkaAdminClient

pytestmark = pytest.mark.slow

SERVICES = ("payments", "orders")
# Settings with which a relay creates a topic. A test that changes them sets them back.
AS_CREATED = {"retention.ms": str(7 * 86_400_000), "message.timestamp.type": "LogAppendTime"}
needs_kafka = pytest.mark.skipif(
    chosen_broker().kind != KAFKA,
    reason="the embedded broker does not show its settings and groups",
)


@pytest.fixture
def doctor(tmp_path: Path, delivery: Delivery) -> Doctor:
    """Return a doctor for the payments service, whose consumer reads the orders topic."""
    return Doctor(tmp_path, {"payments": delivery.payments_url}, delivery.bootstrap)


@pytest.fixture
def sender_timestamps(delivery: Delivery) -> None:
    """Create an orders topic whose records keep the timestamps of their senders."""
    delivery.create_topic_with_senders_times(ORDERS)


@pytest.fixture
def admin(delivery: Delivery) -> Iterator[KafkaAdminClient]:
    """Create both topics, and return a client that administers their broker."""
    settings = delivery.settings("payments")
    client = make_admin(settings, "test")
    ensure_topics(client, [ORDERS, PAYMENTS], settings)
    yield client
    client.close()


@pytest.mark.parametrize("quick", [False, True])
def test_only_the_database_and_broker_of_a_lone_service_are_checked(
    tmp_path: Path, delivery: Delivery, *, quick: bool
) -> None:
    """A container, or a machine of one service, has no stack and no embedded server to check."""
    state = StateFolder(tmp_path / "none")
    doctor = Doctor(state.home, {"orders": delivery.orders_url}, delivery.bootstrap)
    with environment({**doctor.environ, "PAYMENTS_DATABASE_URL": "", "BIND_ADDRESS": "192.0.2.1"}):
        services = configured_services(state)

        by_default = [each.name for each in examine(state, quick=quick, services=services)]
        by_name = [each.name for each in examine(state, quick=quick, services=["orders"])]

    assert by_default == by_name
    subjects = {name.partition(" ")[0] for name in by_default}
    assert {"python", "orders", "broker"} <= subjects
    assert not subjects & {"folder", "disk", "supervisord", "port", "ports", "postgres", "payments"}


def test_the_stack_is_checked_if_a_database_of_a_service_is_not_named(
    tmp_path: Path, delivery: Delivery
) -> None:
    state = StateFolder(tmp_path)
    doctor = Doctor(tmp_path, {"orders": delivery.orders_url}, delivery.bootstrap)
    with environment({**doctor.environ, "PAYMENTS_DATABASE_URL": ""}):
        services = configured_services(state)

        names = {each.name for each in examine(state, quick=True, services=services)}

    assert services == ["payments", "orders"]
    assert {"folder", "supervisord", "postgres"} <= names


def produce(delivery: Delivery, ages_s: list[float], partition: int = 0) -> None:
    """Send events of these ages to the orders topic."""
    producer = patient_producer(delivery.bootstrap)
    record = order_created(uuid4(), 1)
    for age_s in ages_s:
        producer.send(
            ORDERS,
            value=record.value,
            headers=record.headers,
            partition=partition,
            timestamp_ms=int((time.time() - age_s) * 1000),
        ).get(30)
    producer.close()


@contextmanager
def settled_orders(tmp_path: Path, delivery: Delivery) -> Iterator[Doctor]:
    """Run relays and consumers, settle three orders, and yield a doctor."""
    urls = {service: delivery.url(service) for service in SERVICES}
    with ExitStack() as stack:
        for service in SERVICES:
            stack.enter_context(delivery.relay(service))
            stack.enter_context(delivery.consumer(service))
        delivery.place(delivery.open_account(100), 10, count=3)
        wait_until(
            lambda: delivery.statuses().get("success") == 3,
            timeout_s=60,
            what="the orders to settle",
        )
        yield Doctor(tmp_path, urls, delivery.bootstrap)


def wait_until_healthy(doctor: Doctor) -> None:
    """Wait until all checks are ok, except those in UNDURABLE.

    Offset commits and new partitions may take a moment.
    """

    def is_healthy() -> bool:
        checks = doctor.examine().values()
        bad = [each for each in checks if each.verdict != "ok" and each.name not in UNDURABLE]
        assert not bad, bad
        return True

    wait_until(is_healthy, timeout_s=30, what="the doctor to find no problem")


def test_a_healthy_system_has_no_problems(tmp_path: Path, delivery: Delivery) -> None:
    """If there are only warnings, the exit code is 0, and with --strict it is 1."""
    with settled_orders(tmp_path, delivery) as doctor:
        wait_until_healthy(doctor)
        environ = doctor.environ | {"TOPIC_PARTITIONS": "5"}  # causes a warning: the topics have 6
        done = delivery.run("settle", "doctor", **environ)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"warn  topic {ORDERS}" in done.stdout
        assert "TOPIC_PARTITIONS is 5 -> " in done.stdout
        strict = delivery.run("settle", "doctor", "orders", "--strict", "--json", **environ)
        assert (strict.returncode, strict.stderr) == (1, "")
        bad = {each["name"] for each in json.loads(strict.stdout) if each["verdict"] != "ok"}
        assert bad - UNDURABLE == {f"topic {ORDERS}", f"topic {PAYMENTS}"}


def test_a_healthy_system_on_the_embedded_broker_has_no_problems(
    tmp_path: Path, embedded_delivery: Delivery
) -> None:
    with settled_orders(tmp_path, embedded_delivery) as doctor:
        wait_until_healthy(doctor)


def test_missing_topics_are_reported(doctor: Doctor) -> None:
    for topic in (ORDERS, PAYMENTS):
        assert doctor.verdict(f"topic {topic}")[0] == "fail"
    assert doctor.seen["payments consumers"].verdict == "fail"
    assert "payments lag" not in doctor.seen


def test_topics_that_differ_from_the_settings_are_reported(
    doctor: Doctor, admin: KafkaAdminClient
) -> None:
    name = f"topic {ORDERS}"
    verdict, text = doctor.verdict(name, TOPIC_PARTITIONS="3")
    assert (verdict, "6 partitions" in text) == ("warn", True)
    verdict, text = doctor.verdict(name, TOPIC_REPLICATION="3")
    assert (verdict, "1 copy" in text) == ("warn", True)


@pytest.mark.parametrize(
    ("leader", "copies", "in_sync", "verdict"),
    [
        (-1, [1, 2], [], "fail"),
        (1, [1, 2], [1], "warn"),
        (1, [1], [1], "warn"),
        (1, [1, 2], [1, 2], "ok"),
    ],
)
def test_a_missing_leader_a_late_replica_and_a_single_copy_are_reported(
    delivery: Delivery, leader: int, copies: list[int], in_sync: list[int], verdict: str
) -> None:
    """The metadata is made up, because the broker of the tests has one node.

    The lists contain ids of nodes. The leader -1 means that there is no leader.
    """
    partition = {
        "partition_index": 0,
        "leader_id": leader,
        "replica_nodes": copies,
        "isr_nodes": in_sync,
    }
    settings = delivery.settings("payments", topic_partitions=1)

    (check,) = topics.check_topic(
        ORDERS, {"name": ORDERS, "partitions": [partition]}, settings, brokers=2
    )

    assert check.verdict == verdict


DAY_MS = 86_400_000
# Topic settings, the check that reports them, its verdict, and a part of its text.
WRONG_SETTINGS = [
    ({"retention.ms": str(60 * DAY_MS)}, "retention", "fail", "longer than the inbox knows"),
    ({"retention.ms": "-1"}, "retention", "fail", "kept forever"),
    ({"retention.ms": str(DAY_MS)}, "retention", "warn", "kept for 24 h"),
    ({"cleanup.policy": "compact"}, "retention", "fail", "compacted"),
    ({"retention.bytes": "1000000"}, "retention", "warn", "no more than 1000000 bytes"),
    ({"message.timestamp.type": "CreateTime"}, "retention", "warn", "by the clocks of the relays"),
    ({"min.insync.replicas": "2"}, "sending", "fail", "no event is accepted at any time"),
    ({"max.message.bytes": "1000"}, "sending", "fail", "max.message.bytes is 1000"),
    ({"max.message.bytes": "950000"}, "sending", "warn", "max.message.bytes is 950000"),
    ({"unclean.leader.election.enable": "true"}, "sending", "warn", "can be lost"),
]


@needs_kafka
def test_wrong_topic_settings_are_reported(doctor: Doctor, admin: KafkaAdminClient) -> None:
    for changed, check, expected, found in WRONG_SETTINGS:
        resource = ConfigResource(ConfigResourceType.TOPIC, ORDERS, changed)
        admin.alter_configs([resource])
        name = f"{check} {ORDERS}"

        # The defaults bind the values of this turn of the loop.
        def is_reported(name: str = name, expected: str = expected, found: str = found) -> bool:
            verdict, text = doctor.verdict(name)
            assert (verdict, found in text) == (expected, True), text
            return True

        wait_until(is_reported, what=f"{changed} to be reported")
        admin.reset_configs([ConfigResource(ConfigResourceType.TOPIC, ORDERS, list(changed))])
        assert doctor.seen[f"{check} {PAYMENTS}"].verdict == "ok"
        for setting in AS_CREATED.keys() & changed.keys():
            original = {setting: AS_CREATED[setting]}
            admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, ORDERS, original)])


@needs_kafka
def test_a_session_time_out_that_the_broker_refuses_is_reported(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_checks, "SESSION_TIMEOUT_MS", 1_000)
    verdict, text = doctor.verdict("session time-out")
    assert (verdict, "accepts 6000 to" in text) == ("fail", True), text


@needs_kafka
def test_a_full_broker_disk_is_reported(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    # Report a disk as full if less than 100 % of it is free.
    monkeypatch.setattr(broker_checks, "DISK_WARN_SHARE", 1.0)
    assert doctor.verdict("broker disk")[0] == "warn"
    monkeypatch.setattr(broker_checks, "DISK_FAIL_SHARE", 1.0)
    assert doctor.verdict("broker disk")[0] == "fail"


def test_a_group_with_lag_is_reported(
    doctor: Doctor,
    sender_timestamps: None,
    admin: KafkaAdminClient,
    delivery: Delivery,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert doctor.verdict("payments lag") == ("ok", "none")
    produce(delivery, [120, 0])
    verdict, text = doctor.verdict("payments lag")
    assert (verdict, text[:9]) == ("warn", "2 records"), text
    assert doctor.seen["payments consumers"].verdict == "fail"  # no consumer ever joined the group
    produce(delivery, [3600], partition=1)
    verdict, text = doctor.verdict("payments lag")
    assert (verdict, text) == ("fail", "3 records, the first for 60 min")
    produce(delivery, [0], partition=2)
    monkeypatch.setattr(groups, "LAG_WARN_RECORDS", 3)
    monkeypatch.setattr(groups, "LATE_FAIL_S", 10_000.0)
    assert doctor.verdict("payments lag")[0] == "warn"


@needs_kafka
def test_a_group_without_consumers_or_with_a_wrong_offset_is_reported(
    doctor: Doctor, admin: KafkaAdminClient, delivery: Delivery
) -> None:
    produce(delivery, [0] * 5)
    place = TopicPartition(ORDERS, 0)

    def commit(offset: int) -> None:
        def committed() -> bool:
            try:
                admin.alter_group_offsets("payments", {place: OffsetAndMetadata(offset, "", -1)})
            except CoordinatorNotAvailableError:
                return False  # the first request makes the broker create its topic for offsets
            stored = admin.list_group_offsets("payments")["payments"]
            return bool(stored[place].offset == offset)

        wait_until(committed, timeout_s=30, what="the offset to be committed")

    commit(5)
    assert doctor.verdict("payments lag") == ("ok", "none")
    consumers = doctor.seen["payments consumers"]
    assert (consumers.verdict, "no consumer is in" in consumers.found) == ("fail", True)
    commit(9)
    verdict, text = doctor.verdict("payments lag")
    assert (verdict, "beyond the end" in text) == ("warn", True)
    commit(2)
    admin.delete_records({place: 4})
    verdict, text = doctor.verdict("payments lag")
    assert (verdict, text) == ("fail", "2 records were deleted before they were read")


@needs_kafka
def test_a_record_from_the_future_is_reported(
    doctor: Doctor, sender_timestamps: None, admin: KafkaAdminClient, delivery: Delivery
) -> None:
    assert doctor.verdict(f"clock {ORDERS}") == ("ok", "not checked: the topic is empty")
    for ahead_s, expected in ((20, "warn"), (600, "fail")):
        produce(delivery, [-ahead_s])
        verdict, text = doctor.verdict(f"clock {ORDERS}")
        assert (verdict, "from now" in text) == (expected, True), text


def test_a_broker_that_is_down_or_invalid_is_reported(doctor: Doctor) -> None:
    doctor.bootstrap = f"127.0.0.1:{free_port()}"
    verdict, text = doctor.verdict("broker")
    assert (verdict, "refused" in text) == ("fail", True)
    assert "cluster" not in doctor.seen
    doctor.bootstrap = "127.0.0.1"
    assert doctor.verdict("broker")[0] == "fail"


def test_a_missing_setting_is_reported(doctor: Doctor, delivery: Delivery) -> None:
    """A missing setting is only a warning. The exit code is 1 because the topics are missing."""
    environ = doctor.environ | {"ORDERS_DATABASE_URL": ""}
    done = delivery.run("settle", "doctor", "--json", **environ)
    assert (done.returncode, done.stderr) == (1, "")
    checks = {each["name"]: each for each in json.loads(done.stdout)}
    assert "ORDERS_DATABASE_URL is not set" in checks["stack"]["found"]
    assert checks["payments db"]["verdict"] == "ok"
    assert "orders db" not in checks
