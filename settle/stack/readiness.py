"""Find out whether a process of the stack is ready: ask it, not only supervisord."""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING, Any

import requests

from settle.stack.databases import connection_error
from settle.stack.definition import APIS, BROKER, POSTGRES
from settle.stack.embedded.postgres import SUPERUSER
from settle.stack.supervisor import POLL_S
from settle_outbox.runtime.health import read_heartbeats

if TYPE_CHECKING:
    from collections.abc import Iterable

    from settle.progress import Step
    from settle.stack.definition import Stack
    from settle.stack.supervisor import Process, Supervisor

ASK_TIMEOUT_S = 2.0
# A relay or consumer writes its health file about every second, except during a long batch.
STALE_AFTER_S = 15.0
STARTING = "starting"
HEALTH_NAMES = {"relay": "outbox-relay", "consumer": "inbox-consumer"}


def not_ready_reason(stack: Stack, process: Process) -> str | None:
    """Return the reason why a process is not ready; None if it is."""
    if process.pid is None:
        return process.state.lower()
    if process.name == POSTGRES:
        return _ask_postgres(stack)
    if process.name == BROKER:
        return _ask_broker(stack)
    if process.name in APIS:
        return _ask_api(stack, process)
    return _read_health(stack, process)


def _ask_postgres(stack: Stack) -> str | None:
    if stack.cluster is None:
        return None
    return connection_error(stack.cluster.url(stack.ports["POSTGRES_PORT"], SUPERUSER))


def _ask_broker(stack: Stack) -> str | None:
    try:
        address = ("127.0.0.1", stack.ports["KAFKA_PORT"])
        socket.create_connection(address, timeout=ASK_TIMEOUT_S).close()
    except OSError as error:
        return str(error)
    return None


def _ask_api(stack: Stack, process: Process) -> str | None:
    if _read_api_health(stack, process.name).get("pid") != process.pid:
        return STARTING  # even if /readyz answers: the workers of a killed master may answer it
    service = process.name.removesuffix("-api")
    try:
        answer = requests.get(f"{stack.base_url(service)}/readyz", timeout=ASK_TIMEOUT_S)
    except requests.RequestException:
        return "does not answer"
    if answer.status_code == requests.codes.ok:
        return None
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"/readyz answers {answer.status_code}"


def _read_health(stack: Stack, process: Process) -> str | None:
    service, _, part = process.name.partition("-")
    found = read_heartbeats(stack.state.health, f"{HEALTH_NAMES[part]}-{service}").values()
    beat = next(
        (each for each in found if each and each.is_local and each.pid == process.pid), None
    )
    if beat is None or beat.has_ended:
        return STARTING
    if beat.state != "ready":
        return f"{beat.state}: {beat.detail}" if beat.detail else beat.state
    return None if beat.age_s < STALE_AFTER_S else f"no heartbeat for {beat.age_s:.0f} s"


def _read_api_health(stack: Stack, name: str) -> dict[str, Any]:
    """Return the content of an API's health file; empty if it cannot be read."""
    try:
        content: dict[str, Any] = json.loads((stack.state.health / f"{name}.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return content


def wait_ready(
    stack: Stack,
    supervisor: Supervisor,
    names: Iterable[str],
    *,
    timeout_s: float,
    step: Step,
) -> dict[str, str]:
    """Wait until programs are ready. Show which are not, meanwhile.

    Returns:
        The programs that were not ready in time, and why.

    Raises:
        SupervisorError: supervisord does not answer.
    """
    deadline = time.monotonic() + timeout_s
    missing = dict.fromkeys(names, "")
    while True:
        processes = supervisor.processes()
        reasons = {name: not_ready_reason(stack, processes[name]) for name in missing}
        missing = {name: reason for name, reason in reasons.items() if reason is not None}
        if not missing or time.monotonic() > deadline:
            return missing
        step.update(f"waiting for {', '.join(missing)}")
        time.sleep(POLL_S)
