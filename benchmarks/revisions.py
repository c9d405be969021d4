"""How fast relay, consumer and `POST /orders` are, compared with another revision of this project.

`make bench-revisions BASE=v0.1.0`. The programs of both revisions run on one PostgreSQL and one
broker. In each round, each revision is measured once. Only the ratios count, because the machine's
speed drifts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from http_calls import WARM_UP_S, place_order
from kafka import KafkaAdminClient
from load import Load
from servers import ORDERS, ROOT, served
from sqlalchemy import NullPool, create_engine, text
from uuid_utils.compat import uuid7

from support.broker import Broker, delete_groups, make_broker
from support.delivery import Delivery, order_created
from support.postgres import PostgresServer, open_postgres
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

USERS = 50
_POLL_S = 0.02
_TIMEOUT_S = 300

# Like the statement of `settle_outbox.add_all`, but without the trace, and in any order.
_FILL = """
WITH added AS (
    INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
    SELECT id, 'orders', key, 'order.created', convert_to(payload, 'UTF8')
    FROM unnest(CAST(:ids AS uuid[]), CAST(:keys AS text[]), CAST(:payloads AS text[]))
        AS event (id, key, payload)
    RETURNING shard, seq, id
)
INSERT INTO outbox_pending (shard, seq, id) SELECT shard, seq, id FROM added
"""


@dataclass(frozen=True)
class Side:
    """A checkout with its own environment.

    Args:
        root: The folder of the checkout.
        programs: The folder of its commands.
    """

    root: Path
    programs: Path

    def run(self, *command: str, **environ: str) -> None:
        """Run a command to its end. Raise an error if it fails; the command prints the cause."""
        program = str(self.programs / command[0])
        subprocess.run([program, *command[1:]], cwd=self.root, env=os.environ | environ, check=True)

    @contextmanager
    def running(self, *command: str, **environ: str) -> Iterator[None]:
        """Run a command until the context ends."""
        process = subprocess.Popen(
            [str(self.programs / command[0]), *command[1:]],
            cwd=self.root,
            env=os.environ | environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait(_TIMEOUT_S)


def checked_out(revision: str, folder: Path) -> Side:
    """Check out a revision, and install it into a separate environment.

    Args:
        revision: Any name that git knows.
        folder: The folder of the checkout. The result of an earlier run is reused.
    """
    root, environment = folder / "checkout", folder / "venv"
    if not (environment / "installed").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _run("git", "-C", str(ROOT), "worktree", "prune")
        _run("git", "-C", str(ROOT), "worktree", "add", "--force", "--detach", str(root), revision)
        _run(sys.executable, "-m", "venv", "--clear", str(environment))
        engine = root / "shared" / "outbox"
        sources = [engine, root] if (engine / "pyproject.toml").exists() else [root]
        editable = [each for source in sources for each in ("--editable", str(source))]
        pip = [str(environment / "bin" / "pip"), "install", "--quiet"]
        _run(*pip, "--constraint", str(root / "constraints.txt"), *editable)
        (environment / "installed").touch()
    return Side(root, environment / "bin")


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


class Bench:
    """One PostgreSQL and one broker, on which both sides take turns.

    Args:
        server: A running PostgreSQL.
        broker: A running broker.
        log: The file for the log of the APIs.
        events: The number of events for a relay or a consumer in each round.
    """

    def __init__(self, server: PostgresServer, broker: Broker, log: Path, events: int) -> None:
        self._server = server
        self._broker = broker
        self._log = log
        self._events = events
        self._databases = 0
        self._users = [str(uuid4()) for _ in range(USERS)]
        records = [order_created(UUID(self._users[n % USERS]), amount=1) for n in range(events)]
        # `produce` uses no database, so the URLs lead nowhere.
        nowhere = "postgresql+psycopg2://127.0.0.1:9/none"
        Delivery(nowhere, nowhere, broker.bootstrap).produce("orders.events", *records)

    def relay(self, side: Side) -> float:
        """Return how many events a relay sends in a second."""
        url = self._database(side, "orders")
        keys = [self._users[n % USERS] for n in range(self._events)]
        payload = json.dumps({"order_id": str(uuid4()), "user_id": keys[0], "amount": 1})
        self._execute(
            url,
            _FILL,
            ids=[uuid7() for _ in keys],
            keys=keys,
            payloads=[payload] * len(keys),
        )
        with side.running("outbox-relay", "run", "orders", **self._environ(orders=url)):
            return self._rate(lambda: self._events - self._count(url, "outbox_pending"))

    def consumer(self, side: Side) -> float:
        """Return how many orders a consumer charges in a second."""
        url = self._database(side, "payments")
        self._execute(
            url,
            "INSERT INTO accounts (user_id, balance)"
            " SELECT user_id, 1000000 FROM unnest(CAST(:users AS uuid[])) AS opened (user_id)",
            users=self._users,
        )
        self._delete_groups()
        with side.running("inbox-consumer", "run", "payments", **self._environ(payments=url)):
            return self._rate(lambda: self._count(url, "inbox"))

    def orders(self, side: Side) -> float:
        """Return how many orders the API accepts in a second."""
        url = self._database(side, "orders")
        with served(ORDERS, url, self._log, programs=side.programs, root=side.root) as port:
            load = Load(port, place_order, b"202")
            load.rate(WARM_UP_S)
            return load.rate(5.0)

    def _rate(self, done: Callable[[], int]) -> float:
        """Return how many events are done in a second, from the first batch to the last."""
        first = wait_until(done, timeout_s=_TIMEOUT_S, what="the first batch")
        began = time.perf_counter()
        while done() < self._events:
            if time.perf_counter() - began > _TIMEOUT_S:
                raise RuntimeError(f"{done()} of {self._events} events after {_TIMEOUT_S} s")
            time.sleep(_POLL_S)
        return (self._events - first) / (time.perf_counter() - began)

    def _database(self, side: Side, service: str) -> str:
        self._databases += 1
        url = self._server.create_database(f"bench_{self._databases}")
        side.run("alembic", "-n", service, "upgrade", "head", **self._environ(**{service: url}))
        return url

    def _environ(self, **urls: str) -> dict[str, str]:
        return {f"{service.upper()}_DATABASE_URL": url for service, url in urls.items()} | {
            "KAFKA_BOOTSTRAP_SERVERS": self._broker.bootstrap,
            "LOG_FORMAT": "json",
        }

    def _delete_groups(self) -> None:
        admin = KafkaAdminClient(bootstrap_servers=self._broker.bootstrap)
        wait_until(lambda: delete_groups(admin), timeout_s=60, what="the groups to be removed")
        admin.close()

    def _count(self, url: str, table: str) -> int:
        ((count,),) = self._execute(url, f"SELECT count(*) FROM {table}")
        return int(count)

    def _execute(self, url: str, statement: str, **parameters: object) -> list[tuple[Any, ...]]:
        engine = create_engine(url, poolclass=NullPool)
        with engine.begin() as connection:
            result = connection.execute(text(statement), parameters)
            return [tuple(row) for row in result] if result.returns_rows else []


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("base", help="the other revision: a tag, a branch or a commit")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--events", type=int, default=20_000, help="of each round")
    parser.add_argument("--target", type=float, default=0.95, help="of each median ratio")
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    given = parser.parse_args()
    base = checked_out(given.base, ROOT / "build" / "bench" / given.base)
    sides = {"here": Side(ROOT, Path(sys.executable).parent), "base": base}
    missed = False
    with open_postgres() as server, make_broker() as broker, TemporaryDirectory() as folder:
        bench = Bench(server, broker, Path(folder) / "servers.log", given.events)
        print(f"{'':14} {'here /s':>8} {'base /s':>8} {'ratio':>6} {'rounds':>13}")
        for name, measure in (
            ("relay", bench.relay),
            ("consumer", bench.consumer),
            ("POST /orders", bench.orders),
        ):
            rates: dict[str, list[float]] = {side: [] for side in sides}
            for number in range(given.rounds):
                # The side that begins changes from round to round.
                for side in sorted(sides, reverse=bool(number % 2)):
                    rates[side].append(measure(sides[side]))
            ratios = [here / there for here, there in zip(*rates.values(), strict=True)]
            ratio = statistics.median(ratios)
            missed = missed or ratio < given.target
            here, there = (statistics.median(each) for each in rates.values())
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            print(f"{name:14} {here:8.0f} {there:8.0f} {ratio:6.2f} {spread:>13}", flush=True)
    if given.check and missed:
        sys.exit(1)


if __name__ == "__main__":
    main()
