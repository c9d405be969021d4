"""Clients that place orders while faults are caused, and the check of the results."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Self

from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from services.orders import orders
from settle.audit.run import audit
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from uuid import UUID

    from support.delivery import Delivery

SERVICES = ("orders", "payments")
PRICE = 3
RICH, POOR = 1_000_000, 10 * PRICE


class Traffic:
    """Clients that each place one order after the other for one user.

    The first user can pay for the first ten orders only. Which orders are paid shows in which
    sequence they took effect.

    Args:
        delivery: The delivery of the orders.
        clients: The number of clients. With the default, most partitions get some user's orders.
        pause_s: The pause of each client after each order.
    """

    def __init__(self, delivery: Delivery, *, clients: int = 12, pause_s: float = 0.1) -> None:
        self._delivery = delivery
        self._pause_s = pause_s
        self.users = [delivery.open_account(RICH if number else POOR) for number in range(clients)]
        self.placed: dict[UUID, list[UUID]] = {user: [] for user in self.users}
        self._stop = threading.Event()
        self._engine = create_engine(delivery.orders_url, pool_size=clients)
        self._threads = [
            threading.Thread(target=self._run, args=(user,), name="client") for user in self.users
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def end(self) -> None:
        """Stop placing orders."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._engine.dispose()

    def _run(self, user: UUID) -> None:
        while not self._stop.wait(self._pause_s):
            self.placed[user] += self._place(user, 1)

    def _place(self, user: UUID, count: int) -> list[UUID]:
        with Session(self._engine) as session, session.begin():
            return [
                orders.place_order(session, user_id=user, amount=PRICE, description="")
                for _ in range(count)
            ]

    def place_many(self, user: UUID, count: int) -> None:
        """Place orders in one transaction. Call it before the clients start."""
        self.placed[user] += self._place(user, count)

    @property
    def count(self) -> int:
        """The number of orders that were accepted so far."""
        return sum(map(len, self.placed.values()))

    def wait_more(self, count: int) -> None:
        """Wait until `count` further orders are accepted and settled."""
        enough = self._settled() + count
        wait_until(lambda: self._settled() >= enough, timeout_s=60, what=f"{count} more orders")

    def settled(self, placed: list[UUID]) -> bool:
        """Return whether all these orders have their final status."""
        (row,) = self._delivery.query(
            "orders",
            "SELECT count(*) FROM orders WHERE status <> 'created'"
            " AND id = ANY(CAST(:ids AS uuid[]))",
            ids=[str(order) for order in placed],
        )
        return bool(row[0] == len(placed))

    def _settled(self) -> int:
        return sum(count for status, count in self._statuses().items() if status != "created")

    def _statuses(self) -> Counter[str]:
        return Counter(
            dict(
                self._delivery.query(
                    "orders",
                    "SELECT status, count(*) FROM orders"
                    " WHERE user_id = ANY(CAST(:users AS uuid[])) GROUP BY status",
                    users=[str(user) for user in self.users],
                )
            )
        )

    def wait_settled(self, *, timeout_s: float = 90) -> None:
        """Wait until each order has its final status. Call it after `end`."""
        wait_until(
            lambda: self._settled() == self.count,
            timeout_s=timeout_s,
            what=f"{self.count} orders to settle",
        )

    def check(self, *, in_order: bool = True) -> None:
        """Check that each order took effect exactly once, and that the audit finds no violation.

        Args:
            in_order: Whether each client's orders must take effect in the order in which it placed
                them. False if a test wrote records to other partitions than those of their keys.
        """
        report = audit(
            self._delivery.settings("payments"), self._delivery.settings("orders"), second_look_s=0
        )
        assert report.clean, report
        poor = self.users[0]
        unpaid = max(0, len(self.placed[poor]) - 10)
        assert self._statuses() == Counter(success=self.count - unpaid, failed=unpaid)
        charged = self._charged()
        for user, placed in self.placed.items():
            paid = placed[:10] if user == poor else placed
            if in_order:
                assert charged[user] == paid
            assert len(charged[user]) == len(set(charged[user])) == len(paid)
            opened_with = POOR if user == poor else RICH
            assert self._delivery.balance(user) == opened_with - PRICE * len(paid)

    def _charged(self) -> dict[UUID, list[UUID]]:
        """Return the charged orders by user, in the order of their charges."""
        charged = defaultdict(list)
        for user, order in self._delivery.query(
            "payments",
            "SELECT a.user_id, t.order_id FROM transfers t"
            " JOIN accounts a ON a.id = t.from_account_id WHERE t.kind = 'charge' ORDER BY t.id",
        ):
            charged[user].append(order)
        return charged


@contextmanager
def relays_and_consumers(delivery: Delivery, *, consumers: int = 1) -> Iterator[None]:
    """Run a relay and consumers of each service, in threads of this process."""
    with ExitStack() as running:
        for service in SERVICES:
            running.enter_context(delivery.relay(service))
            for _ in range(consumers):
                running.enter_context(delivery.consumer(service, consumer_batch=50))
        yield
