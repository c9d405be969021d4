"""The state machine: random steps on the services, each compared with the model."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
)
from uuid_utils.compat import uuid7

from model.expected import INT64_MAX, Orders, Payments
from model.forged_records import FAULTS, UNKNOWN_TYPE, changed, read
from model.system import ALL, BEGINS_AT, System
from support.delivery import ORDERS, PAYMENTS, headers
from support.web import problem_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kafka.consumer.fetcher import ConsumerRecord
    from werkzeug.test import TestResponse

SERVICES = ("payments", "orders")
CONSUMED = {"payments": ORDERS, "orders": PAYMENTS}

SPELLINGS = {"lower": str.lower, "upper": str.upper, "mixed": str.title}
BAD_USERS: list[Any] = [
    "00000000-0000-0000-0000-000000000000",
    "8f14e45f",
    "{8f14e45f-ceea-467f-a0e6-4a3e2c1b5d7a}",
    "",
    7,
    None,
    ["8f14e45f-ceea-467f-a0e6-4a3e2c1b5d7a"],
]
BAD_AMOUNTS: list[Any] = [0, -1, 1.0, 1.5, "1", True, None, [], INT64_MAX + 1, -INT64_MAX, 10**30]
BAD_DESCRIPTIONS: list[Any] = [7, None, "a\0b", "x" * 10_001, "\ud800"]
ANOTHER = "8f14e45f-ceea-167f-a0e6-4a3e2c1b5d7a"  # of no account: accounts have version 4

# Invalid requests: the service, the path, a part of the body, and the status of the answer.
INVALID_REQUESTS: list[tuple[str, str, dict[str, Any], int]] = [
    *[("payments", "/accounts", {"user_id": user}, 422) for user in BAD_USERS],
    *[("payments", "/accounts/{user}/deposit", {"amount": each}, 422) for each in BAD_AMOUNTS],
    ("payments", "/accounts/{user}/deposit", {"amount": 1, "user_id": ANOTHER}, 409),
    ("payments", "/accounts/8f14e45f/deposit", {"amount": 1}, 404),
    *[("orders", "/orders", {"user_id": user, "amount": 1}, 422) for user in BAD_USERS],
    *[("orders", "/orders", {"amount": each}, 422) for each in BAD_AMOUNTS],
    *[("orders", "/orders", {"amount": 1, "description": each}, 422) for each in BAD_DESCRIPTIONS],
]
# An id of 2001, which is older than all events that the inbox remembers.
ID_OF_LONG_AGO = "00e40000-0000-7000-8000-000000000000"

services = st.sampled_from(SERVICES)
spellings = st.sampled_from(sorted(SPELLINGS))
strangers = st.uuids(version=1).map(str)
# An amount, or its distance from a limit: the balance, or the largest possible deposit.
amounts = st.integers(1, 60) | st.sampled_from([INT64_MAX, 2**62])
near = st.sampled_from([-1, 0, 1]).map(lambda by: ("near", by))
descriptions = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5
)
# The number of a record in its topic, or of an existing order or user. Larger numbers wrap around.
numbers = st.integers(0, 30)
# Some records of a topic, or its last ones.
batches = st.lists(numbers, min_size=1, max_size=8) | st.integers(2, 8).map(
    lambda count: list(range(-count, 0))
)
# Half of the deliveries are to one consumer.
consumers = st.sampled_from(["to one", "to one", "to two at once", "to one that is killed"])


def step(name: str, **arguments: Any) -> Any:
    """Return a possible step of `Machine.tamper`: a method's name and its arguments."""
    return st.tuples(st.just(name), st.fixed_dictionaries(arguments))


tamperings = st.one_of(
    step("_send_under_another_id", service=services, number=numbers, old=st.just(value=False)),
    step("_send_under_another_id", service=services, number=numbers, old=st.booleans()),
    step(
        "_send_broken",
        service=services,
        number=numbers,
        how=st.sampled_from(sorted(FAULTS)),
        times=st.integers(1, 2),
    ),
    step(
        "_forge_order",
        order=numbers | strangers,
        user=numbers | strangers,
        amount=amounts,
        times=st.integers(1, 2),
    ),
    step(
        "_forge_result",
        order=numbers | numbers | strangers,
        succeeded=st.lists(st.booleans(), min_size=1, max_size=2),
        agrees=st.sampled_from([True, True, False]),
    ),
    # Two contradicting results, of which the first one counts.
    step(
        "_forge_result",
        order=numbers,
        succeeded=st.permutations([True, False]),
        agrees=st.just(value=True),
    ),
    step("_send_unknown_type", service=services, value=st.binary(max_size=5)),
)


class Machine(RuleBasedStateMachine):
    """Payments and orders, and their models.

    Args:
        system: The services. Their databases and topics are emptied first.
    """

    users = Bundle("users")

    def __init__(self, system: System) -> None:
        super().__init__()
        system.forget()
        self._system = system
        self._payments = Payments()
        self._orders = Orders()
        self._models = {"payments": self._payments, "orders": self._orders}
        self._sent = dict.fromkeys(SERVICES, 0)
        self._ids: dict[tuple[str, int], str] = {}
        self._delivered = dict.fromkeys(SERVICES, 0)
        self._faults: dict[tuple[str, int, int], str] = {}
        self._final: dict[str, str] = {}
        self._forged: set[str] = set()

    # Requests.

    @initialize(
        target=users,
        found=st.dictionaries(
            st.uuids(version=4).map(str), st.integers(0, 200), min_size=1, max_size=3
        ),
    )
    def add_users(self, found: dict[str, int]) -> Any:
        """Open accounts for some users, most of them with a deposit."""
        for user, rich in found.items():
            if rich:
                self.open_account(user, "lower")
                self.deposit(user, "lower", rich, named=False)
        return multiple(*found)

    @rule(user=users, spelling=spellings)
    def open_account(self, user: str, spelling: str) -> None:
        answer = self._post("payments", "/accounts", user_id=SPELLINGS[spelling](user))
        _expect(answer, *self._payments.open(user))

    @rule(user=users, spelling=spellings, amount=amounts | near, named=st.booleans())
    def deposit(self, user: str, spelling: str, amount: Any, *, named: bool) -> None:
        amount = _amount(amount, INT64_MAX - self._payments.balances.get(user, 0))
        body: dict[str, Any] = {"amount": amount}
        if named:
            body["user_id"] = SPELLINGS[spelling](user)
        path = f"/accounts/{SPELLINGS[spelling](user)}/deposit"
        _expect(self._post("payments", path, **body), *self._payments.deposit(user, amount))

    @rule(
        user=users,
        spelling=spellings,
        amounts=st.lists(amounts | near, min_size=1, max_size=3),
        description=descriptions,
    )
    def place_orders(self, user: str, spelling: str, amounts: list[Any], description: str) -> None:
        body = {"user_id": SPELLINGS[spelling](user), "description": description}
        for each in amounts:
            amount = _amount(each, self._payments.balances.get(user, 0))
            answer = self._post("orders", "/orders", **body, amount=amount)
            _expect(answer, 202, "Order accepted")
            order_id = answer.headers["Location"].rpartition("/order/")[2]
            assert order_id not in self._orders.placed
            self._orders.place(order_id, user, amount, description)

    @rule(user=users, spelling=spellings, invalid=st.sampled_from(INVALID_REQUESTS))
    def check_answers(
        self, user: str, spelling: str, invalid: tuple[str, str, dict[str, Any], int]
    ) -> None:
        """Check that an invalid request is refused, and that the GETs agree with the model."""
        service, path, body, status = invalid
        body = {"user_id": user} | body
        problem_of(self._post(service, path.format(user=user), **body), status)
        query = {"user_id": SPELLINGS[spelling](user)}
        answer = self._system.clients["payments"].get("/accounts/balance", query_string=query)
        if user in self._payments.balances:
            balance = {"balance": self._payments.balances[user]}
            assert (answer.status_code, answer.json) == (200, balance)
        else:
            _expect(answer, 404, f"User {user} has no account.")
        client = self._system.clients["orders"]
        answer = client.get("/orders", query_string=query)
        assert answer.status_code == 200
        names = ("ID", "UserID", "Amount", "Description", "Status")
        found = [tuple(order[name] for name in names) for order in answer.get_json()]
        assert found == [
            (order_id, user, order.amount, order.description, order.status)
            for order_id, order in reversed(self._orders.placed.items())
            if order.user == user
        ]
        for order_id, *_, status in found[:2]:
            answer = client.get(f"/order/{SPELLINGS[spelling](order_id)}")
            assert (answer.status_code, answer.json) == (200, {"id": order_id, "status": status})
        _expect(client.get(f"/order/{user}"), 404, f"There is no order {user}.")

    # Relays and consumers.

    @rule(service=services, count=st.integers(1, 4) | st.just(ALL), mark=st.booleans())
    def relay(self, service: str, count: int, *, mark: bool) -> None:
        """Send events. Check that they are those of the model, in order, and keep their ids."""
        records = self._system.relay(service, count, mark=mark)
        begin = self._sent[service]
        expected = self._models[service].published[begin : begin + count]
        assert len(records) == len(expected)
        for number, (record, (key, type_, data)) in enumerate(
            zip(records, expected, strict=True), start=begin
        ):
            message = read(record)
            message.data.pop("created_at", None)
            assert (record.key.decode(), message.type, message.data) == (key, type_, data)
            assert self._ids.setdefault((service, number), message.id) == message.id
        assert len(set(self._ids.values())) == len(self._ids)
        if mark:
            self._sent[service] += len(records)

    @rule(service=services, numbers=batches, consumers=consumers)
    def deliver(self, service: str, numbers: list[int], consumers: str) -> None:
        """Deliver any records, in any order and any number of times."""
        records = self._records(service, numbers)
        if consumers == "to one that is killed":
            if records:
                self._system.apply_and_die(service, records)
            return
        if consumers == "to two at once":
            self._system.apply_at_once(service, records)
        else:
            self._system.apply(service, records)
        self._receive(service, records)

    @rule(size=st.integers(1, 8))
    def settle(self, size: int) -> None:
        """Send and deliver all pending events, in the order of the topics."""
        for producer, consumer in (("orders", "payments"), ("payments", "orders")):
            self.relay(producer, ALL, mark=True)
            records = self._system.topics.records[CONSUMED[consumer]]
            for begin in range(self._delivered[consumer], len(records), size):
                batch = records[begin : begin + size]
                self._system.apply(consumer, batch)
                self._receive(consumer, batch)
            self._delivered[consumer] = len(records)

    # Records that should not be in a topic.

    @rule(what=tamperings)
    def tamper(self, what: tuple[str, dict[str, Any]]) -> None:
        name, arguments = what
        getattr(self, name)(**arguments)

    def _send_under_another_id(self, service: str, number: int, *, old: bool) -> None:
        for record in self._records(service, [number]):
            other = ID_OF_LONG_AGO if old else str(uuid7())
            forged = changed(record, "ce_id", other.encode())
            self._send(record.topic, record.key, record.value, forged, self._fault_of(record))

    def _send_broken(self, service: str, number: int, how: str, times: int) -> None:
        for record in self._records(service, [number]):
            if self._fault_of(record) is None and read(record).type != UNKNOWN_TYPE:
                fault, break_it = FAULTS[how]
                value, forged = break_it(record)
                for _ in range(times):
                    self._send(record.topic, record.key, value, forged, fault)

    def _forge_order(self, order: int | str, user: int | str, amount: int, times: int) -> None:
        """Forge the event of an order that may be unknown, or known with other data."""
        order_id = _one_of(self._orders.placed, order)
        user_id = _one_of(self._payments.balances, user)
        self._forged.add(order_id)
        data = {"order_id": order_id, "user_id": user_id, "amount": amount, "unknown": {"field": 1}}
        for _ in range(times):
            self._forge(ORDERS, user_id, "order.created", data)

    def _forge_result(self, order: int | str, succeeded: list[bool], *, agrees: bool) -> None:
        """Forge results that payments did not publish: too early, wrong, or of no known order."""
        order_id = _one_of(self._orders.placed, order)
        self._forged.add(order_id)
        known = self._orders.placed.get(order_id)
        data: dict[str, Any] = {
            "order_id": order_id,
            "user_id": known.user if known else order_id,
            "amount": known.amount if known else 1,
        }
        if not agrees:
            data["amount"] = data["amount"] - 1 or 2
        for each in succeeded:
            type_ = "payment.succeeded" if each else "payment.failed"
            extra = {"balance": 0} if each else {"reason": "forged"}
            self._forge(PAYMENTS, order_id, type_, data | extra)

    def _send_unknown_type(self, service: str, value: bytes) -> None:
        self._send(CONSUMED[service], b"key", value, headers(UNKNOWN_TYPE))

    # Checks after every step.

    @invariant()
    def services_match_the_models(self) -> None:
        payments, orders = (self._system.state(service) for service in SERVICES)
        assert payments == _present(
            balances=self._payments.balances,
            transfers=self._payments.transfers,
            decisions=self._payments.decisions,
            **self._delivery("payments"),
        )
        assert orders == _present(
            orders={
                order_id: [order.user, order.amount, order.description, order.status, order.reason]
                for order_id, order in self._orders.placed.items()
            },
            **self._delivery("orders"),
        )
        _check_money(payments)
        self._check_finality(orders)

    def teardown(self) -> None:
        """Check at the end the status and the charge of every order without forged events."""
        if sys.exc_info()[0] is not None:
            return  # the run failed or was given up, and another failure would hide the reason
        self.settle(8)
        self.services_match_the_models()
        payments, orders = (self._system.state(service) for service in SERVICES)
        charged = {order_id: amount for *_, amount, _, order_id in payments.get("transfers", [])}
        for order_id, (_, amount, _, status, _) in orders.get("orders", {}).items():
            if order_id not in self._forged:
                assert status == ("success" if order_id in charged else "failed")
                assert charged.get(order_id, amount) == amount

    def _check_finality(self, orders: dict[str, Any]) -> None:
        statuses = {order_id: order[3] for order_id, order in orders.get("orders", {}).items()}
        assert self._final.items() <= statuses.items()
        self._final = {each: status for each, status in statuses.items() if status != "created"}

    def _delivery(self, service: str) -> dict[str, Any]:
        model = self._models[service]
        return {
            "inbox": model.outcomes,
            "dead_letters": sorted([*each, reason] for each, reason in model.dead_letters.items()),
            "published": [list(event) for event in model.published],
            "skipped": sorted(model.skipped),
            "pending": len(model.published) - self._sent[service],
        }

    # Helpers.

    def _post(self, service: str, path: str, **body: Any) -> TestResponse:
        client = self._system.clients[service]
        # `json.dumps` escapes a lone surrogate, which UTF-8 cannot encode.
        return client.post(path, data=json.dumps(body), content_type="application/json")

    def _records(self, service: str, numbers: Iterable[int]) -> list[ConsumerRecord]:
        records = self._system.topics.records[CONSUMED[service]]
        return [records[number % len(records)] for number in numbers] if records else []

    def _receive(self, service: str, records: Iterable[ConsumerRecord]) -> None:
        for record in records:
            message = read(record, self._fault_of(record))
            self._models[service].receive(message, str(BEGINS_AT))

    def _forge(self, topic: str, key: str, type_: str, data: dict[str, Any]) -> None:
        self._send(topic, key.encode(), json.dumps(data).encode(), headers(type_))

    def _fault_of(self, record: ConsumerRecord) -> str | None:
        return self._faults.get((record.topic, record.partition, record.offset))

    def _send(
        self, topic: str, key: bytes, value: bytes | None, headers_: Any, fault: str | None = None
    ) -> None:
        record = self._system.topics.send(topic, value=value, key=key, headers=headers_).value
        if fault is not None:
            self._faults[record.topic, record.partition, record.offset] = fault


def _expect(answer: TestResponse, status: int, message: str) -> None:
    """Check an answer's status, and its message or the detail of its problem."""
    if status < 400:
        assert (answer.status_code, answer.json) == (status, {"message": message})
    else:
        assert problem_of(answer, status)["detail"] == message


def _check_money(payments: dict[str, Any]) -> None:
    """Check the rules of the ledger with data of the database only."""
    balances: dict[str, int] = {}
    for giver, taker, amount, _, _ in payments.get("transfers", []):
        assert amount > 0
        balances[giver] = balances.get(giver, 0) - amount
        balances[taker] = balances.get(taker, 0) + amount
    assert sum(balances.values()) == 0
    for user, balance in payments.get("balances", {}).items():
        assert 0 <= balance <= INT64_MAX
        assert balance == balances.get(user, 0)
    charged = [transfer[4] for transfer in payments.get("transfers", []) if transfer[4]]
    assert len(charged) == len(set(charged))
    decisions = payments.get("decisions", {})
    assert set(charged) == {each for each in decisions if decisions[each][2] == "succeeded"}


def _present(**state: Any) -> dict[str, Any]:
    return {name: value for name, value in state.items() if value}


def _amount(amount: Any, limit: int) -> int:
    """Return the drawn amount, or an amount near the limit."""
    if isinstance(amount, int):
        return amount
    _, by = amount
    return min(max(limit + by, 1), INT64_MAX)


def _one_of(ids: Iterable[str], choice: int | str) -> str:
    """Return the drawn id, or the existing id with the drawn number, or a constant id."""
    if isinstance(choice, str):
        return choice
    known = list(ids)
    return known[choice % len(known)] if known else ANOTHER
