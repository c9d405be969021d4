"""Looks for what keeps the stack from starting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from settle.checks import (
    Check,
    Verdict,
    check_folder,
    check_ports,
    check_processes,
    check_python,
    check_servers,
    check_supervisor,
)
from settle.stack import running_stack
from settle.supervisor import Supervisor
from shared.cli import EXPECTED, sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from settle.state import StateFolder

Group = tuple[str, "Callable[[], Iterable[Check]]"]


def examine(state: StateFolder) -> Iterator[Check]:
    """Give each check as it is made; changes nothing, and never raises for what it finds."""
    for name, look in _groups(state):
        try:
            yield from look()
        except EXPECTED as error:
            # What the check itself stumbled over is a finding as well.
            yield Check(name, Verdict.FAIL, sentence(error), "as it says")


def _groups(state: StateFolder) -> Iterator[Group]:
    yield "python", check_python
    yield "folder", lambda: check_folder(state)
    yield "supervisord", lambda: check_supervisor(state)
    try:
        runs = Supervisor(state.socket).pid() is not None
        stack = running_stack(state) if runs else None
    except EXPECTED:
        stack = None  # the check of the servers tells why
    yield "ports", lambda: check_ports(stack)
    yield "servers", lambda: check_servers(state, stack)
    if stack is not None:
        yield "processes", lambda: check_processes(stack)
