"""The stack on Apache Kafka, which keeps its records when it restarts."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
from kafka import KafkaAdminClient

from settle.stack.definition import BROKER
from settle.stack.embedded import kafka
from support.stack import Load, Stack
from support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.acceptance


def topics(stack: Stack) -> dict[str, Any]:
    """Return the ids of the topics. A topic that was created again would have another id."""
    admin = KafkaAdminClient(bootstrap_servers=f"127.0.0.1:{stack.ports['KAFKA_PORT']}")
    try:
        described = admin.describe_topics(["orders.events", "payments.events"])
    finally:
        admin.close()
    return {topic["name"]: topic["topic_id"] for topic in described}


@pytest.mark.skipif(kafka.why_missing() is not None, reason=f"{kafka.why_missing()}")
@pytest.mark.timeout(600)
def test_the_stack_runs_on_apache_kafka_which_keeps_its_topics() -> None:
    stack = Stack(BROKER="kafka")
    try:
        assert "Apache Kafka serves on" in stack.up()
        demo = stack.settle("demo")
        assert demo.returncode == 0, demo.stderr
        assert {process["state"] for process in stack.processes().values()} == {"ready"}
        refused = stack.settle("up", BROKER="embedded")
        assert (
            "other settings: BROKER. To start it with the new ones, run settle down"
            in refused.stderr
        )

        known = topics(stack)
        user_id = stack.open_account(100_000)
        pid = stack.processes()[BROKER]["pid"]

        def is_back() -> bool:
            process = stack.processes()[BROKER]
            return process["state"] == "ready" and process["pid"] != pid

        with Load(stack, user_id, 1) as load:
            os.kill(pid, signal.SIGKILL)
            wait_until(is_back, timeout_s=60, what="Apache Kafka to be back")
        assert set(stack.wait_settled(load.accepted)) == {"success"}

        assert stack.settle("down").returncode == 0
        assert stack.running() == []
        stack.up()
        assert topics(stack) == known
        last = stack.place_order(user_id, 1)
        assert last is not None
        assert stack.wait_settled([last]) == ["success"]
        assert str(stack.home / "kafka") in stack.settle("status").stdout
        assert stack.settle("logs", "broker").returncode == 0
    finally:
        stack.discard()
    assert not stack.home.exists()


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"BROKER": "rabbit"}, "BROKER is 'rabbit': set it to embedded or kafka."),
        ({"BROKER": "kafka", "KAFKA_BOOTSTRAP_SERVERS": "k:9092"}, "unset one of them"),
        ({"BROKER": "kafka", "PATH": "nothing"}, "install default-jre-headless and maven"),
    ],
)
def test_a_wrong_broker_setting_is_reported_in_one_sentence(
    tmp_path: Path, env: dict[str, str], message: str
) -> None:
    stack = Stack()
    try:
        refused = stack.settle("up", **env)
        assert refused.returncode == 1
        assert message in refused.stderr
        assert refused.stderr.count("\n") == 1
        assert stack.running() == []
    finally:
        stack.discard()
