"""How fast the calls are, compared with minimal handlers and lists: `make bench-http`.

A minimal handler reads or writes the same rows, events included, but does not validate, log or take
idempotency keys. One kind uses psycopg2, the other the ORM. All servers have the same gunicorn
settings and share one PostgreSQL. In each round, they get requests one server after another.
Only the ratios count, because the machine's speed drifts. See README.md.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from load import Load, get, post
from servers import BARE, BARE_ORM, ORDERS, PAYMENTS, served

from shared.migrations import upgrade
from support.postgres import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Callable

# The orders belong to a thousand users. They were placed a minute apart, the last one just now.
_FILL_ORDERS = """
INSERT INTO orders (id, user_id, amount, description, status, created_at, updated_at)
SELECT gen_random_uuid(), CAST(md5((number % 1000)::text) AS uuid), 1 + number % 10000,
    'Order ' || number, 'success', moment, moment
FROM generate_series(1, {count}) AS number,
    LATERAL (SELECT now() - ({count} - number) * interval '1 minute' AS moment) AS placed
"""

# Accounts with the balance 0, each of another user.
_FILL_ACCOUNTS = """
INSERT INTO accounts (user_id, balance)
SELECT CAST(md5(number::text) AS uuid), 0 FROM generate_series(1, {count}) AS number
"""

ROWS = 1_000
MANY_ROWS = 1_000_000
WARM_UP_S = 2.0

USER = "7f1d2c3b-4a59-4c6d-8e7f-90a1b2c3d4e5"
ORDER = f'{{"user_id":"{USER}","amount":100,"description":"benchmark"}}'.encode()
DEPOSIT = b'{"amount":100}'


@dataclass(frozen=True)
class Comparison:
    """A load, and the baseline that it is compared with.

    Args:
        call: The call's name in the table.
        target: The lowest accepted ratio of the measured rate to the baseline's rate.
    """

    call: str
    measured: Load
    baseline: Load
    target: float


@dataclass(frozen=True)
class Result:
    """The result of a comparison: median requests per second, and the ratio of each round."""

    call: str
    measured: float
    baseline: float
    ratios: list[float]
    target: float

    @property
    def ratio(self) -> float:
        """The median of the rounds' ratios."""
        return statistics.median(self.ratios)


class Bench:
    """Run the comparisons. Each method starts its servers, and stops them at the end."""

    def __init__(self, server: PostgresServer, log: Path, rounds: int, seconds: float) -> None:
        self._server = server
        self._log = log
        self._rounds = rounds
        self._seconds = seconds

    def orders(self) -> list[Result]:
        """Place an order, without and with a key, and read one."""
        url = self._filled("orders", "orders", _FILL_ORDERS, ROWS)
        rows = self._server.execute("SELECT id FROM orders", database="orders")
        paths = [f"/order/{order_id}" for (order_id,) in rows]
        with ExitStack() as stack:
            bare_port, orm_port, service_port = self._served(stack, url, ORDERS)

            def get_order() -> bytes:
                return get(random.choice(paths))

            place = Load(service_port, place_order, b"202")
            place_with_key = Load(service_port, place_order_with_key, b"202")
            read = Load(service_port, get_order, b"200")
            bare_place = Load(bare_port, place_order, b"202")
            return self._compare(
                Comparison("POST /orders", place, bare_place, 0.45),
                Comparison("  against ORM", place, Load(orm_port, place_order, b"202"), 0.85),
                Comparison("  with a key", place_with_key, bare_place, 0.35),
                Comparison("GET /order/{id}", read, Load(bare_port, get_order, b"200"), 0.5),
                Comparison("  against ORM", read, Load(orm_port, get_order, b"200"), 0.85),
            )

    def deposits(self) -> list[Result]:
        """Deposit into one of many accounts. With one account, requests would wait for its lock."""
        url = self._filled("payments", "payments", _FILL_ACCOUNTS, ROWS)
        rows = self._server.execute(
            "SELECT user_id FROM accounts WHERE user_id IS NOT NULL", database="payments"
        )
        paths = [f"/accounts/{user_id}/deposit" for (user_id,) in rows]

        def deposit() -> bytes:
            return post(random.choice(paths), DEPOSIT)

        with ExitStack() as stack:
            bare_port, orm_port, service_port = self._served(stack, url, PAYMENTS)
            deposit_load = Load(service_port, deposit, b"200")
            return self._compare(
                Comparison("deposit", deposit_load, Load(bare_port, deposit, b"200"), 0.5),
                Comparison("  against ORM", deposit_load, Load(orm_port, deposit, b"200"), 0.85),
            )

    def pages(self) -> list[Result]:
        """Read the first and a middle page of a long list, compared with a short list."""
        with ExitStack() as stack:
            few, many = (
                stack.enter_context(
                    served(ORDERS, self._filled("orders", f"orders{n}", _FILL_ORDERS, n), self._log)
                )
                for n in (ROWS, MANY_ROWS)
            )
            return self._compare(
                Comparison(
                    "GET /orders",
                    Load(many, lambda: get("/orders"), b"200"),
                    Load(few, lambda: get("/orders"), b"200"),
                    0.95,
                ),
                Comparison(
                    "  the middle",
                    Load(many, self._middle(f"orders{MANY_ROWS}"), b"200"),
                    Load(few, self._middle(f"orders{ROWS}"), b"200"),
                    0.95,
                ),
            )

    def _filled(self, service: str, name: str, statement: str, count: int) -> str:
        """Create a database of a service with this number of rows, and return its URL."""
        url = self._server.create_database(name)
        upgrade(service, url)
        self._server.execute(statement.format(count=count), database=name)
        self._server.execute("VACUUM ANALYZE", database=name)
        return url

    def _served(self, stack: ExitStack, url: str, service: str) -> list[int]:
        """Start both baselines and the service on one database, and return their ports."""
        return [
            stack.enter_context(served(app, url, self._log)) for app in (BARE, BARE_ORM, service)
        ]

    def _middle(self, database: str) -> Callable[[], bytes]:
        ((moment,),) = self._server.execute(
            "SELECT to_char(min(created_at) + (max(created_at) - min(created_at)) / 2,"
            """ 'YYYY-MM-DD"T"HH24:MI:SS"Z"') FROM orders""",
            database=database,
        )
        return lambda: get(f"/orders?created_before={moment}")

    def _compare(self, *comparisons: Comparison) -> list[Result]:
        loads = list(dict.fromkeys(load for c in comparisons for load in (c.baseline, c.measured)))
        for load in loads:
            load.rate(WARM_UP_S)
        rates: dict[Load, list[float]] = {load: [] for load in loads}
        for _ in range(self._rounds):
            for load in loads:
                rates[load].append(load.rate(self._seconds))
        return [
            Result(
                c.call,
                statistics.median(rates[c.measured]),
                statistics.median(rates[c.baseline]),
                [a / b for a, b in zip(rates[c.measured], rates[c.baseline], strict=True)],
                c.target,
            )
            for c in comparisons
        ]


def place_order() -> bytes:
    """Make a request that places an order."""
    return post("/orders", ORDER)


def place_order_with_key() -> bytes:
    """Make a request that places an order, with a new idempotency key."""
    return post("/orders", ORDER, headers=f"Idempotency-Key: {uuid4()}\r\n")


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load in a round")
    parser.add_argument("--only", choices=["orders", "deposits", "pages"])
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    given = parser.parse_args()
    log = Path(tempfile.mkdtemp(prefix="settle-bench-")) / "servers.log"
    results = []
    with PostgresServer() as server:
        bench = Bench(server, log, given.rounds, given.seconds)
        parts = {"orders": bench.orders, "deposits": bench.deposits, "pages": bench.pages}
        print(f"{'':16} {'/s':>6} {'base/s':>6} {'ratio':>6} {'rounds':>13} {'target':>6}")
        for name, part in parts.items():
            if given.only in (None, name):
                for result in part():
                    _show(result)
                    results.append(result)
    # Only after success: after an error, the log is needed.
    shutil.rmtree(log.parent)
    if given.check and any(result.ratio < result.target for result in results):
        sys.exit(1)


def _show(result: Result) -> None:
    spread = f"{min(result.ratios):.2f} to {max(result.ratios):.2f}"
    print(
        f"{result.call:16} {result.measured:6.0f} {result.baseline:6.0f} {result.ratio:6.2f}"
        f" {spread:>13} {result.target:6.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
