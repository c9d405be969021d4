"""Show the stack at work: one order is paid, and one fails because the balance is too low."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

import requests

from settle_outbox.cli.terminal import printable
from settle_outbox.errors import SettleError

if TYPE_CHECKING:
    from settle.progress import Say
    from settle.stack.definition import Stack

DEPOSIT, PAID, UNPAID = 1_000, 700, 500
REQUEST_TIMEOUT_S = 10.0
SETTLE_TIMEOUT_S = 30.0
POLL_S = 0.003


class DemoError(SettleError):
    """A step had an unexpected result."""


class Demo:
    """A run of the demo, with a new user."""

    def __init__(self, stack: Stack, say: Say) -> None:
        """Prepare a run. Nothing is sent yet.

        Args:
            stack: the running stack.
            say: prints a line for each step.
        """
        self.stack = stack
        self.say = say
        self._session = requests.Session()

    def run(self) -> None:
        """Run every step.

        Raises:
            DemoError: a step had an unexpected result.
        """
        user_id = str(uuid.uuid4())
        self.say(f"User {user_id}; amounts are in minor units.\n")
        opened = self._call("payments", "POST", "/accounts", 201, {"user_id": user_id})
        _expect("the answer", opened.json(), {"message": "Account created"})
        deposit = f"/accounts/{user_id}/deposit"
        paid_in = self._call("payments", "POST", deposit, 200, {"amount": DEPOSIT})
        _expect("the answer", paid_in.json(), {"message": "Balance refilled"})
        self._order(user_id, PAID, "success", "within the balance")
        self._order(user_id, UNPAID, "failed", "more than is left")
        balance = self._call("payments", "GET", f"/accounts/balance?user_id={user_id}", 200)
        _expect("the balance", balance.json(), {"balance": DEPOSIT - PAID})

    def _order(self, user_id: str, amount: int, status: str, why: str) -> None:
        began = time.perf_counter()
        order = {"user_id": user_id, "amount": amount, "description": f"demo: {why}"}
        accepted = self._call("orders", "POST", "/orders", 202, order)
        path = accepted.headers["Location"]
        found = self._settled(path)
        settling_ms = (time.perf_counter() - began) * 1000
        _expect(f"the status of {path}", found["status"], status)
        self.say(f"      {found['id']}: {status} ({why}), settled after {settling_ms:.0f} ms")

    def _settled(self, path: str) -> dict[str, Any]:
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        while True:
            answer = self._request("orders", "GET", path)
            _expect(f"GET {path}", answer.status_code, 200)
            order: dict[str, Any] = answer.json()
            if order["status"] != "created":
                return order
            if time.monotonic() > deadline:
                raise DemoError(
                    f"The order at {path} has not settled after {SETTLE_TIMEOUT_S:.0f} s: "
                    "see settle status."
                )
            time.sleep(POLL_S)

    def _call(
        self, service: str, method: str, path: str, expected: int, body: object = None
    ) -> requests.Response:
        began = time.perf_counter()
        answer = self._request(service, method, path, body)
        took_ms = (time.perf_counter() - began) * 1000
        _expect(f"{method} {path}", answer.status_code, expected, answer.text)
        text = printable(answer.text.strip())
        self.say(f"{took_ms:5.0f} ms  {method} {path}  {answer.status_code} {text}")
        return answer

    def _request(
        self, service: str, method: str, path: str, body: object = None
    ) -> requests.Response:
        url = f"{self.stack.base_url(service)}{path}"
        try:
            return self._session.request(method, url, json=body, timeout=REQUEST_TIMEOUT_S)
        except requests.RequestException as error:
            raise DemoError(f"{method} {url} failed: {error}") from error


def _expect(what: str, found: object, expected: object, detail: str = "") -> None:
    if found != expected:
        raise DemoError(f"{what}: expected {expected!r}, found {found!r}. {detail}".strip())
