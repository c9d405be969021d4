"""Check after all faults that the clients' records, the databases and the audit agree."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import requests

from support.clients import FINAL
from support.waiting import wait_until

if TYPE_CHECKING:
    from support.clients import Account
    from support.system import System

PAGE = 1000
SHOWN = 5


def wait_final(system: System, *, timeout_s: float) -> list[str]:
    """Wait until every accepted order is final, and return a sentence for each that is not."""
    open_orders: list[str] = []

    def all_final() -> bool:
        # This includes orders whose client got no answer, because they may still be charged.
        open_orders[:] = [
            f"order {order_id} is still {status}"
            for (order_id, status) in system.delivery.query(
                "orders", "SELECT id, status FROM orders WHERE status = 'created'"
            )
        ]
        return not open_orders

    try:
        wait_until(all_final, timeout_s=timeout_s, what="every order to be final")
    except AssertionError:
        return _first(open_orders)
    return []


def check_accounts(system: System, accounts: list[Account]) -> list[str]:
    """Compare the answers of the clients with the state. Return a sentence for each violation."""
    return [
        violation
        for account in accounts
        for check in (_check_orders, _check_money, _check_order_of_effect)
        for violation in check(system, account)
    ] + [wrong for account in accounts for wrong in _first(account.wrong)]


def _orders(system: System, account: Account) -> dict[str, tuple[int, str]]:
    """Return the amount and status of all orders of a user by id, read page by page."""
    url: str | None = f"{system.stack.orders}/orders?user_id={account.user_id}&limit={PAGE}"
    found = {}
    while url is not None:
        answer = requests.get(url, timeout=30)
        assert answer.status_code == 200, answer.text
        for order in answer.json():
            found[order["ID"]] = (order["Amount"], order["Status"])
        url = answer.links.get("next", {}).get("url")
        if url is not None:
            url = requests.compat.urljoin(system.stack.orders, url)
    return found


def _check_orders(system: System, account: Account) -> list[str]:
    stored = _orders(system, account)
    violations = []
    for order_id, amount in account.accepted.items():
        found = stored.get(order_id)
        if found is None:
            violations.append(f"order {order_id} was accepted, but is not stored")
        elif found[0] != amount:
            violations.append(f"order {order_id} has amount {found[0]} instead of {amount}")
        elif found[1] not in FINAL:
            violations.append(f"order {order_id} is {found[1]}")
        elif account.final.get(order_id, found[1]) != found[1]:
            violations.append(f"order {order_id} was {account.final[order_id]}, and is {found[1]}")
    unknown = {id_: amount for id_, (amount, _) in stored.items() if id_ not in account.accepted}
    too_many = Counter(unknown.values()) - account.maybe_ordered
    if too_many:
        violations.append(f"user {account.user_id} has unknown orders, by amount: {dict(too_many)}")
    return _first(violations)


def _check_money(system: System, account: Account) -> list[str]:
    """Check the deposits, the charges and the balance of one user."""
    delivery, user = system.delivery, {"user_id": account.user_id}
    deposits = Counter(
        amount
        for (amount,) in delivery.query(
            "payments",
            "SELECT t.amount FROM transfers t JOIN accounts a ON a.id = t.to_account_id"
            " WHERE t.kind = 'deposit' AND a.user_id = :user_id",
            **user,
        )
    )
    charges = {
        str(order_id): amount
        for order_id, amount in delivery.query(
            "payments",
            "SELECT t.order_id, t.amount FROM transfers t JOIN accounts a"
            " ON a.id = t.from_account_id WHERE t.kind = 'charge' AND a.user_id = :user_id",
            **user,
        )
    }
    paid = {
        order_id: amount
        for order_id, (amount, status) in _orders(system, account).items()
        if status == "success"
    }
    violations = []
    lost, invented = account.deposited - deposits, deposits - account.deposited
    if lost:
        violations.append(f"user {account.user_id}: deposits lost: {dict(lost)}")
    if invented - account.maybe_deposited:
        violations.append(f"user {account.user_id}: deposits never made: {dict(invented)}")
    if charges != paid:
        differ = sorted(set(charges.items()) ^ set(paid.items()))[:SHOWN]
        violations.append(f"user {account.user_id}: charges and paid orders differ: {differ}")
    balance = system.stack.balance(account.user_id)
    expected = _sum(deposits) - sum(paid.values())
    if balance != expected:
        violations.append(f"user {account.user_id} has {balance}, and should have {expected}")
    return violations


def _sum(amounts: Counter[int]) -> int:
    return sum(amount * times for amount, times in amounts.items())


def _check_order_of_effect(system: System, account: Account) -> list[str]:
    """Check that orders were charged in the order in which the client placed them.

    The client waits for each answer before it places the next order.
    """
    charged = [
        str(order_id)
        for (order_id,) in system.delivery.query(
            "payments",
            "SELECT t.order_id FROM transfers t JOIN accounts a ON a.id = t.from_account_id"
            " WHERE t.kind = 'charge' AND a.user_id = :user_id ORDER BY t.id",
            user_id=account.user_id,
        )
    ]
    # If an order got no answer, it may have been stored later. So its position is unknown.
    place = {order_id: n for n, order_id in enumerate(account.accepted)}
    places = [place[order_id] for order_id in charged if order_id in place]
    if places == sorted(places):
        return []
    at = next(n for n in range(1, len(places)) if places[n] < places[n - 1])
    ids = list(account.accepted)
    return [f"order {ids[places[at]]} was charged after order {ids[places[at - 1]]}, a later one"]


def audit(system: System) -> list[str]:
    """Run `settle audit`, and return its report, or nothing if it found no fault."""
    done = system.stack.settle("audit", "--json")
    if done.returncode == 0:
        return []
    try:
        return [f"settle audit: {json.dumps(json.loads(done.stdout))[:2000]}"]
    except ValueError:
        return [f"settle audit ended with {done.returncode}: {done.stdout}{done.stderr}"]


def _first(violations: list[str]) -> list[str]:
    """Return the first violations, and the number of the others. There may be thousands."""
    more = len(violations) - SHOWN
    return violations[:SHOWN] + ([f"... and {more} more like these"] if more > 0 else [])
