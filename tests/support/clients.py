"""Clients that place orders and make deposits, and record every answer."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

import requests

from support.waiting import wait_until

if TYPE_CHECKING:
    from types import TracebackType

    from support.stack import Stack

# A client gives up an attempt after this time. The client does not know then whether the attempt
# had an effect.
TIMEOUT_S = 10
PAUSE_S = 0.05
PAUSE_AFTER_ERROR_S = 0.3
FINAL = frozenset({"success", "failed"})


@dataclass
class Account:
    """What one client knows about its account.

    Args:
        user_id: The user.
        accepted: By order id, the amount of each order that was answered with 202, oldest first.
        maybe_ordered: The amounts of orders without a 202. Each may have had its effect.
        deposited: The amounts of deposits that were answered with 200.
        maybe_deposited: The amounts of deposits without a 200. Each may have had its effect.
        final: By order, the final status that the client read.
        wrong: Answers that must never occur.
        waits_s: For each accepted order, the seconds until it was accepted.
        tries: The number of requests to change something. A repeated request counts again.
    """

    user_id: str
    accepted: dict[str, int] = field(default_factory=dict)
    maybe_ordered: Counter[int] = field(default_factory=Counter)
    deposited: Counter[int] = field(default_factory=Counter)
    maybe_deposited: Counter[int] = field(default_factory=Counter)
    final: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    tries: int = 0


class Client(threading.Thread):
    """One user, who sends one request after the other, and sometimes reads an earlier order."""

    def __init__(self, stack: Stack, seed: int, stop: threading.Event) -> None:
        super().__init__(name=f"client-{seed}")
        self.account = Account(str(uuid4()))
        self._stack = stack
        self._rng = random.Random(seed)
        self._stop_asked = stop
        self._session = requests.Session()

    def open(self) -> None:
        """Open the account. Call it before any fault is caused."""
        body = {"user_id": self.account.user_id}
        url = f"{self._stack.payments}/accounts"
        assert self._session.post(url, json=body, timeout=TIMEOUT_S).status_code == 201
        self._deposit()
        assert not self.account.maybe_deposited

    def run(self) -> None:
        while not self._stop_asked.is_set():
            chance = self._rng.random()
            if chance < 0.8:
                succeeded = self._order()
            elif chance < 0.88:
                succeeded = self._deposit()
            else:
                succeeded = self._check_earlier_order()
            self._stop_asked.wait(PAUSE_S if succeeded else PAUSE_AFTER_ERROR_S)
        self._session.close()

    def _order(self) -> bool:
        amount = self._rng.randint(1, 300)
        began = time.monotonic()
        answer = self._try("orders", "/orders", {"user_id": self.account.user_id, "amount": amount})
        if answer is not None and answer.status_code == 202:
            order_id = answer.headers["Location"].removeprefix("/order/")
            self.account.accepted[order_id] = amount
            self.account.waits_s.append(time.monotonic() - began)
            return True
        self.account.maybe_ordered[amount] += 1
        return False

    def _deposit(self) -> bool:
        # A deposit pays for about seven orders. There are ten orders per deposit, so some fail.
        amount = self._rng.randint(700, 1500)
        path = f"/accounts/{self.account.user_id}/deposit"
        answer = self._try("payments", path, {"amount": amount})
        if answer is not None and answer.status_code == 200:
            self.account.deposited[amount] += 1
            return True
        self.account.maybe_deposited[amount] += 1
        return False

    def _check_earlier_order(self) -> bool:
        """Read one of the last 20 orders, and check that a final status has not changed."""
        if not self.account.accepted:
            return True
        order_id = self._rng.choice(list(self.account.accepted)[-20:])
        try:
            answer = self._session.get(f"{self._stack.orders}/order/{order_id}", timeout=TIMEOUT_S)
        except requests.RequestException:
            return False
        if answer.status_code != 200:
            self._expect_503(answer)
            return False
        status = answer.json()["status"]
        if self.account.final.get(order_id, status) != status:
            self.account.wrong.append(
                f"order {order_id} was {self.account.final[order_id]}, then {status}"
            )
        if status in FINAL:
            self.account.final[order_id] = status
        return True

    def _try(self, service: str, path: str, body: dict[str, Any]) -> requests.Response | None:
        """Post, and return the answer of a success. None means that the effect is unknown.

        About half of the requests, at random, have an idempotency key. Such a request is repeated
        until it succeeds or the client stops. It has an effect at most once.
        """
        base = {"orders": self._stack.orders, "payments": self._stack.payments}[service]
        headers = {"Idempotency-Key": str(uuid4())} if self._rng.random() < 0.5 else {}
        while True:
            answer = self._try_once(f"{base}{path}", body, headers)
            if answer is not None or not headers or self._stop_asked.wait(PAUSE_AFTER_ERROR_S):
                return answer

    def _try_once(
        self, url: str, body: dict[str, Any], headers: dict[str, str]
    ) -> requests.Response | None:
        try:
            answer = self._session.post(url, json=body, headers=headers, timeout=TIMEOUT_S)
        except requests.RequestException:
            return None
        finally:
            self.account.tries += 1
        if answer.status_code in {200, 202}:
            return answer
        # 409 for a request with a key means that an earlier attempt is still running.
        if not (headers and answer.status_code == 409):
            self._expect_503(answer)
        return None

    def _expect_503(self, answer: requests.Response) -> None:
        if answer.status_code != 503:
            self.account.wrong.append(
                f"{answer.request.method} {answer.request.path_url}: {answer.status_code} "
                f"{answer.text[:300]}"
            )


class Clients:
    """Run several clients until the context ends.

    Args:
        stack: The stack that they use.
        count: The number of clients.
        seed: The seed of their random choices.
    """

    def __init__(self, stack: Stack, *, count: int = 6, seed: int = 0) -> None:
        self._stop = threading.Event()
        self._clients = [Client(stack, seed * 1000 + n, self._stop) for n in range(count)]
        self.accounts = [client.account for client in self._clients]

    @property
    def accepted(self) -> int:
        return sum(len(account.accepted) for account in self.accounts)

    @property
    def tries(self) -> int:
        return sum(account.tries for account in self.accounts)

    def wait_tried(self, count: int, *, timeout_s: float = 60) -> None:
        """Wait until `count` more requests were answered or given up."""
        wanted = self.tries + count
        wait_until(lambda: self.tries >= wanted, timeout_s=timeout_s, what="requests")

    def __enter__(self) -> Self:
        for client in self._clients:
            client.open()
        for client in self._clients:
            client.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for client in self._clients:
            client.join()
