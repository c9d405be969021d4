"""The whole stack as a newcomer meets it: one command, HTTP, and everything that can be killed."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from settle.stack import APIS, BROKER, POSTGRES, WORKERS
from support.stack import Load, Stack
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.acceptance

ALL = (POSTGRES, BROKER, *APIS, *WORKERS)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    made = Stack()
    try:
        made.up()
        yield made
    finally:
        made.discard()


def test_demo_shows_an_order_that_is_paid_and_one_that_is_not(stack: Stack) -> None:
    demo = stack.settle("demo")
    assert demo.returncode == 0, demo.stderr
    assert "success (within the balance)" in demo.stdout
    assert "failed (more than is left)" in demo.stdout


def test_status_shows_every_process_with_its_address(stack: Stack) -> None:
    shown = stack.settle("status")
    assert shown.returncode == 0
    status = stack.status()
    processes = stack.processes()
    assert status["status"] == "up"
    assert set(processes) == {"supervisord", *ALL}
    assert {process["state"] for process in processes.values()} == {"ready"}
    assert processes["payments-api"]["address"] == stack.payments
    assert all(str(process["pid"]) in shown.stdout for process in processes.values())


def test_up_where_it_runs_already_changes_nothing(stack: Stack) -> None:
    before = {name: process["pid"] for name, process in stack.processes().items()}
    assert "running already" in stack.up()
    assert {name: process["pid"] for name, process in stack.processes().items()} == before


def test_up_refuses_other_settings_than_it_runs_with(stack: Stack) -> None:
    refused = stack.settle("up", ORDERS_PORT="1")
    assert refused.returncode == 1
    assert f"ORDERS_PORT={stack.ports['ORDERS_PORT']}" in refused.stderr


@pytest.mark.parametrize("victim", ALL)
def test_a_killed_process_comes_back_and_every_accepted_order_settles(
    stack: Stack, victim: str
) -> None:
    deposit, price = 1_000_000, 7
    user_id = stack.open_account(deposit)
    pid = stack.processes()[victim]["pid"]

    def is_back() -> bool:
        process = stack.processes()[victim]
        assert process["state"] == "ready", process["state"]
        return process["pid"] != pid

    with Load(stack, user_id, price) as load:
        os.kill(pid, signal.SIGKILL)
        wait_until(is_back, timeout_s=40, what=f"{victim} to be back")
    statuses = stack.wait_settled(load.accepted)

    assert set(statuses) == {"success"}
    # Charged once each; an order that was stored though its answer was lost counts as well.
    charges, rest = divmod(deposit - stack.balance(user_id), price)
    assert rest == 0
    assert charges >= len(load.accepted)


def test_orders_in_flight_settle_after_down_and_up(stack: Stack) -> None:
    user_id = stack.open_account(1_000)
    paths = [stack.place_order(user_id, 10) for _ in range(20)]
    accepted = [path for path in paths if path is not None]
    assert len(accepted) == 20

    assert stack.settle("down").returncode == 0
    assert stack.running() == []
    assert stack.settle("status").returncode == 3
    again = stack.settle("down")
    assert (again.returncode, again.stdout) == (0, "Settle is not running.\n")

    stack.up()
    assert set(stack.wait_settled(accepted)) == {"success"}
    assert stack.balance(user_id) == 1_000 - 20 * 10


def test_up_mends_a_stack_whose_supervisor_was_killed(stack: Stack) -> None:
    os.kill(stack.processes()["supervisord"]["pid"], signal.SIGKILL)
    wait_until(lambda: stack.settle("status").returncode == 1, what="status to see it")
    assert "left over" in stack.up()
    assert stack.settle("demo").returncode == 0


def test_down_leaves_nothing_behind_when_the_supervisor_was_killed(stack: Stack) -> None:
    os.kill(stack.processes()["supervisord"]["pid"], signal.SIGKILL)
    assert stack.settle("down").stdout == "Settle is down.\n"
    assert stack.running() == []


def test_up_names_the_port_that_is_taken_and_its_variable() -> None:
    stack = Stack()
    try:
        with socket.create_server(("127.0.0.1", stack.ports["ORDERS_PORT"])):
            refused = stack.settle("up")
        assert refused.returncode == 1
        assert f"port {stack.ports['ORDERS_PORT']}" in refused.stderr
        assert "set ORDERS_PORT" in refused.stderr
        assert refused.stderr.count("\n") == 1
        assert stack.running() == []
    finally:
        stack.discard()


def test_up_and_demo_say_what_is_wrong_in_one_sentence() -> None:
    stack = Stack()
    try:
        refused = stack.settle("up", PAYMENTS_PORT="eighty")
        assert refused.returncode == 1
        assert "PAYMENTS_PORT" in refused.stderr
        assert "Traceback" not in refused.stderr
        no_stack = stack.settle("demo")
        assert no_stack.returncode == 1
        assert "settle up" in no_stack.stderr
    finally:
        stack.discard()
