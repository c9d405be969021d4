"""The stack of this machine: its folder, disk, ports, servers and processes."""

from __future__ import annotations

import os
import tempfile
from shutil import disk_usage
from typing import TYPE_CHECKING

from settle.stack.definition import (
    APIS,
    BROKER,
    LOOPBACK,
    PORT_VARIABLES,
    POSTGRES,
    SERVICES,
    port_variables,
    read_bind_address,
    read_broker,
    read_embedded,
    read_ports,
    refuse_missing_broker,
)
from settle.stack.embedded.postgres import open_cluster
from settle.stack.leftovers import find_leftovers
from settle.stack.logs import last_error
from settle.stack.ports import port_conflict
from settle.stack.readiness import not_ready_reason
from settle.stack.root_user import AS_ROOT, how_to_leave_root
from settle.stack.state import LEAST_FREE_MB
from settle.stack.supervisor import Supervisor
from settle_outbox.checks.check import fail, fail_with, ok, warn
from settle_outbox.errors import SettleError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from settle.stack.definition import Stack
    from settle.stack.state import StateFolder
    from settle_outbox.checks.check import Finding

ENOUGH_FREE_MB = 1024


def check_folder(state: StateFolder) -> Iterator[Finding]:
    """Check that only this user can write to the state folder, and that the disk has space."""
    name = "folder"
    try:
        state.refuse_unsafe()
    except SettleError as error:
        yield fail_with(name, error)
        return
    try:
        with tempfile.TemporaryFile(dir=state.nearest):
            pass
    except OSError as error:
        remedy = "make it writable, or set SETTLE_HOME to another folder"
        yield fail(name, f"{state.nearest}: {error.strerror}", remedy)
        return
    yield ok(name, f"{state.home} is writable")
    free_mb, where = min((disk_usage(each).free // 1024**2, each) for each in _data_folders(state))
    found = f"{free_mb} MB free in {where}"
    if free_mb < LEAST_FREE_MB:
        yield fail("disk", found, f"free some space: at least {LEAST_FREE_MB} MB are needed")
    elif free_mb < ENOUGH_FREE_MB:
        yield warn("disk", found, "free some space soon")
    else:
        yield ok("disk", found)


def check_user(state: StateFolder) -> Iterator[Finding]:
    """Check that the stack does not run as root. It runs as this user, who owns its folder."""
    name = "user"
    if os.geteuid() == 0:
        first = " ".join(how_to_leave_root(state)).removesuffix(".")
        remedy = f"{first}; for a server, see docs/how-to/server.md"
        yield warn(name, AS_ROOT, remedy)
    else:
        yield ok(name, "an ordinary user")


def _data_folders(state: StateFolder) -> Iterator[Path]:
    """Yield the state folder, and the folder of its PostgreSQL if that is elsewhere."""
    yield state.nearest
    try:
        cluster = open_cluster(state.postgres)
    except SettleError:
        return  # the check of PostgreSQL reports why
    if cluster.folder.exists():
        yield cluster.folder


def check_supervisor(state: StateFolder) -> Iterator[Finding]:
    """Check whether supervisord runs, and for processes and files that a killed one has left."""
    name = "supervisord"
    pid = Supervisor(state.socket).pid()
    if pid is not None:
        yield ok(name, f"runs, pid {pid}")
        return
    left = find_leftovers(state)
    if left:
        pids = ", ".join(str(process.pid) for process in left)
        yield fail(name, f"was killed; left over: {pids}", "settle up or settle down ends them")
        return
    stale = [path for path in (state.supervisor_pid, state.socket) if path.exists()]
    if stale:
        found = f"does not run, but has left {', '.join(path.name for path in stale)}"
        yield warn(name, found, "nothing: settle up replaces them")
    else:
        yield ok(name, "does not run; settle up starts it")


def check_ports(stack: Stack | None) -> Iterator[Finding]:
    """Check that the ports are free, or used by this stack."""
    try:
        ports = stack.ports if stack is not None else read_ports()
        embedded = stack.embedded if stack is not None else read_embedded()
        broker = stack.broker if stack is not None else read_broker()
        bind_address = stack.bind_address if stack is not None else read_bind_address()
    except SettleError as error:
        yield fail("ports", str(error), "correct the variable")
        return
    running = _running(stack)
    wanted = [(each, name) for each in PORT_VARIABLES for name in port_variables(each, broker)]
    for program, variable in wanted:
        port = ports[variable]
        if program == POSTGRES and embedded.isdisjoint(SERVICES):
            continue
        if program == BROKER and BROKER not in embedded:
            continue
        if program in running:
            yield ok(f"port {port}", f"used by {program}")
            continue
        conflict = port_conflict(bind_address if program in APIS else LOOPBACK, port)
        if conflict is None:
            yield ok(f"port {port}", f"free for {program}")
        else:
            remedy = f"end that process, or set {variable} to another port"
            yield fail(f"port {port}", f"needed by {program}: {conflict}", remedy)


def _running(stack: Stack | None) -> set[str]:
    if stack is None:
        return set()
    processes = Supervisor(stack.state.socket).processes()
    return {name for name, process in processes.items() if process.pid is not None}


def check_embedded(state: StateFolder, stack: Stack | None) -> Iterator[Finding]:
    """Check that the embedded servers that are used are installed, and their data complete."""
    embedded = stack.embedded if stack is not None else read_embedded()
    if not embedded.isdisjoint(SERVICES):
        yield _check_cluster(state)
    if BROKER in embedded and stack is None:
        yield _check_broker_installed(state)


def _check_cluster(state: StateFolder) -> Finding:
    name = "postgres"
    try:
        cluster = open_cluster(state.postgres)
        if cluster.initialised:
            cluster.check()
            return ok(name, f"its data is in {cluster.data}")
    except (SettleError, OSError) as error:
        return fail_with(name, error)
    if cluster.building.exists():
        found = f"its first start was interrupted ({cluster.building})"
        return warn(name, found, "nothing: settle up creates it again")
    return ok(name, "installed; settle up creates its data folder")


def _check_broker_installed(state: StateFolder) -> Finding:
    try:
        broker = read_broker()
        if broker is not None:
            refuse_missing_broker(broker, state)
    except SettleError as error:
        return fail_with(BROKER, error)
    return ok(BROKER, "installed; settle up starts it")


def check_processes(stack: Stack, programs: Iterable[str]) -> Iterator[Finding]:
    """Check that each process is ready. Show the last error of one that is not."""
    processes = Supervisor(stack.state.socket).processes()
    for name in programs:
        process = processes.get(name)
        reason = (
            not_ready_reason(stack, process) if process is not None else "unknown to supervisord"
        )
        if reason is None:
            yield ok(f"process {name}", "ready")
            continue
        logged = last_error(stack.state.logs / f"{name}.log")
        found = f"{reason}; its log: {logged}" if logged else reason
        yield fail(f"process {name}", found, f"run settle logs {name}")
