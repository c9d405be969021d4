"""Decide what to check: the stack of this machine, or the servers that the environment names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from settle.doctor import installation, local
from settle.doctor.shop import check_service
from settle.stack.definition import (
    BOOTSTRAP,
    DATABASE_URLS,
    SERVICES,
    read_embedded,
    running_stack,
    take_environment,
)
from settle.stack.supervisor import Supervisor
from settle_outbox.checks.background import run_at_once
from settle_outbox.checks.broker import BROKER, check_reached
from settle_outbox.checks.check import warn
from settle_outbox.checks.clocks import check_clocks
from settle_outbox.checks.service import check_kafka
from settle_outbox.cli.command import EXPECTED
from settle_outbox.service import service_names
from settle_outbox.settings import read_database_url, service_variable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from settle.stack.definition import Stack
    from settle.stack.state import StateFolder
    from settle_outbox.checks.check import Finding, NamedCheck


@dataclass(frozen=True, slots=True)
class _Target:
    """What to check.

    Args:
        state: the folder of this machine's stack.
        stack: the running stack; None if none runs, or if the environment names other servers.
        services: the services to check.
        bootstrap: the broker's addresses; None if the broker is embedded and does not run.
    """

    state: StateFolder
    stack: Stack | None
    services: Sequence[str]
    bootstrap: str | None

    @property
    def is_local(self) -> bool:
        """Whether this machine's stack is checked, running or not.

        False if the environment names servers for all that is checked, as in a container.
        """
        return self.stack is not None or not read_embedded().isdisjoint({*self.services, BROKER})

    @property
    def reachable(self) -> list[str]:
        """The services whose database the environment names, or whose database runs here."""
        embedded = frozenset[str]() if self.stack is not None else read_embedded()
        return [service for service in self.services if service not in embedded]


def configured_services(state: StateFolder) -> list[str]:
    """Return this system's services, and other installed ones whose database URL is set.

    If the environment names a broker and at least one database, and there is no stack here, only
    services with a database URL are returned: a container may run one service.
    """
    named = [
        name for name in service_names() if os.environ.get(service_variable(name, "DATABASE_URL"))
    ]
    is_remote = bool(named) and BROKER not in read_embedded() and not state.home.exists()
    mine = [name for name in SERVICES if name in named or not is_remote]
    return [*mine, *(name for name in named if name not in SERVICES)]


def examine(
    state: StateFolder, *, quick: bool, services: Sequence[str] = SERVICES
) -> Iterator[Finding]:
    """Run the checks, and yield each finding as soon as it is known. Nothing is changed.

    Args:
        state: the folder of this machine's stack.
        quick: only run the checks of what keeps the stack from starting.
        services: the services whose databases and topics are checked.
    """
    target = _find_target(state, services)
    return run_at_once(_quick_checks(target) if quick else _all_checks(target))


def _find_target(state: StateFolder, services: Sequence[str]) -> _Target:
    try:
        state.refuse_unsafe()
        runs = Supervisor(state.socket).pid() is not None
        stack = running_stack(state) if runs else None
    except EXPECTED:
        stack = None  # the checks of the folder and of supervisord report why
    if stack is not None:
        environment = stack.environment
        given = [name for name in (*DATABASE_URLS.values(), BOOTSTRAP) if os.environ.get(name)]
        if all(os.environ[name] == environment[name] for name in given):
            take_environment(stack)
        else:
            stack = None
    known = stack is not None or BROKER not in read_embedded()
    return _Target(state, stack, services, os.environ[BOOTSTRAP] if known else None)


def _quick_checks(target: _Target) -> Iterator[NamedCheck]:
    yield "python", installation.check_python
    if target.is_local or set(target.services) >= set(SERVICES):
        yield from _local_checks(target)
    for service in target.reachable:
        yield service, partial(check_service, service, quick=True)
    if target.bootstrap is not None:
        yield BROKER, partial(check_reached, target.bootstrap)


def _local_checks(target: _Target) -> Iterator[NamedCheck]:
    state, stack = target.state, target.stack
    yield "folder", partial(local.check_folder, state)
    yield "supervisord", partial(local.check_supervisor, state)
    yield "ports", partial(local.check_ports, stack)
    yield "servers", partial(local.check_embedded, state, stack)
    if stack is not None:
        yield "user", partial(local.check_user, state)
        others = {service for service in SERVICES if service not in target.services}
        programs = [each for each in stack.programs if each.partition("-")[0] not in others]
        yield "processes", partial(local.check_processes, stack, programs)


def _all_checks(target: _Target) -> Iterator[NamedCheck]:
    yield "python", installation.check_python
    if target.is_local:
        yield from _local_checks(target)
    reachable = target.reachable
    if target.bootstrap is None or len(reachable) < len(target.services):
        yield "stack", partial(_report_left_out, target)
    for service in reachable:
        yield service, partial(check_service, service, quick=False)
    yield "clocks", lambda: check_clocks({name: read_database_url(name) for name in reachable})
    if target.bootstrap is not None:
        yield BROKER, partial(check_kafka, target.bootstrap, reachable)


def _report_left_out(target: _Target) -> Iterator[Finding]:
    missing = [
        service_variable(service, "DATABASE_URL")
        for service in target.services
        if service not in target.reachable
    ]
    missing += [BOOTSTRAP] if target.bootstrap is None else []
    yield warn(
        "stack",
        f"no stack runs here, and {', '.join(missing)} is not set: its checks were left out",
        "run settle up, or set the variable",
    )
