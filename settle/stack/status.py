"""What runs, and how it is."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from settle.stack.definition import BROKER, SERVICES, BrokerKind, running_stack
from settle.stack.leftovers import find_leftovers
from settle.stack.readiness import not_ready_reason
from settle.stack.supervisor import Process, Supervisor

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from settle.stack.definition import Stack
    from settle.stack.state import StateFolder


class Health(IntEnum):
    """How the stack is; the exit code of `settle status`."""

    UP = 0
    PARTLY_UP = 1
    DOWN = 3


@dataclass(frozen=True, slots=True)
class Row:
    """One process.

    Args:
        process: its name.
        state: ``ready``, or how it is instead.
        pid: None when there is none.
        uptime_s: None when there is no process.
        address: None when it does not listen.
    """

    process: str
    state: str
    pid: int | None
    uptime_s: int | None
    address: str | None


@dataclass(frozen=True, slots=True)
class Status:
    """The stack as it is now.

    Args:
        health: in one word.
        rows: one per process.
        places: where things are, by what they are.
    """

    health: Health
    rows: list[Row]
    places: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """As `settle status --json` shows it."""
        return {
            "status": self.health.name.lower(),
            "processes": [asdict(row) for row in self.rows],
            "places": self.places,
        }

    def as_lines(self) -> Iterable[str]:
        """As `settle status` shows it."""
        if self.health is Health.DOWN:
            yield "Settle is not running: settle up starts it."
        else:
            yield from _table(self.rows)
        yield ""
        for name, place in self.places.items():
            yield f"{name + ':':<12} {place}"


def read_status(state: StateFolder) -> Status:
    """Ask supervisord, and each process itself."""
    stack = running_stack(state)
    supervisor = Supervisor(state.socket)
    pid = supervisor.pid()
    if stack is None or pid is None:
        left = find_leftovers(state)
        rows = [Row("supervisord", "not running", None, None, None)] + [
            Row("left over", "not watched: settle up or down ends it", pid, None, None)
            for pid in left
        ]
        health = Health.PARTLY_UP if left else Health.DOWN
        return Status(health, rows if left else [], {"folder": str(state.home)})
    processes = supervisor.processes()
    uptime_s = _age_s(state.supervisor_pid)
    rows = [Row("supervisord", "ready", pid, uptime_s, str(state.socket))]
    rows += [
        _row(stack, processes.get(name) or Process(name, "UNKNOWN", None, None))
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
            places[service] = "in the database that was given"
    if BROKER not in stack.embedded:
        places["broker"] = f"{stack.bootstrap}, as given"
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
