"""The broker of the tests: Apache Kafka if it is installed, otherwise the embedded broker."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from abc import ABC, abstractmethod
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from kafka import KafkaAdminClient
from kafka.admin import MemberToRemove
from kafka.errors import KafkaError

from settle.stack.embedded import broker as embedded
from settle.stack.embedded import kafka
from support.ports import free_port
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

# Selects the broker. If it is `kafka` and Kafka is not installed, tests fail.
BROKER_VARIABLE = "SETTLE_TEST_BROKER"
KAFKA, EMBEDDED = "kafka", "embedded"
STOP_TIMEOUT_S = 30


@cache
def chosen() -> tuple[str, str]:
    """Return the broker that the tests run on, and the reason for the choice."""
    forced = os.environ.get(BROKER_VARIABLE)
    if forced:
        if forced not in {KAFKA, EMBEDDED}:
            raise ValueError(f"{BROKER_VARIABLE} is {forced!r}: set it to {KAFKA} or {EMBEDDED}.")
        return forced, f"{BROKER_VARIABLE} is set"
    problem = kafka.missing()
    return (KAFKA, "Apache Kafka can run here") if problem is None else (EMBEDDED, problem)


def open_broker(advertised_port: int | None = None) -> Broker:
    """Return the chosen broker. It is not started yet.

    Args:
        advertised_port: The port that the broker gives to clients, for example a proxy's.
    """
    return KafkaBroker(advertised_port) if chosen()[0] == KAFKA else EmbeddedBroker(advertised_port)


class Broker(ABC):
    """A broker on a free port of 127.0.0.1. It keeps the port when it starts again.

    The end of the `with` block removes its data.
    """

    def __init__(self, advertised_port: int | None = None) -> None:
        self.port = free_port()
        self._advertised_port = advertised_port or self.port
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.discard()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    @property
    def pid(self) -> int | None:
        """The id of its process, or None if it does not run."""
        return self._process.pid if self._process is not None else None

    @property
    def folder(self) -> Path | None:
        """The folder of its data, or None if the data is in memory."""
        return None

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    @abstractmethod
    def start(self) -> None:
        """Start the broker with its stored data, and wait until it answers."""

    @abstractmethod
    def forget(self) -> None:
        """Delete all topics and offsets. The broker must not run."""

    @abstractmethod
    def reset(self) -> None:
        """Delete all topics and groups while the broker runs, for the next test."""

    def stop(self) -> None:
        """Stop the broker, as an operator would."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the broker without warning."""
        self._end(signal.SIGKILL)

    def discard(self) -> None:
        """Stop the broker and remove its data."""
        self._end(signal.SIGKILL)
        self.forget()

    def _start(self, command: list[str], serves: Callable[[], bool]) -> None:
        with tempfile.TemporaryFile() as log:
            process = self._process = subprocess.Popen(
                command, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

            def runs_and_serves() -> bool:
                if process.poll() is None:
                    return serves()
                log.seek(0)
                raise RuntimeError(
                    f"The broker exited while it was starting:\n{log.read().decode()}"
                )

            wait_until(runs_and_serves, timeout_s=60, what="the broker to serve")

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        self._process.wait(STOP_TIMEOUT_S)
        self._process = None

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=10).close()
        except OSError:
            return False
        return True


class EmbeddedBroker(Broker):
    """The broker that `settle up` starts by default. It loses its data when it stops."""

    def start(self) -> None:
        advertised = f"--advertised-listener-url=tcp://127.0.0.1:{self._advertised_port}"
        # Replace the last argument, the advertised address: the broker ignores a repeated option.
        self._start([*embedded.command(self.port)[:-1], advertised], self._listens)

    def forget(self) -> None:
        """Do nothing, because its data is already lost."""

    def reset(self) -> None:
        self.kill()
        self.start()


class KafkaBroker(Broker):
    """A node of Apache Kafka."""

    def __init__(self, advertised_port: int | None = None) -> None:
        super().__init__(advertised_port)
        self._folder = Path(tempfile.mkdtemp(prefix="settle-test-kafka-"))
        self._node = kafka.Node(self._folder, self.port, free_port(), self._advertised_port)

    @property
    def folder(self) -> Path:
        return self._folder

    def start(self) -> None:
        self._start(self._node.prepare(), self._serves)

    def forget(self) -> None:
        self._node.forget()

    def discard(self) -> None:
        super().discard()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _serves(self) -> bool:
        """Return whether the node serves. Behind a proxy, only its port is checked."""
        return self._listens() and (self._advertised_port != self.port or self._has_controller())

    def _has_controller(self) -> bool:
        try:
            admin = self._administration()
        except KafkaError:
            return False
        try:
            return bool(admin.describe_cluster()["controller_id"] != -1)
        except KafkaError:
            return False
        finally:
            admin.close()

    def _administration(self) -> KafkaAdminClient:
        return KafkaAdminClient(bootstrap_servers=self.bootstrap, bootstrap_timeout_ms=2000)

    def reset(self) -> None:
        """Delete topics and groups. This is seconds faster than starting another node."""
        admin = self._administration()
        try:
            wait_until(lambda: forget_groups(admin), timeout_s=30, what="the groups to be gone")
            wait_until(lambda: _forget_topics(admin), timeout_s=30, what="the topics to be gone")
        finally:
            admin.close()


def forget_groups(admin: KafkaAdminClient) -> bool:
    """Delete all consumer groups and their offsets. Return whether there were none to delete."""
    groups = [each["group_id"] for each in admin.list_groups()]
    for group, described in admin.describe_groups(groups).items() if groups else ():
        _remove_members(admin, group, described["members"])
    if groups:
        # A group that still has members is not deleted. The next call deletes it.
        admin.delete_groups(groups)
    return not groups


def _remove_members(admin: KafkaAdminClient, group: str, members: list[dict[str, Any]]) -> None:
    """Remove the members of killed consumers, or the broker keeps the group until they time out."""
    ids = [MemberToRemove(member_id=member["member_id"]) for member in members]
    if ids:
        admin.remove_group_members(group, ids)


def _forget_topics(admin: KafkaAdminClient) -> bool:
    topics = [topic for topic in admin.list_topics() if not topic.startswith("__")]
    if topics:
        admin.delete_topics(topics, raise_errors=False)
    return not topics
