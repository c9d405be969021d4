"""The broker of the tests: Apache Kafka if it can run here, otherwise the embedded broker."""

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
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from kafka import KafkaAdminClient
from kafka.admin import MemberToRemove
from kafka.errors import KafkaError

from settle.stack.embedded import broker as embedded_broker
from settle.stack.embedded import kafka as apache_kafka
from support.ports import free_port
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

# The environment variable that selects the broker. If its value is `kafka` and Kafka cannot run
# here, tests fail.
BROKER_VARIABLE = "SETTLE_TEST_BROKER"
KAFKA, EMBEDDED = "kafka", "embedded"
STOP_TIMEOUT_S = 30


class ChosenBroker(NamedTuple):
    """The kind of broker that the tests run on, and the reason for the choice."""

    kind: str
    reason: str


@cache
def chosen_broker() -> ChosenBroker:
    """Return the broker that BROKER_VARIABLE names, otherwise Apache Kafka if it can run."""
    forced = os.environ.get(BROKER_VARIABLE)
    if forced:
        if forced not in {KAFKA, EMBEDDED}:
            raise ValueError(f"{BROKER_VARIABLE} is {forced!r}: set it to {KAFKA} or {EMBEDDED}.")
        return ChosenBroker(forced, f"{BROKER_VARIABLE} is set")
    obstacle = apache_kafka.why_missing()
    if obstacle is not None:
        return ChosenBroker(EMBEDDED, obstacle)
    return ChosenBroker(KAFKA, "Apache Kafka can run here")


def make_broker(advertised_port: int | None = None) -> Broker:
    """Return a broker of the chosen kind, which is not started yet.

    Args:
        advertised_port: The port that clients are to use, for example the port of a proxy.
    """
    make = KafkaBroker if chosen_broker().kind == KAFKA else EmbeddedBroker
    return make(advertised_port)


class Broker(ABC):
    """A broker on a free port of 127.0.0.1. It keeps the port when it starts again.

    A `with` block starts the broker. At the end of the block, the broker is killed, and its data is
    deleted.
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
        """The id of the broker's process, or None if the broker does not run."""
        return self._process.pid if self._process is not None else None

    @property
    def folder(self) -> Path | None:
        """The folder of the broker's data, or None if the data is in memory."""
        return None

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    @abstractmethod
    def start(self) -> None:
        """Start the broker with its stored data, and wait until it is ready."""

    @abstractmethod
    def delete_data(self) -> None:
        """Delete all topics and groups. The broker must not run."""

    @abstractmethod
    def empty(self) -> None:
        """Delete all topics and groups while the broker runs, for the next test."""

    def stop(self) -> None:
        """Stop the broker, as an operator would."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the broker without warning."""
        self._end(signal.SIGKILL)

    def discard(self) -> None:
        """Kill the broker and delete its data."""
        self._end(signal.SIGKILL)
        self.delete_data()

    def _start(self, command: list[str], is_ready: Callable[[], bool]) -> None:
        with tempfile.TemporaryFile() as log:
            process = self._process = subprocess.Popen(
                command, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

            def runs_and_is_ready() -> bool:
                if process.poll() is None:
                    return is_ready()
                log.seek(0)
                raise RuntimeError(
                    f"The broker exited while it was starting:\n{log.read().decode()}"
                )

            wait_until(runs_and_is_ready, timeout_s=60, what="the broker to be ready")

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        self._process.wait(STOP_TIMEOUT_S)
        self._process = None

    def _accepts_connections(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=10).close()
        except OSError:
            return False
        return True


class EmbeddedBroker(Broker):
    """The broker that `settle up` starts by default. It loses its data when it stops."""

    def start(self) -> None:
        advertised = f"--advertised-listener-url=tcp://127.0.0.1:{self._advertised_port}"
        # The last argument is the advertised address. It is replaced, because the broker ignores an
        # option that is given again.
        self._start(
            [*embedded_broker.command(self.port)[:-1], advertised], self._accepts_connections
        )

    def delete_data(self) -> None:
        """Do nothing: the data was in the memory of the process."""

    def empty(self) -> None:
        self.kill()
        self.start()


class KafkaBroker(Broker):
    """Apache Kafka, as a cluster of one node."""

    def __init__(self, advertised_port: int | None = None) -> None:
        super().__init__(advertised_port)
        self._folder = Path(tempfile.mkdtemp(prefix="settle-test-kafka-"))
        self._node = apache_kafka.Node(self._folder, self.port, free_port(), self._advertised_port)

    @property
    def folder(self) -> Path:
        return self._folder

    def start(self) -> None:
        self._start(self._node.prepare(), self._is_ready)

    def delete_data(self) -> None:
        self._node.delete_data()

    def discard(self) -> None:
        super().discard()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _is_ready(self) -> bool:
        """Return whether the node is ready.

        Behind a proxy, the node counts as ready when it accepts connections. A client would use the
        advertised port, and the proxy may not run yet.
        """
        return self._accepts_connections() and (
            self._advertised_port != self.port or self._has_controller()
        )

    def _has_controller(self) -> bool:
        try:
            admin = self._admin_client()
        except KafkaError:
            return False
        try:
            return bool(admin.describe_cluster()["controller_id"] != -1)
        except KafkaError:
            return False
        finally:
            admin.close()

    def _admin_client(self) -> KafkaAdminClient:
        return KafkaAdminClient(bootstrap_servers=self.bootstrap, bootstrap_timeout_ms=2000)

    def empty(self) -> None:
        """Delete topics and groups. This is seconds faster than a start without data."""
        admin = self._admin_client()
        try:
            wait_until(lambda: delete_groups(admin), timeout_s=30, what="the groups to be gone")
            wait_until(lambda: _delete_topics(admin), timeout_s=30, what="the topics to be gone")
        finally:
            admin.close()


def delete_groups(admin: KafkaAdminClient) -> bool:
    """Try to delete all consumer groups and their offsets. Return True if there were none."""
    groups = [each["group_id"] for each in admin.list_groups()]
    for group, described in admin.describe_groups(groups).items() if groups else ():
        _remove_members(admin, group, described["members"])
    if groups:
        # The broker does not delete a group that still has members. The next call tries again.
        admin.delete_groups(groups)
    return not groups


def _remove_members(admin: KafkaAdminClient, group: str, members: list[dict[str, Any]]) -> None:
    """Remove the members. A killed consumer would stay a member until it times out."""
    ids = [MemberToRemove(member_id=member["member_id"]) for member in members]
    if ids:
        admin.remove_group_members(group, ids)


def _delete_topics(admin: KafkaAdminClient) -> bool:
    topics = [topic for topic in admin.list_topics() if not topic.startswith("__")]
    if topics:
        admin.delete_topics(topics, raise_errors=False)
    return not topics
