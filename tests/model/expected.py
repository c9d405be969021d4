"""The expected behaviour of both services in plain Python, without a database or broker.

No code of the services is used here. Ids are strings in lower case. Amounts and balances are
integers of minor units.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

INT64_MAX = 2**63 - 1

Answer = tuple[int, str]
"""An HTTP status, and the message or the problem's detail."""

Place = tuple[str, int, int]
"""A record's topic, partition and offset."""

PublishedEvent = tuple[str, str, dict[str, Any]]
"""An event: key, type, data."""


@dataclass(frozen=True)
class Message:
    """The event in a record, or the fault of a record that is not a valid event."""

    place: Place
    id: str
    type: str
    data: dict[str, Any]
    fault: str | None = None


@dataclass
class Inbox:
    """The events that a service has received."""

    outcomes: dict[str, list[str | None]] = field(default_factory=dict)
    dead_letters: dict[Place, str] = field(default_factory=dict)
    published: list[PublishedEvent] = field(default_factory=list)
    skipped: set[str] = field(default_factory=set)
    subscribed: ClassVar[frozenset[str]]

    def receive(self, message: Message, begins_at: str) -> None:
        """Apply an event once. `begins_at` is the lowest id that the inbox still remembers."""
        if message.fault is not None:
            self.dead_letters.setdefault(message.place, message.fault)
        elif message.type not in self.subscribed:
            self.skipped.add(message.type)
        elif message.id < begins_at:
            self.dead_letters.setdefault(message.place, "older_than_inbox")
        elif message.id not in self.outcomes:
            outcome, reason = self._apply(message)
            self.outcomes[message.id] = [outcome, reason]
            if outcome == "parked":
                assert reason is not None
                self.dead_letters[message.place] = reason

    def _apply(self, message: Message) -> tuple[str, str | None]:
        raise NotImplementedError


@dataclass
class Payments(Inbox):
    """The accounts, and the results of orders."""

    subscribed = frozenset({"order.created"})
    balances: dict[str, int] = field(default_factory=dict)
    transfers: list[list[Any]] = field(default_factory=list)
    decisions: dict[str, list[Any]] = field(default_factory=dict)

    def open(self, user: str) -> Answer:
        if user in self.balances:
            return 409, f"User {user} already has an account."
        self.balances[user] = 0
        return 201, "Account created"

    def deposit(self, user: str, amount: int) -> Answer:
        if user not in self.balances:
            return 404, f"User {user} has no account."
        balance = self.balances[user]
        if balance + amount > INT64_MAX:
            return 409, (
                f"A deposit of {amount} would raise the balance of user {user}, {balance}, above"
                f" {INT64_MAX}."
            )
        self.balances[user] = balance + amount
        self.transfers.append(["world", user, amount, "deposit", None])
        return 200, "Balance refilled"

    def _apply(self, message: Message) -> tuple[str, str | None]:
        order, user, amount = (message.data[name] for name in ("order_id", "user_id", "amount"))
        if order in self.decisions:
            return "anomaly", "payment_already_decided"
        data = {"order_id": order, "user_id": user, "amount": amount}
        if user not in self.balances:
            reason = "account_not_found"
        elif self.balances[user] < amount:
            reason = "insufficient_funds"
        else:
            self.balances[user] -= amount
            self.transfers.append([user, "sales", amount, "charge", order])
            self.decisions[order] = [user, amount, "succeeded", None]
            data["balance"] = self.balances[user]
            self.published.append((order, "payment.succeeded", data))
            return "applied", None
        self.decisions[order] = [user, amount, "failed", reason]
        self.published.append((order, "payment.failed", data | {"reason": reason}))
        return "applied", None


@dataclass
class Order:
    """An accepted order and its status."""

    user: str
    amount: int
    description: str
    status: str = "created"
    reason: str | None = None


@dataclass
class Orders(Inbox):
    """The orders, in the order in which they were accepted."""

    subscribed = frozenset({"payment.succeeded", "payment.failed"})
    placed: dict[str, Order] = field(default_factory=dict)

    def place(self, order_id: str, user: str, amount: int, description: str) -> None:
        self.placed[order_id] = Order(user, amount, description)
        data = {"order_id": order_id, "user_id": user, "amount": amount}
        self.published.append((user, "order.created", data))

    def _apply(self, message: Message) -> tuple[str, str | None]:
        order = self.placed.get(message.data["order_id"])
        if order is None:
            return "parked", "unknown_order"
        if (message.data["user_id"], message.data["amount"]) != (order.user, order.amount):
            return "parked", "mismatch"
        status = "success" if message.type == "payment.succeeded" else "failed"
        if order.status == "created":
            order.status, order.reason = status, message.data.get("reason")
            return "applied", None
        if order.status == status:
            return "anomaly", "already_final"
        return "anomaly", "contradicts_final_status"
