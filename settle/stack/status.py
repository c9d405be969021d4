"""The status of each process of the stack."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from settle.stack.definition import (
    BOOTSTRAP,
    BROKER,
    DATABASE_URLS,
    SERVICES,
    BrokerKind,
    running_stack,
)
from settle.stack.leftovers import find_leftovers
from settle.stack.readiness import not_ready_reason
from settle.stack.supervisor import Process, Supervisor

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from settle.stack.definition import Stack
    from settle.stack.state import StateFolder


class Health(IntEnum):
    """The state of the stack, and the exit code of `settle status`."""

    UP = 0
    PARTLY_UP = 1
    DOWN = 3


@dataclass(frozen=True, slots=True)
class Row:
    """A process.

    Args:
        process: its name.
        state: ``ready``, or the reason why it is not.
        pid: None without a process.
        uptime_s: None without a process.
        address: None if it does not listen.
    """

    process: str
    state: str
    pid: int | None
    uptime_s: int | None
    address: str | None


@dataclass(frozen=True, slots=True)
class Status:
    """The status of the stack.

    Args:
        health: the stack's state.
        rows: the processes.
        places: the folders and servers in use, by name.
    """

    health: Health
    rows: list[Row]
    places: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """Return the output of `settle status --json`."""
        return {
            "status": self.health.name.lower(),
            "processes": [asdict(row) for row in self.rows],
            "places": self.places,
        }

    def as_lines(self) -> Iterable[str]:
        """Yield the output of `settle status`."""
        if self.health is Health.DOWN:
            yield "Settle is not running. Run settle up to start it."
        else:
            yield from _table(self.rows)
        yield ""
        for name, place in self.places.items():
            yield f"{name + ':':<12} {place}"


def read_status(state: StateFolder) -> Status:
    """Read the status from supervisord and from each process."""
    stack = running_stack(state)
    supervisor = Supervisor(state.socket)
    pid = supervisor.pid()
    if stack is None or pid is None:
        left = find_leftovers(state)
        rows = [Row("supervisord", "not running", None, None, None)] + [
            Row("left over", "not supervised: settle up or down ends it", each.pid, None, None)
            for each in left
        ]
        health = Health.PARTLY_UP if left else Health.DOWN
        return Status(health, rows if left else [], {"folder": str(state.home)})
    processes = supervisor.processes()
    uptime_s = _age_s(state.supervisor_pid)
    rows = [Row("supervisord", "ready", pid, uptime_s, str(state.socket))]
    rows += [
        _row(stack, processes.get(name) or Process(name, name, "UNKNOWN", None, None))
        for name in stack.programs
    ]
    ready = all(row.state == "ready" for row in rows)
    return Status(Health.UP if ready else Health.PARTLY_UP, rows, _places(stack))


def _age_s(path: Path) -> int | None:
    try:
        return int(time.time() - path.stat().st_mtime)
    except FileNotFoundError:
        return None


def _row(stack: Stack, process: Process) -> Row:
    return Row(
        process=process.name,
        state=not_ready_reason(stack, process) or "ready",
        pid=process.pid,
        uptime_s=process.uptime_s,
        address=stack.address(process.name),
    )


def _places(stack: Stack) -> dict[str, str]:
    places = {"folder": str(stack.state.home), "logs": str(stack.state.logs)}
    if stack.cluster is not None:
        places["PostgreSQL"] = f"{stack.cluster.data} (binaries in {stack.cluster.binaries})"
    for service in SERVICES:
        if service not in stack.embedded:
            places[service] = f"in the database of {DATABASE_URLS[service]}"
    if BROKER not in stack.embedded:
        places["broker"] = f"{stack.bootstrap} ({BOOTSTRAP})"
    elif stack.broker is BrokerKind.KAFKA:
        places["Kafka"] = str(stack.state.kafka)
    return places


def _table(rows: Iterable[Row]) -> Iterable[str]:
    cells = [("process", "state", "pid", "uptime", "address")]
    cells += [
        (row.process, row.state, str(row.pid or "-"), _uptime(row.uptime_s), row.address or "-")
        for row in rows
    ]
    widths = [max(len(cell[i]) for cell in cells) for i in range(4)]
    for cell in cells:
        left = "  ".join(text.ljust(width) for text, width in zip(cell, widths, strict=False))
        yield f"{left}  {cell[4]}"


def _uptime(seconds: int | None) -> str:
    if seconds is None:
        return "-"
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{f'{days}d ' if days else ''}{hours}:{minutes:02}:{seconds:02}"
