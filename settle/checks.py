"""What `settle doctor` looks at: each check gives one line, and says what to do when it is bad."""

from __future__ import annotations

import os
import socket
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from re import match
from typing import TYPE_CHECKING

from settle.databases import revision, why_silent
from settle.embedded.broker import find_binary
from settle.embedded.postgres import Cluster, open_cluster
from settle.leftovers import find_leftovers
from settle.logs import last_trouble
from settle.ports import why_taken
from settle.readiness import why_not_ready
from settle.stack import (
    BOOTSTRAP,
    BROKER,
    DATABASE_URLS,
    PORT_VARIABLES,
    POSTGRES,
    SERVICES,
    read_embedded,
    read_ports,
)
from settle.state import LEAST_FREE_MB
from settle.supervisor import Supervisor
from shared.errors import SettleError
from shared.migrations import head
from shared.settings import read_database_url

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from settle.stack import Stack
    from settle.state import StateFolder

PYTHONS = ((3, 11), (3, 12), (3, 13))
PROGRAMS = ("supervisord", "gunicorn", "outbox-relay", "inbox-consumer")
INSTALL = "run make install"
ENOUGH_FREE_MB = 1024
ASK_TIMEOUT_S = 2.0


class Verdict(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One line.

    Args:
        name: of what was looked at.
        verdict: how it is.
        found: what was found.
        remedy: what to do about it; empty when it is well.
    """

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""


def _ok(name: str, found: str) -> Check:
    return Check(name, Verdict.OK, found)


def _fail(name: str, found: str, remedy: str) -> Check:
    return Check(name, Verdict.FAIL, found, remedy)


def check_python() -> Iterator[Check]:
    """The interpreter and what is installed beside it."""
    found = sys.version.split()[0]
    if sys.version_info[:2] in PYTHONS:
        yield _ok("python", found)
    else:
        yield _fail("python", found, "install 3.11, 3.12 or 3.13; make PYTHON=... names it")
    lacking = [name for name in _required() if not _installed(name)]
    scripts = Path(sysconfig.get_path("scripts"))
    lacking += [name for name in PROGRAMS if not os.access(scripts / name, os.X_OK)]
    if lacking:
        yield _fail("packages", f"not installed: {', '.join(lacking)}", INSTALL)
    else:
        yield _ok("packages", f"all that settle {version('settle')} needs")


def _required() -> Iterator[str]:
    for requirement in requires("settle") or ():
        name = match(r"[\w.-]+", requirement)
        if name and ";" not in requirement:  # what follows names an extra
            yield name[0]


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def check_folder(state: StateFolder) -> Iterator[Check]:
    """Whether the state folder can be written to, and has room."""
    name = "folder"
    try:
        with tempfile.TemporaryFile(dir=state.nearest):
            pass
    except OSError as error:
        remedy = "make it writable, or have SETTLE_HOME name another folder"
        yield _fail(name, f"{state.nearest}: {error.strerror}", remedy)
        return
    yield _ok(name, f"{state.home} is writable")
    free_mb = state.free_mb
    found = f"{free_mb} MB free"
    if free_mb < LEAST_FREE_MB:
        yield _fail("disk", found, f"free some space: {LEAST_FREE_MB} MB at the least")
    elif free_mb < ENOUGH_FREE_MB:
        yield Check("disk", Verdict.WARN, found, "free some space soon")
    else:
        yield _ok("disk", found)


def check_supervisor(state: StateFolder) -> Iterator[Check]:
    """Whether supervisord runs, and what a killed one has left."""
    name = "supervisord"
    pid = Supervisor(state.socket).pid()
    if pid is not None:
        yield _ok(name, f"runs, pid {pid}")
        return
    left = find_leftovers(state)
    if left:
        pids = ", ".join(map(str, left))
        yield _fail(name, f"was killed; left over: {pids}", "settle up or settle down ends them")
        return
    stale = [path for path in (state.supervisor_pid, state.socket) if path.exists()]
    if stale:
        found = f"does not run, but has left {', '.join(path.name for path in stale)}"
        yield Check(name, Verdict.WARN, found, "nothing: settle up replaces them")
    else:
        yield _ok(name, "does not run; settle up starts it")


def check_ports(stack: Stack | None) -> Iterator[Check]:
    """Whether what does not run yet could listen."""
    try:
        ports = stack.ports if stack is not None else read_ports()
        embedded = stack.embedded if stack is not None else read_embedded()
    except SettleError as error:
        yield _fail("ports", str(error), "correct the variable")
        return
    ours = _running(stack)
    for program, variable in PORT_VARIABLES.items():
        port = ports[variable]
        if program == POSTGRES and embedded.isdisjoint(SERVICES):
            continue
        if program == BROKER and BROKER not in embedded:
            continue
        if program in ours:
            yield _ok(f"port {port}", f"{program}, as it should")
            continue
        host = os.environ.get("BIND_ADDRESS") or "127.0.0.1"
        taken = why_taken(stack.host(program) if stack else host, port)
        if taken is None:
            yield _ok(f"port {port}", f"free for {program}")
        else:
            remedy = f"end that process, or set {variable} to another port"
            yield _fail(f"port {port}", f"wanted by {program}: {taken}", remedy)


def _running(stack: Stack | None) -> set[str]:
    if stack is None:
        return set()
    processes = Supervisor(stack.state.socket).processes()
    return {name for name, process in processes.items() if process.pid is not None}


def check_servers(state: StateFolder, stack: Stack | None) -> Iterator[Check]:
    """Whether PostgreSQL and the broker are to be had: reached, or installed and whole."""
    embedded = stack.embedded if stack is not None else read_embedded()
    if not embedded.isdisjoint(SERVICES):
        yield _check_cluster(state)
    for service in SERVICES:
        if stack is not None:
            yield _check_database(service, stack.database_urls[service])
        elif service not in embedded:
            yield _check_given_database(service)
    if BROKER in embedded and stack is None:
        yield _check_broker_installed()
    else:
        yield _check_broker(stack.bootstrap if stack is not None else os.environ[BOOTSTRAP])


def _check_cluster(state: StateFolder) -> Check:
    name = "postgres"
    try:
        cluster = open_cluster(state.postgres)
        if cluster.initialised:
            cluster.check()
            return _ok(name, f"its data are in {cluster.data}")
    except (SettleError, OSError) as error:
        return _fail(name, str(error), "as it says")
    return _not_initialised(name, cluster)


def _not_initialised(name: str, cluster: Cluster) -> Check:
    if cluster.building.exists():
        found = f"its first start was interrupted ({cluster.building})"
        return Check(name, Verdict.WARN, found, "nothing: settle up makes it anew")
    return _ok(name, "installed; settle up makes its data folder")


def _check_given_database(service: str) -> Check:
    try:
        return _check_database(service, read_database_url(service))
    except SettleError as error:
        return _fail(f"{service} db", str(error), "correct the variable")


def _check_database(service: str, url: str) -> Check:
    name = f"{service} db"
    silent = why_silent(url)
    if silent is not None:
        return _fail(name, silent, f"settle logs {POSTGRES}, or check {DATABASE_URLS[service]}")
    found, wanted = revision(url), head(service)
    if found != wanted:
        return _fail(name, f"at revision {found}, the code needs {wanted}", "settle up migrates it")
    return _ok(name, f"reached, at revision {found}")


def _check_broker_installed() -> Check:
    try:
        find_binary()
    except SettleError as error:
        return _fail(BROKER, str(error), INSTALL)
    return _ok(BROKER, "installed; settle up starts it")


def _check_broker(bootstrap: str) -> Check:
    refused = []
    for address in bootstrap.split(","):
        host, _, port = address.strip().rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=ASK_TIMEOUT_S).close()
        except (OSError, ValueError) as error:
            refused.append(f"{address}: {error}")
        else:
            return _ok(BROKER, f"reached at {address}")
    return _fail(BROKER, "; ".join(refused), f"settle logs {BROKER}, or check {BOOTSTRAP}")


def check_processes(stack: Stack) -> Iterator[Check]:
    """Whether each process does its work; with the last error of one that does not."""
    processes = Supervisor(stack.state.socket).processes()
    for name in stack.programs:
        process = processes.get(name)
        reason = why_not_ready(stack, process) if process is not None else "unknown to supervisord"
        if reason is None:
            yield _ok(name, "ready")
            continue
        trouble = last_trouble(stack.state.logs / f"{name}.log")
        found = f"{reason}; its log: {trouble}" if trouble else reason
        yield _fail(name, found, f"settle logs {name}")


def worst(checks: Iterable[Check]) -> Verdict:
    """The worst verdict of all."""
    order = list(Verdict)
    return max((check.verdict for check in checks), key=order.index, default=Verdict.OK)
