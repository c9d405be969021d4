"""The code of an earlier revision runs on the newest tables, beside the newest code.

So a release can be rolled back without a change of the databases (docs/how-to/roll-back.md). The
old code runs with the libraries of this environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
import requests

from support.audit_data import run_audit, violations_in
from support.ports import free_port
from support.traffic import SERVICES
from support.waiting import wait_until
from support.web import ROOT, open_app

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.delivery import Delivery

REVISION = "ef5a43e"
TIMEOUT_S = 30
# The modules of that revision's relay and consumer, and where they find their services.
RELAY, CONSUMER = "shared.outbox.cli.relay", "shared.outbox.cli.inbox"
ENTRY_POINTS = """\
[settle.services]
orders = services.orders.events:SERVICE
payments = services.payments.events:SERVICE
"""


@dataclass(frozen=True)
class OldCode:
    """The code of an earlier revision.

    Args:
        root: its checkout.
        delivery: the databases and the broker.
    """

    root: Path
    delivery: Delivery

    @contextmanager
    def running(self, *command: str, **environ: str) -> Iterator[None]:
        """Run Python with these arguments, and terminate it. Its exit code must be 0."""
        log = self.root / f"{uuid4()}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=self.root,
                env={
                    **os.environ,
                    **self.delivery.environ,
                    "PYTHONPATH": str(self.root),
                    **environ,
                },
                stdout=output,
                stderr=output,
            )
        try:
            yield
        finally:
            process.terminate()
            code = process.wait(TIMEOUT_S)
        assert code == 0, log.read_text()

    @contextmanager
    def api(self, service: str) -> Iterator[str]:
        """Run an API, and yield its address when it answers."""
        port = free_port()
        command = ("-m", "gunicorn", "--config", "deploy/gunicorn.conf.py", "--workers", "1")
        address = f"http://127.0.0.1:{port}"

        def lives() -> bool:
            try:
                return requests.get(f"{address}/livez", timeout=TIMEOUT_S).ok
            except requests.ConnectionError:
                return False

        with self.running(*command, f"services.{service}.app:create_app()", PORT=str(port)):
            wait_until(lives, timeout_s=60, what=f"the old API of {service}")
            yield address

    @contextmanager
    def delivering(self, service: str) -> Iterator[None]:
        """Run the relay and the consumer of a service."""
        with ExitStack() as stack:
            for module in (RELAY, CONSUMER):
                started = f"from {module} import main; main()"
                stack.enter_context(self.running("-c", started, "run", service))
            yield


@pytest.fixture
def old(tmp_path: Path, delivery: Delivery) -> OldCode:
    """Check out the old revision. Its processes find this code before the current code."""
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", REVISION],
        capture_output=True,
        check=False,
    )
    if archive.returncode:
        pytest.skip(
            f"this clone has no commit {REVISION}; run `git fetch --unshallow`: {archive.stderr!r}"
        )
    subprocess.run(["tar", "-x", "-C", str(tmp_path)], input=archive.stdout, check=True)
    dist_info = tmp_path / "settle-0.1.0.dist-info"
    dist_info.mkdir()
    (dist_info / "METADATA").write_text("Metadata-Version: 2.1\nName: settle\nVersion: 0.1.0\n")
    (dist_info / "entry_points.txt").write_text(ENTRY_POINTS)
    # The old code imports flask_cors, which is not installed. Only CORS_ORIGINS needs its content.
    (tmp_path / "flask_cors.py").write_text("CORS = None\n")
    return OldCode(tmp_path, delivery)


@contextmanager
def delivering(delivery: Delivery, service: str) -> Iterator[None]:
    """Run the relay and the consumer of a service with the current code."""
    with delivery.relay(service), delivery.consumer(service):
        yield


def place(address: str, user_id: str, **headers: str) -> dict[str, Any]:
    """Place an order with the amount 1, and return the headers of the answer."""
    answer = requests.post(
        f"{address}/orders",
        json={"user_id": user_id, "amount": 1},
        headers=headers,
        timeout=TIMEOUT_S,
    )
    assert answer.status_code == 202, answer.text
    return dict(answer.headers)


@pytest.mark.timeout(240)
def test_old_and_new_code_deliver_each_others_orders(delivery: Delivery, old: OldCode) -> None:
    """First, the old code delivers for orders and the new code for payments, then the reverse.

    In both phases, old and new code place orders.
    """
    rich, poor = str(uuid4()), str(uuid4())
    with old.api("payments") as payments, old.api("orders") as orders:
        for user, amount in ((rich, 100), (poor, 1)):
            for path, body in (("", {"user_id": user}), (f"/{user}/deposit", {"amount": amount})):
                answer = requests.post(f"{payments}/accounts{path}", json=body, timeout=TIMEOUT_S)
                answer.raise_for_status()
        phases: list[tuple[Callable[..., Any], Callable[..., Any]]] = [
            (old.delivering, partial(delivering, delivery)),
            (partial(delivering, delivery), old.delivering),
        ]
        for number, (of_orders, of_payments) in enumerate(phases, start=1):
            with of_orders("orders"), of_payments("payments"):
                for user in (rich, poor):
                    place(orders, user)
                    delivery.place(UUID(user), 1)
                wait_until(
                    lambda: (
                        sum(delivery.statuses().values()) == 4 * number  # noqa: B023
                        and "created" not in delivery.statuses()
                    ),
                    timeout_s=60,
                    what="the orders to be settled",
                )
        balance = requests.get(
            f"{payments}/accounts/balance?user_id={rich}", timeout=TIMEOUT_S
        ).json()

    # The poor user can pay for one order.
    assert delivery.statuses() == {"success": 5, "failed": 3}
    assert max(Counter(delivery.charges()).values()) == 1, "an order was charged twice"
    assert (balance, delivery.balance(UUID(poor))) == ({"balance": 96}, 0)
    assert [delivery.dead_letters(service) for service in SERVICES] == [[], []]
    assert violations_in(run_audit(delivery)) == set()


def test_a_key_of_either_code_is_known_to_the_other(delivery: Delivery, old: OldCode) -> None:
    """A client that repeats its request to the other code gets the first answer."""
    user = str(uuid4())
    body = {"user_id": user, "amount": 1}
    first, second = {"Idempotency-Key": str(uuid4())}, {"Idempotency-Key": str(uuid4())}
    with old.api("orders") as address, open_app("orders", delivery.orders_url) as app:
        new = app.test_client()

        by_old = place(address, user, **first)["Location"]
        by_new = new.post("/orders", json=body, headers=second).headers["Location"]

        assert new.post("/orders", json=body, headers=first).headers["Location"] == by_old
        assert place(address, user, **second)["Location"] == by_new
    assert delivery.statuses() == {"created": 2}
