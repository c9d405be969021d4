"""Other users can read no secret, and each program gets only the secrets that it needs."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy.engine import make_url

from settle.stack.definition import (
    APIS,
    BROKER,
    DATABASE_URLS,
    INHERITED,
    INHERITED_PREFIXES,
    POSTGRES,
    SERVICES,
    WORKERS,
)
from settle.stack.state import StateFolder
from support.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.acceptance

CURSOR_SECRET = "signs the cursors of lists, and nothing else"
SHELL_VARIABLES = {"AWS_SECRET_ACCESS_KEY": "of another system", "DATABASE_URL": "of another one"}
SECRETS = {*DATABASE_URLS.values(), "CURSOR_SECRET"}
SUPERVISOR = "supervisord"
# The secrets that each program needs. Supervisord passes them on.
KNOWN = {
    SUPERVISOR: SECRETS,
    POSTGRES: set[str](),
    BROKER: set[str](),
    **{f"{service}-api": {DATABASE_URLS[service], "CURSOR_SECRET"} for service in SERVICES},
    **{
        f"{service}-{part}": {DATABASE_URLS[service]}
        for service in SERVICES
        for part in ("relay", "consumer")
    },
}
SERVER_NAMES = {
    *("PATH", "HOME", "TMPDIR", "TZ", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "JAVA_HOME"),
    *("SETTLE_HOME", "SUPERVISOR_PROCESS_NAME"),
}


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    made = Stack(CURSOR_SECRET=CURSOR_SECRET, **SHELL_VARIABLES)
    try:
        made.up()
        yield made
    finally:
        made.discard()


def environments(stack: Stack) -> list[tuple[str, dict[str, str]]]:
    """Return the program and the environment of each process, as /proc shows them."""
    found = []
    for pid in stack.running():
        strings = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
        environment = dict(each.split("=", 1) for each in strings if each)
        found.append((environment.get("SUPERVISOR_PROCESS_NAME", SUPERVISOR), environment))
    return found


def password_of(url: str) -> str:
    password = make_url(url).password
    assert password
    return password


def test_each_process_gets_only_its_secrets(stack: Stack) -> None:
    stored = StateFolder(stack.home).read_env()

    found = environments(stack)

    assert {program for program, _ in found} == {SUPERVISOR, POSTGRES, BROKER, *APIS, *WORKERS}
    assert len(found) == len(KNOWN) + 2 * len(APIS)  # each API has two worker processes
    values = {CURSOR_SECRET, *(password_of(stored[name]) for name in DATABASE_URLS.values())}
    for program, environment in found:
        assert SECRETS & set(environment) == KNOWN[program], program
        known = [value for value in values if any(value in text for text in environment.values())]
        assert len(known) == len(KNOWN[program]), program


def test_no_process_gets_other_variables_of_the_shell(stack: Stack) -> None:
    stored = StateFolder(stack.home).read_env()

    for program, environment in environments(stack):
        if program in {POSTGRES, BROKER}:
            assert set(environment) <= SERVER_NAMES, program
            continue
        given = {name for name in environment if not name.startswith(INHERITED_PREFIXES)}
        given = {name for name in given if not name.startswith("SUPERVISOR_")} - {"PORT"}
        assert given <= INHERITED | set(stored), program
        assert not SHELL_VARIABLES.keys() & given, program


def test_no_command_line_holds_a_secret(stack: Stack) -> None:
    stored = StateFolder(stack.home).read_env()
    values = {CURSOR_SECRET, *(password_of(stored[name]) for name in DATABASE_URLS.values())}

    for pid in stack.running():
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
        assert not [value for value in values if value in command], command


def test_the_folder_is_closed_to_others(stack: Stack) -> None:
    """If root runs the stack, PostgreSQL's user may pass through the folder, but not list it."""
    passed = {".", "postgres"} if os.geteuid() == 0 else set[str]()

    for path in (stack.home, *stack.home.iterdir()):
        found, name = path.lstat(), str(path.relative_to(stack.home))
        closed_to = 0o066 if name in passed else 0o077
        assert found.st_uid == os.geteuid(), name
        assert stat.S_IMODE(found.st_mode) & closed_to == 0, name


def test_root_is_warned_and_others_are_not(stack: Stack) -> None:
    is_root = os.geteuid() == 0

    said = stack.up()
    found = json.loads(stack.settle("doctor", "--quick", "--json").stdout)

    assert ("Warning: the APIs, relays, consumers and the broker run as root" in said) == is_root
    verdicts = {check["name"]: check["verdict"] for check in found}
    assert verdicts["user"] == ("warn" if is_root else "ok")


def test_a_folder_that_others_may_write_to_is_refused_by_every_command() -> None:
    stack = Stack()
    try:
        stack.home.chmod(0o777)

        for command in (["up"], ["down"], ["status"], ["demo"], ["logs"], ["reset", "--yes"]):
            refused = stack.settle(*command)
            assert refused.returncode == 1, command
            assert f"Run chmod go-w {stack.home}, or set SETTLE_HOME" in refused.stderr, command
            assert refused.stderr.count("\n") == 1, command
        checks = json.loads(stack.settle("doctor", "--quick", "--json").stdout)

        assert list(stack.home.iterdir()) == []
        (folder,) = [check for check in checks if check["name"] == "folder"]
        assert folder["verdict"] == "fail"
        assert "other users may write to" in folder["found"]
    finally:
        stack.home.chmod(0o755)
        stack.discard()
