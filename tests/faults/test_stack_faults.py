"""The whole stack under load, while its servers die and its connections fail.

Every accepted order settles once, and the audit finds nothing.
"""

from __future__ import annotations

import re
import signal
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from settle.stack.definition import WORKERS
from settle_outbox.kafka.clients import MAX_BLOCK_MS
from support.clients import Clients
from support.final_checks import audit, check_accounts, wait_final
from support.system import APIS, CLIENT_NAMES, System, send
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.broker import Broker
    from support.postgres import PostgresServer

# One test has an outage of a minute. On a loaded machine, a restart of the stack takes another
# minute.
pytestmark = pytest.mark.timeout(400)

OUTAGE_S = 60
DELAY_S = 0.2
SETTLE_TIMEOUT_S = 90


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    with System() as made:
        yield made


@contextmanager
def load(system: System, *, users: int = 4) -> Iterator[Clients]:
    """Run clients during the context, then check that every result is final and correct."""
    with Clients(system.stack, count=users) as clients:
        clients.wait_tried(20)
        yield clients
        clients.wait_tried(20)
    assert clients.accepted > 0
    violations = wait_final(system, timeout_s=SETTLE_TIMEOUT_S)
    violations += check_accounts(system, clients.accounts)
    violations += audit(system)
    assert violations == []


def settled(system: System) -> int:
    return sum(count for status, count in system.delivery.statuses().items() if status != "created")


def wait_settled(system: System, more: int) -> None:
    """Wait until `more` further orders are final, which shows that every part works."""
    wanted = settled(system) + more
    wait_until(lambda: settled(system) >= wanted, timeout_s=60, what="orders to settle")


@contextmanager
def stopped_server(server: PostgresServer | Broker, end: Callable[[], None]) -> Iterator[None]:
    """Stop a server with `end`, and start it again after the context."""
    end()
    try:
        yield
    finally:
        server.start()


def notice_waiter(system: System, program: str, event: str) -> Callable[[], None]:
    """Return a function that waits until a program logs `event` after this call.

    Without this wait, an outage could end before the program has noticed it.
    """
    log = system.state.logs / f"{program}.log"
    before = log.read_text().count(event)

    def wait() -> None:
        wait_until(lambda: log.read_text().count(event) > before, timeout_s=60, what=event)

    return wait


def test_sigterm_to_all_processes_ends_each_with_exit_code_0_and_loses_nothing(
    system: System,
) -> None:
    log = system.state.logs / "supervisord.log"
    with load(system):
        length_before = len(log.read_text())
        processes = system.processes()
        send([process.pid for process in processes.values() if process.pid], signal.SIGTERM)

        def ends() -> dict[str, str]:
            new_lines = log.read_text()[length_before:]
            found = dict(re.findall(r"exited: (\S+) \((.+?)[;)]", new_lines))
            assert set(found) == {*APIS, *WORKERS}
            return found

        assert set(wait_until(ends, timeout_s=60, what="all processes to end").values()) == {
            "exit status 0"
        }
        system.wait_ready()


def test_a_broker_that_is_killed_and_comes_back(system: System) -> None:
    with load(system) as clients:
        wait_noticed = notice_waiter(system, "orders-relay", "relay.broker_down")
        with stopped_server(system.broker, system.broker.kill):
            clients.wait_tried(30)
            wait_noticed()
        wait_settled(system, 50)


def test_orders_are_accepted_quickly_while_the_broker_is_down_for_a_minute(system: System) -> None:
    with load(system, users=2) as clients:
        with stopped_server(system.broker, system.broker.stop):
            for account in clients.accounts:
                account.waits_s.clear()
            accepted, down_since = clients.accepted, monotonic()
            wait_until(lambda: monotonic() - down_since > OUTAGE_S, timeout_s=2 * OUTAGE_S)
            waits_s = sorted(wait_s for account in clients.accounts for wait_s in account.waits_s)
        assert len(waits_s) > OUTAGE_S  # at least one order a second
        assert not any(account.maybe_ordered for account in clients.accounts)
        # A busy machine may delay some orders. An order that needed the broker would wait for the
        # whole time-out of a producer, MAX_BLOCK_MS.
        assert waits_s[len(waits_s) * 99 // 100] < 1
        assert waits_s[-1] < MAX_BLOCK_MS / 1000
        wait_settled(system, clients.accepted - accepted)


def test_a_database_that_is_killed_and_comes_back(system: System) -> None:
    with load(system) as clients:
        wait_noticed = notice_waiter(system, "orders-relay", "relay.database_down")
        with stopped_server(system.postgres, system.postgres.kill):
            clients.wait_tried(10)
            wait_noticed()
        wait_settled(system, 50)


@pytest.mark.parametrize(
    ("who", "server"),
    [
        ("api", "postgres"),
        ("relay", "postgres"),
        ("consumer", "postgres"),
        ("relay", "broker"),
        ("consumer", "broker"),
    ],
)
def test_connections_that_are_reset_delayed_and_cut(system: System, who: str, server: str) -> None:
    wire, names = system.wires[server], CLIENT_NAMES[who]
    with load(system) as clients:
        wait_settled(system, 10)
        assert wire.reset(*names) > 0
        wait_settled(system, 10)
        with wire.delayed(*names, delay_s=DELAY_S):
            wait_settled(system, 20)
        with wire.cut(*names):
            wait_until(lambda: not any(name.startswith(names) for name in wire.names()))
            clients.wait_tried(20)
        wait_settled(system, 20)
