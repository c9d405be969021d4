"""The steps of docs/library.md work with only the engine's wheel and the example."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import requests

from support.delivery import Delivery, Record, header, headers
from support.ports import free_port
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from support.broker import Broker
    from support.postgres import PostgresServer

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "library.md").read_text("utf-8")
EXAMPLE = ROOT / "examples" / "notifications"
SHELL = re.compile(r"```sh\n(.*?)```", re.DOTALL)
INSTALL, MIGRATE, RELAY, CONSUMER, API, TRY, DOCTOR = SHELL.findall(PAGE)
ORDERS = 60
# The test itself uses only topics, so its Delivery needs no database.
NOWHERE = "postgresql+psycopg2://127.0.0.1:9/none"


class Newcomer:
    """A copy of the example, and the environment that the page creates."""

    def __init__(self, folder: Path, database_url: str, bootstrap: str) -> None:
        self.folder = folder / "examples" / "notifications"
        self.port = free_port()
        self._addresses = {
            "postgresql+psycopg2://postgres@127.0.0.1:5432/notifications": database_url,
            "127.0.0.1:9092": bootstrap,
            "8082": str(self.port),
        }
        self._environ = {
            name: value for name, value in os.environ.items() if name != "PYTHONPATH"
        } | {"NOTIFICATIONS_DATABASE_URL": database_url, "KAFKA_BOOTSTRAP_SERVERS": bootstrap}
        copytree(EXAMPLE, self.folder, ignore=lambda *_: {"dist", ".venv"})
        copytree(ROOT / "shared" / "outbox", folder / "shared" / "outbox")

    def run(self, commands: str) -> str:
        """Run commands of the page, and return their output."""
        done = subprocess.run(
            ["sh", "-euc", self._adapted(commands)],
            cwd=self.folder,
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextmanager
    def running(self, command: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a program of the page, and terminate it at the end."""
        with (self.folder / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                ["sh", "-euc", f"exec {self._adapted(command)}"],
                cwd=self.folder,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)

    def _adapted(self, commands: str) -> str:
        for given, actual in self._addresses.items():
            commands = commands.replace(given, actual)
        return commands

    def texts(self, user_id: UUID) -> list[str]:
        """Return the texts that the API shows for a user."""
        url = f"http://127.0.0.1:{self.port}/notifications/{user_id}"
        texts: list[str] = requests.get(url, timeout=10).json()
        return texts


@pytest.fixture(scope="module")
def newcomer(
    tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer, shared_broker: Broker
) -> Newcomer:
    shared_broker.empty()
    url = postgres.create_database("notifications")
    made = Newcomer(tmp_path_factory.mktemp("library"), url, shared_broker.bootstrap)
    made.run(INSTALL)
    made.run(MIGRATE)
    return made


def payment(order_id: UUID, user_id: UUID) -> Record:
    """Return a successful payment, in the form of docs/reference/events.md."""
    data = {"order_id": str(order_id), "user_id": str(user_id), "amount": 3900, "balance": 0}
    value = json.dumps(data).encode()
    return Record(value, headers("payment.succeeded"), str(order_id).encode())


def test_the_listings_are_those_of_the_example() -> None:
    files = {path: path.read_text("utf-8") for path in EXAMPLE.rglob("*") if path.suffix}

    listings = re.findall(r"```(?:python|toml)\n(.*?)```", PAGE, re.DOTALL)

    assert len(listings) >= 7
    for listing in listings:
        assert any(listing in text for text in files.values()), listing


def test_the_example_is_small() -> None:
    sources = [path.read_text("utf-8") for path in EXAMPLE.glob("notifications/*.py")]

    lines = [line for source in sources for line in source.splitlines() if line.strip()]

    assert len(lines) <= 120


def test_the_engine_is_installed_without_the_application(newcomer: Newcomer) -> None:
    listed = newcomer.run(".venv/bin/pip list --format json")

    names = {each["name"].lower() for each in json.loads(listed)}
    assert {"settle-outbox", "notifications", "sqlalchemy", "kafka-python"} <= names
    assert not names & {"settle", "gunicorn", "supervisor", "flask-smorest", "rich", "requests"}


def test_autogenerate_proposes_nothing(newcomer: Newcomer) -> None:
    newcomer.run(".venv/bin/alembic check")


def test_each_payment_is_notified_once_if_the_consumer_is_killed(
    newcomer: Newcomer, shared_broker: Broker
) -> None:
    users = {uuid4(): uuid4() for _ in range(ORDERS)}  # user ids by order id
    topics = Delivery(NOWHERE, NOWHERE, shared_broker.bootstrap)
    with ExitStack() as stack:
        stack.enter_context(newcomer.running(RELAY))
        stack.enter_context(newcomer.running(API))
        consumer = stack.enter_context(newcomer.running(CONSUMER))
        wait_until(lambda: _listens(newcomer), timeout_s=30, what="the API to listen")
        first, *others = (payment(order, user) for order, user in users.items())
        topics.produce("payments.events", first)
        wait_until(lambda: newcomer.texts(next(iter(users.values()))), timeout_s=60)

        for number, record in enumerate(others):
            topics.produce("payments.events", record)
            if number % 20 == 10:
                consumer.send_signal(signal.SIGKILL)
                consumer.wait(10)
                consumer = stack.enter_context(newcomer.running(CONSUMER))

        for order, user in users.items():
            expected = [f"Your order {order} is paid."]
            wait_until(partial(newcomer.texts, user), timeout_s=60)
            assert newcomer.texts(user) == expected

        posted, listed = map(json.loads, newcomer.run(TRY).splitlines())
        assert set(posted) == {"id"}
        assert listed == ["Hello"]

        findings = json.loads(newcomer.run(f"{DOCTOR.rstrip()} --json || true"))
        verdicts = {each["name"]: each["verdict"] for each in findings}
        assert {"notifications unsent", "notifications lag", "topic payments.events"} <= set(
            verdicts
        )
        assert "fail" not in verdicts.values()
    sent = topics.records("notifications.events")
    assert len({header(record, "ce_id") for record in sent}) == ORDERS + 1
    assert {header(record, "ce_type") for record in sent} == {"notification.sent"}


def _listens(newcomer: Newcomer) -> bool:
    try:
        newcomer.texts(uuid4())
    except requests.RequestException:
        return False
    return True
