"""The whole stack as a newcomer uses it: one command, HTTP, and killed processes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import pytest
import requests

from settle.stack.definition import APIS, BROKER, POSTGRES, WORKERS
from support.stack import Load, Stack
from support.waiting import wait_until

pytestmark = pytest.mark.acceptance

ALL = (POSTGRES, BROKER, *APIS, *WORKERS)


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


def test_up_changes_nothing_if_the_stack_runs(stack: Stack) -> None:
    before = {name: process["pid"] for name, process in stack.processes().items()}
    assert "running already" in stack.up()
    assert {name: process["pid"] for name, process in stack.processes().items()} == before


def test_up_refuses_other_settings_than_the_stack_runs_with(stack: Stack) -> None:
    refused = stack.settle("up", ORDERS_PORT="1", ALLOWED_HOSTS="pay.example")

    assert refused.returncode == 1
    assert "with other settings: ORDERS_PORT, ALLOWED_HOSTS. " in refused.stderr
    assert "settle down, then settle up" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_the_commands_of_the_readme_work_when_pasted(stack: Stack) -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    (commands,) = re.findall(r"## Your first order\n+```sh\n(.*?)```", readme, re.DOTALL)
    for documented, actual in (
        ("localhost:8080", stack.payments.removeprefix("http://")),
        ("localhost:8081", stack.orders.removeprefix("http://")),
        # A loaded machine may need more time.
        ("wait=10", "wait=30"),
    ):
        assert documented in commands
        commands = commands.replace(documented, actual)
    shown = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands], capture_output=True, text=True, check=True
    ).stdout
    assert "Account created" in shown
    assert "Balance refilled" in shown
    assert '"Status":"success"' in shown
    assert '{"balance":100000}' in shown
    assert '"Description":"a pair of shoes"' in shown


def test_fifty_concurrent_orders_are_paid_until_the_balance_is_used_up(stack: Stack) -> None:
    user_id = stack.open_account(1000)
    with ThreadPoolExecutor(50) as pool:
        placed = list(pool.map(lambda _: stack.place_order(user_id, 100), range(50)))
    accepted = [path for path in placed if path is not None]
    assert len(accepted) == 50
    statuses = stack.wait_settled(accepted)
    assert Counter(statuses) == {"success": 10, "failed": 40}
    assert stack.balance(user_id) == 0


def test_orders_are_accepted_while_the_broker_is_down_and_settle_afterwards(stack: Stack) -> None:
    user_id = stack.open_account(1000)
    stack.supervise("stop", BROKER)
    took_s = []
    accepted = []
    for _ in range(20):
        began = time.monotonic()
        accepted.append(stack.place_order(user_id, 10))
        took_s.append(time.monotonic() - began)
    assert {requests.get(f"{stack.orders}/readyz", timeout=30).status_code} == {200}
    stack.supervise("start", BROKER)
    assert None not in accepted
    # An answer that waited for the broker would take at least 2 s (MAX_BLOCK_MS of the producer).
    assert median(took_s) < 1
    assert set(stack.wait_settled([path for path in accepted if path])) == {"success"}
    assert stack.balance(user_id) == 800


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
    # An order whose answer was lost may be stored and charged, but is not in load.accepted.
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


def test_up_repairs_a_stack_whose_supervisor_was_killed(stack: Stack) -> None:
    os.kill(stack.processes()["supervisord"]["pid"], signal.SIGKILL)
    wait_until(lambda: stack.settle("status").returncode == 1, what="status to report the error")
    assert "a killed supervisord had left" in stack.up()
    assert stack.settle("demo").returncode == 0


def test_down_leaves_nothing_behind_when_the_supervisor_was_killed(stack: Stack) -> None:
    os.kill(stack.processes()["supervisord"]["pid"], signal.SIGKILL)
    assert stack.settle("down").stdout == "Settle is down.\n"
    assert stack.running() == []


def test_up_names_a_used_port_and_its_variable() -> None:
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


@pytest.mark.timeout(300)  # it starts another stack
def test_a_stack_on_all_ipv4_and_ipv6_addresses_is_ready_and_reachable() -> None:
    stack = Stack(BIND_ADDRESS="::")
    try:
        said = stack.up()
        status = stack.settle("status")
        checks = json.loads(stack.settle("doctor", "--quick", "--json").stdout)

        assert f"http://[::1]:{stack.ports['PAYMENTS_PORT']}" in said
        assert status.returncode == 0, status.stdout
        assert [check for check in checks if check["verdict"] == "fail"] == []
        for host in ("[::1]", "127.0.0.1"):
            url = f"http://{host}:{stack.ports['ORDERS_PORT']}/readyz"
            assert requests.get(url, timeout=30).status_code == 200, host
        assert stack.settle("demo").returncode == 0
    finally:
        stack.discard()


def test_up_and_demo_report_an_error_in_one_sentence() -> None:
    stack = Stack()
    try:
        refused = stack.settle("up", PAYMENTS_PORT="eighty")
        assert refused.returncode == 1
        assert "PAYMENTS_PORT is 'eighty'" in refused.stderr
        assert "Traceback" not in refused.stderr
        no_stack = stack.settle("demo")
        assert no_stack.returncode == 1
        assert "settle up" in no_stack.stderr
    finally:
        stack.discard()
